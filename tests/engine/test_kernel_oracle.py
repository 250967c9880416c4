"""vLLM's own kernels, asked in its Python without a card, say what is kept of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.kernel_oracle import EXPERTS, SCALED, kept, real_answers, real_expert_answers, real_scaled_answers

pytestmark = pytest.mark.engine


def test_the_kept_answers_are_the_engines(engine_python: Path) -> None:
    assert [row["takers"] for row in kept()] == real_answers(engine_python)
    assert [row["takers"] for row in kept(SCALED)] == real_scaled_answers(engine_python)
    assert [row["takers"] for row in kept(EXPERTS)] == real_expert_answers(engine_python)
