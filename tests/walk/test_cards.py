"""The walk on two cards, played by the processor: where a tensor is left on the wrong device, an operation fails here as on real cards."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "chains"), [("llama", ()), ("deepseek_v3", ("w4a16-g32", "w8a8-static-smoothquant"))]
)
def test_cards_store_and_measure_what_processors_do(family: str, chains: tuple[str, ...], tmp_path: Path) -> None:
    """No chains: all of them, and what is measured before a walk."""
    command = [sys.executable, "-m", "tests.walk.cards", family, str(tmp_path), *chains]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    agreement = json.loads(run.stdout.splitlines()[-1])
    assert len(agreement) == (len(chains) or 14)
    assert {name: share for name, share in agreement.items() if share < 0.97} == {}
