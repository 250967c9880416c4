"""The walk on two cards, played by the processor: where a tensor is left on the wrong device, an operation fails here as on real cards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.forked import run
from tests.walk import cards


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "chains"), [("llama", ()), ("deepseek_v3", ("w4a16-g32", "w8a8-static-smoothquant"))]
)
def test_cards_store_and_measure_what_processors_do(family: str, chains: tuple[str, ...], tmp_path: Path) -> None:
    """No chains: all of them, and what is measured before a walk."""
    ended = run(cards.main, family, tmp_path, chains)
    assert ended.returncode == 0, ended.stderr[-2000:]
    agreement = json.loads(ended.stdout.splitlines()[-1])
    assert len(agreement) == (len(chains) or 14)
    assert {name: share for name, share in agreement.items() if share < 0.97} == {}
