"""What the keys of a spec mean: the docstrings that stand below them in the code, and examples of what they take."""

from __future__ import annotations

import ast
import inspect
import itertools
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, get_args

import yaml
from pydantic import BaseModel

from planner.spec.spec import Spec
from planner.spec.template import TEMPLATE
from targets.engines.engine import DEFAULT_ENGINE

#: Examples of keys whose type and template show none, by the part that they stand in.
_EXAMPLES: Mapping[tuple[str, str], Any] = {
    ("GpuFacts", "name"): "RTX 4090 48GB", ("GpuFacts", "memory_gib"): 47.4, ("GpuFacts", "bandwidth_gb_s"): 1008,
    ("GpuFacts", "compute_capability"): "8.9", ("GpuFacts", "arch"): "ada", ("GpuFacts", "fp16_bf16_dense_tflops"): 165.2,
    ("GpuFacts", "fp16_fp16acc_dense_tflops"): 330.3, ("GpuFacts", "fp8_dense_tflops"): 330.3, ("GpuFacts", "int8_dense_tops"): 660.6,
    ("GpuFacts", "fp4_dense_tflops"): 1676, ("GpuFacts", "pcie"): "4.0 x16", ("GpuFacts", "interconnect_gb_s_bidirectional"): 900,
    ("Target", "max"): 4, ("Target", "nodes"): 2, ("EngineSettings", "gpu_memory_utilization"): 0.95,
    ("EngineSettings", "max_num_seqs"): 64, ("EngineSettings", "max_num_batched_tokens"): 8192, ("EngineSettings", "block_size"): 32,
    ("EngineChoice", "name"): DEFAULT_ENGINE, ("EngineChoice", "version"): "0.26", ("EngineChoice", "settings"): {"max_num_seqs": 64},
    ("Images", "tokens"): 1200, ("WorkloadSpec", "images"): {"count": 2, "tokens": 1200}, ("WorkloadSpec", "requests"): 200,
    ("WorkloadSpec", "ramp_up"): {"strategy": "linear", "start": "1/s"},
    ("WorkloadSpec", "max_concurrency"): 64, ("WorkloadSpec", "shared_prefix"): "40%", ("WorkloadSpec", "trace"): "requests.jsonl",
    ("QualityGoal", "max_kl"): 0.05, ("Goals", "quality"): {"max_perplexity_increase": "5%"}, ("Goals", "bands"): {"speed": "10%"},
    ("QuantizeChoice", "methods"): ["gptq", "awq"], ("QuantizeChoice", "formats"): ["w4a16-g64"], ("QuantizeChoice", "dense"): True,
    ("PruneChoice", "depth"): 2, ("PruneChoice", "intermediate"): 8192, ("PruneChoice", "kv_heads"): 4, ("PruneChoice", "experts"): 48,
    ("PruneChoice", "sparse"): {"pattern": "2:4"}, ("DistillChoice", "tokens"): 2_000_000, ("DistillChoice", "goal"): 0.02,
    ("DistillChoice", "teacher"): "Qwen/Qwen2.5-72B-Instruct", ("DistillChoice", "prompts"): "prompts.jsonl",
    ("PassesChoice", "quantize"): {"formats": ["w4a16-g64"]}, ("PassesChoice", "kv_cache"): ["auto", "fp8"],
    ("TextChoice", "dataset"): "chats.txt", ("Spec", "revision"): "main", ("Spec", "assume"): "full-attention",
    ("Spec", "passes"): {"kv_cache": ["auto"]}, ("Spec", "evaluation"): {"dataset": "held-out.txt"}, ("Spec", "launch"): ["compose"],
}  # fmt: skip


@cache
def parts() -> Mapping[str, type[BaseModel]]:
    """Return every part of a spec by its name, the whole first."""
    found: list[type[BaseModel]] = [Spec]
    for part in found:
        inner = (below for field in part.model_fields.values() for below in _parts(field.annotation))
        found += [each for each in dict.fromkeys(inner) if each not in found]
    return {part.__name__: part for part in found}


@cache
def described() -> Mapping[tuple[str, str], str]:
    """Return what every key means, by the part that it stands in and its name."""
    return dict(_described())


def _described() -> Iterator[tuple[tuple[str, str], str]]:
    """Every key of every part with the docstring below it."""
    modules = dict.fromkeys(sys.modules[part.__module__] for part in parts().values())
    written = (node for module in modules for node in ast.parse(inspect.getsource(module)).body)
    for part in (node for node in written if isinstance(node, ast.ClassDef)):
        for key, below in itertools.pairwise(part.body):
            told = below.value if isinstance(below, ast.Expr) else None
            if isinstance(key, ast.AnnAssign) and isinstance(told, ast.Constant):
                assert isinstance(key.target, ast.Name)
                yield (part.name, key.target.id), inspect.cleandoc(str(told.value))


def meaning(path: Sequence[str], within: type[BaseModel] = Spec) -> str | None:
    """Say in a line what a key `within` a part means, with an example; None for a key that is not known."""
    part = within
    *above, key = path or ("",)
    for step in above:
        field = part.model_fields.get(step)
        inner = None if field is None else next(_parts(field.annotation), None)
        if inner is None:
            return None
        part = inner
    said, shown = described().get((part.__name__, key)), example(part, key, path if within is Spec else ())
    lines = (
        f"{key}: {' '.join(said.split())}" if said else None,
        f"for example `{key}: {shown}`" if shown else None,
    )
    return "; ".join(line.rstrip(".") for line in lines if line) or None


def _parts(annotation: Any) -> Iterator[type[BaseModel]]:
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield kind


def example(part: type[BaseModel], key: str, path: Sequence[str] = ()) -> str | None:
    """Return what a key may be set to, as YAML in a line: what `optimize init` writes at its place, else an example of its own,
    else its default, else one of its type; None where all of these say nothing.
    """
    if path and (written := _of_template(path)) is not None:
        return written
    default = part.model_construct().model_dump(mode="json", warnings=False).get(key)
    own = _EXAMPLES.get((part.__name__, key), default)
    return _of_type(part, key) if own is None else in_line(own)


def in_line(value: Any) -> str:
    """Write a plain value as YAML in a line."""
    return yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("\n...\n").strip()


def _of_template(path: Sequence[str]) -> str | None:
    """What `optimize init` writes for a key."""
    answers = {
        "model": "Qwen/Qwen2.5-7B-Instruct",
        "gpu": "rtx-4090",
        "count": 1,
        "context": 8192,
        "concurrency": 4,
        "prefix": "",
        "why": "",
    }
    lengths = {
        "lengths": "input_tokens: 2000, output_tokens: 400",
        "goals": "  ttft: 2 s\n  decode: 20 tok/s\n  prefer: quality",
    }
    value: Any = yaml.safe_load(TEMPLATE.format(**answers, **lengths))
    for step in path:
        value = value.get(step) if isinstance(value, dict) else None
    return None if value is None else in_line(value)


def _of_type(part: type[BaseModel], key: str) -> str | None:
    """An example of the type that a key is of."""
    shapes = [part.model_json_schema().get("properties", {}).get(key, {})]
    for shape in shapes:
        shapes += shape.get("anyOf", ())
        if shape.get("examples"):
            return str(shape["examples"][0])
    return None
