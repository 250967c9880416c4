"""Specs that questions are asked about: the examples, and a mixture of experts. The demo's model is that of the catalog."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from passes.ir.sources import Source, open_model
from planner.spec.parse import parse_spec
from planner.spec.spec import Spec

_EXAMPLES = Path(__file__).parents[2] / "examples"
_MOE = """
model: mistralai/Mixtral-8x7B-Instruct-v0.1
target: { gpu: A100 80GB, count: 2 }
workload: { context: 8192, concurrency: 4, input_tokens: 1000, output_tokens: 300 }
goals: { decode: 20 tok/s, quality: { max_perplexity_increase: 3% } }
"""


def _example(name: str) -> str:
    return (_EXAMPLES / f"{name}.yaml").read_text()


TEXTS = {
    "70B": _example("llama-3.3-70b-rtx4090"),
    "32B": _example("qwen2.5-32b-rtx4090"),
    "demo": _example("smollm2-cpu").replace("../.models/SmolLM2-135M-Instruct.Q4_1.gguf", "HuggingFaceTB/SmolLM2-135M-Instruct"),
    "MoE": _MOE,
}  # fmt: skip


@cache
def asked(name: str) -> tuple[Spec, Source]:
    """The spec of that name, and its model."""
    spec = parse_spec(TEXTS[name])
    return spec, open_model(spec.model)
