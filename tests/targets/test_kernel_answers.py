"""The rules of vLLM's kernels give the answers that vLLM 0.32's own kernels gave (`benchmarks/data/vllm_*kernels.jsonl`)."""

from __future__ import annotations

from benchmarks.kernel_oracle import (
    EXPERTS,
    SCALED,
    expert_questions,
    kept,
    our_answers,
    our_arithmetic,
    our_padding,
    questions,
    real_arithmetic,
    scaled_questions,
)


def test_the_rules_answer_as_the_engines_kernels_did() -> None:
    rows = kept()
    assert len(rows) == len(questions()) > 300
    assert [row for row in rows if our_answers(row) != row["takers"]] == []


def test_rounded_inputs_are_multiplied_as_the_engines_kernels_do() -> None:
    rows = kept(SCALED)
    assert len(rows) == len(scaled_questions())
    assert [(row, our_arithmetic(row)) for row in rows if our_arithmetic(row) != real_arithmetic(row)] == []


def test_experts_in_blocks_are_padded_as_the_engine_pads_them() -> None:
    rows = kept(EXPERTS)
    assert len(rows) == len(expert_questions())
    assert [(row, our_padding(row)) for row in rows if our_padding(row) != row["takers"]["padded"]] == []
