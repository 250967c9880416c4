"""Allocation across kinds: fewer bits where bytes bind, fewer weights where they alone take away what binds."""

from __future__ import annotations

import pytest

from passes.base import Stage
from planner.plan.document import PlanDocument
from planner.plan.make import plan
from planner.spec.parse import parse_spec

BYTES = """
model: meta-llama/Llama-3.1-8B-Instruct
engine: vllm
target: { gpu: l4, reserve: %d GiB }
workload: { context: 4096, concurrency: 1, input_tokens: 512, output_tokens: 64 }
passes: { prune: allow }
goals: { prefer: quality }
"""
PREFILL = """
model: meta-llama/Llama-3.1-8B-Instruct
engine: vllm
workload: {{ context: 8192, concurrency: 1, input_tokens: 4096, output_tokens: 64 }}
passes: {{ prune: {prune}, kv_cache: [auto] }}
target: {{ gpu: a10g }}
goals: {{ ttft: {ttft}, prefer: quality }}
"""
QWEN = """
model: Qwen/Qwen2.5-72B-Instruct
engine: vllm
target: { gpu: l4, count: 8 }
workload: { context: 8192, concurrency: 2, input_tokens: 1024, output_tokens: 256 }
passes: { prune: allow, quantize: { formats: [w4a16-g128], dense: false }, kv_cache: [auto] }
goals: { %s prefer: quality }
"""


def planned(spec: str) -> PlanDocument:
    made = plan(parse_spec(spec))
    assert made.feasible
    return made.document


def pruned(document: PlanDocument) -> bool:
    return any(pass_.stage is Stage.PRUNE for pass_ in document.decision.chain)


@pytest.mark.parametrize("reserve", [6, 10, 14])
def test_where_bytes_bind_quantization_wins(reserve: int) -> None:
    """16.1 GB of weights in 16, 12 and 8 GiB: 8 bits, made or published, then 4, and every weight stays."""
    document = planned(BYTES % reserve)
    assert not pruned(document)
    assert document.chosen is not None
    assert document.chosen.published or any(pass_.stage is Stage.QUANTIZE for pass_ in document.decision.chain)


def test_where_the_fewest_bits_do_not_fit_pruning_wins() -> None:
    document = planned(BYTES % 16)
    assert pruned(document) and any(pass_.stage is Stage.QUANTIZE for pass_ in document.decision.chain)


def test_where_prefill_is_bound_by_computing_pruning_wins() -> None:
    """4,096 tokens through 8 billion weights on a card of 125 TFLOP/s: 8-bit products help, and then only fewer of them."""
    document = planned(PREFILL.format(prune="allow", ttft="0.7 s"))
    assert pruned(document) and any(pass_.stage is Stage.QUANTIZE for pass_ in document.decision.chain)
    alone = plan(parse_spec(PREFILL.format(prune="forbid", ttft="0.7 s")))
    assert not alone.feasible, "quantization alone does not"
    eased = planned(PREFILL.format(prune="allow", ttft="1.6 s"))
    assert not pruned(eased)


def test_where_a_width_does_not_divide_pruning_wins() -> None:
    """29,568 channels are 231 groups of 128, which no two cards share: whoever needs both cards' speed takes fewer channels."""
    fast, slow = planned(QWEN % "decode: 9 tok/s,"), planned(QWEN % "")
    assert pruned(fast) and fast.decision.settings.tensor_parallel > 1
    assert not pruned(slow) and slow.decision.settings.tensor_parallel == 1
    assert any("does not divide" in reason.message for reason in fast.illegal)
