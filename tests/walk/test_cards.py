"""The walk on two cards, played by the processor: where a tensor is left on the wrong device, an operation fails here as on real cards."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize(("family", "also"), [("llama", "EXL2"), ("qwen3_moe", "")])
def test_a_walk_on_cards_stores_what_one_on_processors_stores(family: str, also: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.walk.cards", family, str(tmp_path), also]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    agreement = json.loads(run.stdout.splitlines()[-1])
    assert len(agreement) == 9 + bool(also)
    assert {name: share for name, share in agreement.items() if share < 0.97} == {}
