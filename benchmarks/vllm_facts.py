"""Facts about a version of vLLM that its source tells mechanically, each beside what our rules say of that version.

A fact whose code has moved is read as None: `benchmarks.read_vllm_wheels` then says so, and a person looks where it went.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.vllm_registry import architectures
from benchmarks.vllm_wheel import Found, Source
from passes.ir.model import ModelIR
from passes.ir.sources import open_model
from targets.engines.engine import Settings, find_engine
from targets.engines.vllm.engine import Vllm, batched_tokens, default_sequences
from targets.engines.vllm.rules.architectures import support
from targets.engines.vllm.rules.runner import named_classes
from targets.engines.vllm.rules.versions import Rules, Version
from targets.gpu import Gpu, find_gpu
from targets.workload import Workload

_CACHE = ("config/cache.py", "config/__init__.py", "config.py", "engine/arg_utils.py")
_MODEL = ("config/model.py", "config/__init__.py", "config.py")
_KV = ("v1/core/kv_cache_planning.py", "v1/core/kv_cache_utils.py")
_ARGS, _ENVS, _VLLM = "engine/arg_utils.py", "envs.py", "config/vllm.py"
_QUANTIZATION = "model_executor/layers/quantization"
_DENSE = "Llama-3.1-8B-Instruct"
#: Families that some version refuses in float16, and two that none does.
_FAMILIES = ("gemma2", "gemma3", "gemma3_text", "glm4", "llama", "qwen3")
#: Cards of each class of defaults.
_CARDS = ("L40S", "A100 SXM4 80GB", "H100 SXM", "B200 SXM", "GB10")


@dataclass(frozen=True)
class Fact:
    """A rule by name; how the source tells it, and what we say; from which version to which the question has a meaning."""

    name: str
    theirs: Callable[[Source], Found | None]
    ours: Callable[[Rules], Any]
    since: Version = (0, 0, 0)
    until: Version = (99, 0, 0)


def _constant(name: str, *paths: str) -> Callable[[Source], Found | None]:
    return lambda source: source.constant(name, *paths)


def _names(name: str, *paths: str) -> Callable[[Source], Found | None]:
    """A literal list of names as a set, empty where there is no such list."""

    def read(source: Source) -> Found:
        found = source.constant(name, *paths)
        return Found(set(found.value), found.place) if found else Found(set(), f"{paths[0]}: no {name}")

    return read


def _has(text: str, *paths: str, present: Any = True, absent: Any = False) -> Callable[[Source], Found]:
    """What holds where a file says something, and where none does."""

    def read(source: Source) -> Found:
        for path in paths:
            before, found, _ = source.text(path).partition(text)
            if found:
                return Found(present, f"{path}:{before.count(chr(10)) + 1}")
        return Found(absent, f"{paths[0]}: no {text!r}")

    return read


def _number(node: ast.expr) -> int | None:
    match node:
        case ast.Constant(value=str() | int() as value):
            return int(value)
        case ast.Call(func=ast.Name(id="str" | "int"), args=[inner]):
            return _number(inner)
        case ast.BinOp(left=left, op=ast.Mult(), right=right):
            factors = (_number(left), _number(right))
            return None if None in factors else factors[0] * factors[1]  # type: ignore[operator]
    return None


def _environment(name: str, absent: int) -> Callable[[Source], Found | None]:
    """The default of an environment variable; where the version has none, what that means."""

    def read(source: Source) -> Found | None:
        for path, node in source.nodes(_ENVS):
            match node:
                case ast.Call(func=ast.Attribute(attr="getenv"), args=[ast.Constant(value=key), default]) if (
                    key == name
                ):
                    value = _number(default)
                    return None if value is None else Found(value, f"{path}:{node.lineno}")
        return Found(absent, f"{_ENVS}: no {name}")

    return read


def _group_slack(source: Source) -> Found:
    """The factor in `max_num_layers < min_num_layers * 1.5`; 1 where groups are never padded."""
    for path, node in source.nodes(*_KV):
        match node:
            case ast.Compare(
                left=ast.Name(id="max_num_layers"), comparators=[ast.BinOp(right=ast.Constant(value=float() as factor))]
            ):
                return Found(factor, f"{path}:{node.lineno}")
    return Found(1.0, f"{_KV[1]}: groups are not padded")


def _card_of(test: ast.expr) -> Callable[[Gpu], bool] | None:
    """A branch's test on the card's memory and name, as a predicate."""
    match test:
        case ast.BoolOp(op=ast.And() | ast.Or() as op, values=values):
            parts = [_card_of(value) for value in values]
            if None in parts:
                return None
            every = all if isinstance(op, ast.And) else any
            return lambda gpu: every(part(gpu) for part in parts)  # type: ignore[misc]
        case ast.Compare(
            left=ast.Name(id="device_memory"), ops=[ast.GtE()], comparators=[ast.BinOp(left=ast.Constant(value=gib))]
        ):
            return lambda gpu: gpu.memory_bytes.value >= gib * (1 << 30)
        case ast.Compare(
            left=ast.Constant(value=name), ops=[ast.In() | ast.NotIn() as op], comparators=[ast.Name(id="device_name")]
        ):
            wanted = isinstance(op, ast.In)
            return lambda gpu: (name in gpu.name.lower()) == wanted
        case ast.UnaryOp(op=ast.Not(), operand=ast.Name(id="is_gb10")):
            return lambda gpu: "GB10" not in gpu.name
    return None


def _assigned(body: list[ast.stmt]) -> tuple[int, int] | None:
    """Tokens and sequences that a branch gives `vllm serve`."""
    found: dict[str, int | None] = {}
    for statement in body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Dict(keys=keys, values=values)):
                for key, value in zip(keys, values, strict=True):
                    if isinstance(key, ast.Attribute) and key.attr == "OPENAI_API_SERVER":
                        found[name] = _number(value)
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=int() as value)):
                found[name] = value
    tokens, sequences = found.get("default_max_num_batched_tokens"), found.get("default_max_num_seqs")
    return None if tokens is None or sequences is None else (tokens, sequences)


def _batch_defaults(source: Source) -> Found | None:
    """Tokens and sequences of `vllm serve` by card: the branches of `get_batch_defaults`, followed for cards of each class."""
    for path, node in source.nodes(_ARGS):
        if not isinstance(node, ast.If) or _card_of(node.test) is None or _assigned(node.body) is None:
            continue
        branches, rest = [(node.test, node.body)], node.orelse
        while len(rest) == 1 and isinstance(rest[0], ast.If):
            branches, rest = [*branches, (rest[0].test, rest[0].body)], rest[0].orelse
        told = {}
        for card in map(find_gpu, _CARDS):
            tests = ((_card_of(test), body) for test, body in branches)
            told[card.name] = _assigned(next((body for test, body in tests if test and test(card)), rest))
        return Found(told, f"{path}:{node.lineno}")
    return None


def _our_defaults(rules: Rules) -> dict[str, tuple[int, int]]:
    cards = map(find_gpu, _CARDS)
    return {
        gpu.name: (batched_tokens(Settings(), gpu, Workload(context=8192), rules), default_sequences(gpu, rules))
        for gpu in cards
    }


def _refused_float16(rules: Rules) -> set[str]:
    ir, card = replace(open_model(_DENSE).ir, dtype="F16"), find_gpu("H100 SXM")
    settings = Settings(version=".".join(map(str, rules.version)))
    return {name for name in _FAMILIES if _codes(replace(ir, model_type=name), card, settings) & {"float16_refused"}}


def _codes(ir: ModelIR, gpu: Gpu, settings: Settings) -> set[str]:
    return {reason.code for reason in find_engine("vllm").illegal(ir, gpu, settings)}


def _float16(source: Source) -> Found:
    found = source.constant("_FLOAT16_NOT_SUPPORTED_MODELS", *_MODEL)
    return (
        Found(set(found.value) & set(_FAMILIES), found.place) if found else Found(set(), f"{_MODEL[0]}: no such list")
    )


def _cache_dtypes(source: Source) -> Found | None:
    found = source.constant("CacheDType", *_CACHE)
    return found and Found(set(Vllm.kv_dtypes) - set(found.value), found.place)


def _bitsandbytes(source: Source) -> Found | None:
    found = source.constant("QuantizationMethods", f"{_QUANTIZATION}/__init__.py")
    return found and Found("bitsandbytes" not in found.value, found.place)


FACTS = (
    Fact("utilization", _constant("gpu_memory_utilization", *_CACHE), lambda rules: rules.utilization),
    Fact("v1", _environment("VLLM_USE_V1", absent=0), lambda rules: int(rules.v1), until=(0, 11, 1)),
    Fact("graphs_v1", _environment("VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS", absent=0), lambda rules: int(rules.graphs_v1)),
    Fact("expert_chunk", _environment("VLLM_FUSED_MOE_CHUNK_SIZE", absent=0), lambda rules: rules.expert_chunk),
    Fact("batch defaults", _batch_defaults, _our_defaults, since=(0, 8, 0)),
    Fact("classes of Model Runner V2", _names("DEFAULT_V2_MODEL_RUNNER_ARCHITECTURES", _VLLM), named_classes),
    Fact("in_flight_batches", _has("def max_in_flight_tokens", _VLLM, present=2, absent=1), lambda rules: rules.in_flight_batches),
    Fact("null_block", _has("Reserve the null block", *_KV), lambda rules: rules.null_block),
    Fact("group_slack", _group_slack, lambda rules: rules.group_slack),
    Fact("hybrid_groups", _has("_uniform_page_size(", *_KV), lambda rules: rules.hybrid_groups),
    Fact("tokens_from_concurrency", _has("int(max_concurrency * max_model_len)", *_KV), lambda rules: rules.tokens_from_concurrency),
    Fact("counts_reserved", _has("total_consumed", "utils/mem_utils.py"), lambda rules: rules.counts_reserved),
    Fact("mla", _has("VLLM_MLA_DISABLE", _ENVS), lambda rules: rules.mla),
    Fact("group_order", _has("def normalize_and_validate_gptq_desc_act", f"{_QUANTIZATION}/utils/gptq_utils.py", present=False, absent=True),
         lambda rules: rules.group_order),
    Fact("online_fp8", _has("fp8_per_tensor", f"{_QUANTIZATION}/fp8.py", present="fp8_per_tensor", absent="fp8"),
         lambda rules: rules.online_fp8),
    Fact("states_for_graphs", _has("pull/38270", "config/compilation.py"), lambda rules: rules.states_for_graphs),
    Fact("families refused in float16", _float16, _refused_float16),
    Fact("types of the KV cache that it lacks", _cache_dtypes, lambda rules: set()),
    Fact("bitsandbytes_plugin", _bitsandbytes, lambda rules: rules.bitsandbytes_plugin),
)  # fmt: skip


def compared(source: Source, rules: Rules) -> Iterator[tuple[str, Any, Found | None]]:
    """Give every fact: its name, ours, theirs (None where the source was not understood)."""
    for fact in FACTS:
        if fact.since <= rules.version < fact.until:
            yield fact.name, fact.ours(rules), fact.theirs(source)
    listed = architectures(source)
    hows = {name: support(name, rules.version) for name in listed}
    differing = {name: how for name, how in listed.items() if hows[name] != how}
    ours = {name: hows[name] for name in differing}
    yield "architectures", ours, Found(differing, "model_executor/models/registry.py")
