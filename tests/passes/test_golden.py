"""What every pass makes of a model of every kind, held against golden files that are read like a page: the description before and after.

`python -m tests.passes.test_golden` writes them anew; a difference between what it writes and what lay there is a change of what
checkpoints hold.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from passes.base import Pass
from passes.chain import PASSES
from passes.distill.distill import Distill
from passes.ir.model import Linear, ModelIR
from passes.ir.sources import open_model
from passes.kv_cache import KVCachePass
from passes.prune.depth import DepthPrune
from passes.prune.experts import ExpertPrune
from passes.prune.sparse import Sparsify
from passes.prune.width import WidthPrune
from passes.quantize.format_names import pass_named

_GOLDEN = Path(__file__).with_name("golden")
#: Plain, biased, fused, of experts, tied and alternating, of experts with a bank.
FAMILIES = {
    "llama": "Llama-3-8B", "qwen2": "Qwen2.5-7B-Instruct", "phi": "Phi-4", "qwen3_moe": "Qwen3-30B-A3B", "gemma2": "gemma-2-9b-it",
    "mixtral": "Mixtral-8x7B-Instruct-v0.1",
}  # fmt: skip


def examples(ir: ModelIR) -> list[Pass]:
    """One pass of every kind, of the first strength that is worth weighing on a model, where it has strengths."""
    named = (pass_named(name) for name in ("w4a16-g128", "mixed-5.0-g64", "exl2-4.0", "nf4"))
    return [
        DepthPrune(2), next(WidthPrune.degrees(ir), WidthPrune(1024)), next(ExpertPrune.degrees(ir), ExpertPrune(4)), Sparsify(), Distill(),
        *(pass_ for pass_ in named if pass_ is not None), KVCachePass("fp8", scales=True),
    ]  # fmt: skip


def page(ir: ModelIR, pass_: Pass) -> str:
    """The text of a golden file."""
    reasons = [f"illegal: {reason.code}: {reason.message}" for reason in pass_.illegal(ir)]
    after = reasons or [*_described(pass_.rewrite(ir)), *_config(ir, pass_.rewrite(ir))]
    return "\n".join([ir.name, "", *_described(ir), "", pass_.text(), "", *after, ""])


def _described(ir: ModelIR) -> Iterator[str]:
    """Blocks by kind, one line a matrix, what lies outside of them, and the bytes of it all."""
    for block, count in ir.decoder.counts:
        yield f"  {count} blocks, {block.heads} heads, {block.state}"
        yield from (f"    {_matrix(linear)}" for linear in block.linears)
        yield from (f"    {tensor.name} {tensor.dtype}{list(tensor.shape)}" for tensor in block.tensors)
    yield from (f"  {_matrix(linear)}" for linear in ir.outer)
    yield f"  cache {ir.kv_cache.dtype}{' with scales' if ir.kv_cache.scales else ''}, at load {ir.load_time.name}"
    yield f"  {ir.weights:,} weights, {ir.tensor_bytes:,} bytes"


def _matrix(linear: Linear) -> str:
    copies = f"{linear.copies} × " if linear.copies > 1 else ""
    bias = f", bias {linear.bias}" if linear.bias else ""
    return f"{linear.name} {copies}[{linear.out_features}, {linear.in_features}] {linear.storage.label}{bias}"


def _config(before: ModelIR, after: ModelIR) -> Iterator[str]:
    for key in sorted(before.config.keys() | after.config.keys()):
        old, new = (json.dumps(ir.config.get(key), default=str) for ir in (before, after))
        if old != new:
            yield f"  config: {key}: {old} → {new}"


@pytest.mark.parametrize("family", FAMILIES)
def test_descriptions_are_the_golden_ones(family: str) -> None:
    ir = open_model(FAMILIES[family]).ir
    for pass_ in examples(ir):
        golden = _GOLDEN / pass_.name / f"{family}.txt"
        assert page(ir, pass_) == golden.read_text(encoding="utf-8"), golden


def test_every_pass_has_golden_files() -> None:
    assert {folder.name for folder in _GOLDEN.iterdir()} == set(PASSES.names())


def write() -> None:
    """Write the golden files."""
    for family, model in FAMILIES.items():
        ir = open_model(model).ir
        for pass_ in examples(ir):
            (_GOLDEN / pass_.name).mkdir(parents=True, exist_ok=True)
            (_GOLDEN / pass_.name / f"{family}.txt").write_text(page(ir, pass_), encoding="utf-8")


if __name__ == "__main__":
    write()
