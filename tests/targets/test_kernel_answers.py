"""The rules of vLLM's kernels give the answers that vLLM 0.32's own kernels gave (`benchmarks/data/vllm_kernels.jsonl`)."""

from __future__ import annotations

from benchmarks.kernel_oracle import kept, our_answers, questions


def test_the_rules_answer_as_the_engines_kernels_did() -> None:
    rows = kept()
    assert len(rows) == len(questions()) > 300
    assert [row for row in rows if our_answers(row) != row["takers"]] == []
