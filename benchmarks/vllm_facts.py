"""Facts about a version of vLLM that its source tells mechanically, each beside what our rules say of that version.

A fact whose code has moved is read as None: `benchmarks.read_vllm_wheels` then says so, and a person looks where it went.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.vllm_methods import capabilities
from benchmarks.vllm_methods import ours as our_capabilities
from benchmarks.vllm_registry import architectures
from benchmarks.vllm_wheel import Found, Source, literal_of
from passes.formats.kv_dtypes import OWN
from passes.ir.model import ModelIR
from passes.ir.sources import open_model
from targets.engines.engine import Settings, find_engine
from targets.engines.vllm.defaults import batched_tokens, default_sequences
from targets.engines.vllm.engine import Vllm
from targets.engines.vllm.memory.activations import is_integrated
from targets.engines.vllm.memory.encoder import gathers_heads
from targets.engines.vllm.rules.architectures import support
from targets.engines.vllm.rules.kv_cache import BACKENDS
from targets.engines.vllm.rules.methods import plugin_note
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
    """A rule by name; how the source tells it, and what we say; from which version to which the question has a meaning.

    `set_aside`: versions whose source is knowingly not followed, and why.
    """

    name: str
    theirs: Callable[[Source], Found | None]
    ours: Callable[[Rules], Any]
    since: Version = (0, 0, 0)
    until: Version = (99, 0, 0)
    set_aside: tuple[tuple[Version, Version, str], ...] = ()

    def why_not(self, version: Version) -> str | None:
        """Return why a version's source is not followed, None where it is."""
        return next((why for since, until, why in self.set_aside if since <= version < until), None)


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


def _told_bytes(gpu: Gpu) -> float:
    """What NVML tells of a card's memory: nothing where that is the machine's, which vLLM takes for none."""
    return 0.0 if is_integrated(gpu) else gpu.memory_bytes.value


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
            return lambda gpu: _told_bytes(gpu) >= gib * (1 << 30)
        case ast.Compare(
            left=ast.Constant(value=name), ops=[ast.In() | ast.NotIn() as op], comparators=[ast.Name(id="device_name")]
        ):
            wanted = isinstance(op, ast.In)
            return lambda gpu: (name in gpu.name.lower()) == wanted
        case ast.UnaryOp(op=ast.Not(), operand=ast.Name(id="is_gb10")):
            return lambda gpu: "GB10" not in gpu.name
    return None


def _assigned(body: list[ast.stmt]) -> tuple[int, int | None] | None:
    """Tokens and sequences that a branch gives `vllm serve`; no sequences where these are set beside the branches."""
    found: dict[str, int | None] = {}
    for statement in body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Dict(keys=keys, values=values)):
                for key, value in zip(keys, values, strict=True):
                    if isinstance(key, ast.Attribute) and key.attr == "OPENAI_API_SERVER":
                        found[name] = _number(value)
            case ast.Assign(targets=[ast.Name(id=name)], value=ast.Constant(value=int() as value)):
                found[name] = value
    tokens = found.get("default_max_num_batched_tokens")
    return None if tokens is None else (tokens, found.get("default_max_num_seqs"))


def _beside(source: Source) -> int | None:
    """Sequences of every card, where the version sets them beside the branches (0.8.0 to 0.8.3)."""
    found = source.constant("default_max_num_seqs", _ARGS)
    return found and found.value


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
            tokens, sequences = _assigned(next((body for test, body in tests if test and test(card)), rest)) or (
                None,
                None,
            )
            told[card.name] = (tokens, sequences or _beside(source))
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
    settings = Settings(version=".".join(map(str, rules.version)), dtype="float16")
    return {name for name in _FAMILIES if _codes(replace(ir, model_type=name), card, settings) & {"float16_refused"}}


def _codes(ir: ModelIR, gpu: Gpu, settings: Settings) -> set[str]:
    return {reason.code for reason in find_engine("vllm").illegal(ir, gpu, settings)}


def _float16(source: Source) -> Found:
    found = source.constant("_FLOAT16_NOT_SUPPORTED_MODELS", *_MODEL)
    return (
        Found(set(found.value) & set(_FAMILIES), found.place) if found else Found(set(), f"{_MODEL[0]}: no such list")
    )


def _cache_dtypes(source: Source) -> Found | None:
    """What the version names of the types that we know: its literal, before 0.8.5 the choices of its argument."""
    found = source.constant("CacheDType", *_CACHE) or _choices(source, "--kv-cache-dtype")
    return found and Found(set(Vllm.kv_dtypes) & set(found.value), found.place)


def _our_cache_dtypes(rules: Rules) -> set[str]:
    """What some back end of the version keeps on some card, and the model's own."""
    return {OWN} | {dtype for row in BACKENDS if row.since <= rules.version < row.until for dtype in row.dtypes}


def _choices(source: Source, option: str) -> Found | None:
    for path, node in source.nodes(_ARGS):
        match node:
            case ast.Call(func=ast.Attribute(attr="add_argument"), args=[ast.Constant(value=name)], keywords=words) if (
                name == option
            ):
                chosen = next((literal_of(word.value) for word in words if word.arg == "choices"), None)
                return chosen and Found(chosen[0], f"{path}:{node.lineno}")
    return None


def _plugin(name: str) -> Callable[[Source], Found | None]:
    """Whether a quantization is no method of vLLM's own: read by a package beside it."""
    path = f"{_QUANTIZATION}/__init__.py"

    def read(source: Source) -> Found | None:
        found = source.constant("QuantizationMethods", path) or source.constant("QUANTIZATION_METHODS", path)
        if found is None:
            return _has(f'"{name}": ', path, present=False, absent=True)(source)
        return Found(name not in found.value, found.place)

    return read


def _needs_plugin(name: str) -> Callable[[Rules], bool]:
    return lambda rules: plugin_note(iter([name]), rules) is not None


FACTS = (
    Fact("utilization", _constant("gpu_memory_utilization", *_CACHE), lambda rules: rules.utilization),
    Fact("v1", _environment("VLLM_USE_V1", absent=0), lambda rules: int(rules.v1), until=(0, 11, 1)),
    Fact("graphs_v1", _environment("VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS", absent=0), lambda rules: int(rules.graphs_v1)),
    Fact("expert_chunk", _environment("VLLM_FUSED_MOE_CHUNK_SIZE", absent=0), lambda rules: rules.expert_chunk),
    Fact("batch defaults", _batch_defaults, _our_defaults, since=(0, 8, 0), set_aside=(
        ((0, 8, 0), (0, 8, 4), "recipes of that time start on cards where 1,024 sequences would not"),
        ((0, 8, 5), (0, 9, 0), "recipes of that time start on A100s where the large defaults would not"),
    )),
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
    Fact("online_fp8", _has("--quantization fp8_per_tensor`", f"{_QUANTIZATION}/fp8.py", present="fp8_per_tensor", absent="fp8"),
         lambda rules: rules.online_fp8),
    Fact("Qwen2-VL's encoder gathers heads", _has("all_gather(qkv)", "model_executor/models/qwen2_vl.py"),
         lambda rules: gathers_heads("qwen2_vl", rules), since=(0, 8, 0)),
    Fact("Qwen2.5-VL's encoder gathers heads", _has("all_gather", "model_executor/models/qwen2_5_vl.py"),
         lambda rules: gathers_heads("qwen2_5_vl", rules), since=(0, 8, 0)),
    Fact("states_for_graphs", _has("exceeds available Mamba cache", "config/compilation.py"), lambda rules: rules.states_for_graphs),
    Fact("steps_hold_blocks", _has("In Mamba cache align mode, block_size", _VLLM), lambda rules: rules.steps_hold_blocks),
    Fact("whole_items", _has('"use_bidirectional_attention", None', "transformers_utils/model_arch_config_convertor.py"),
         lambda rules: rules.whole_items),
    Fact("raises_steps", _has("_get_min_mm_batched_tokens", "engine/arg_utils.py"), lambda rules: rules.raises_steps),
    Fact("keeps_residuals", _has("residual=x_attn", "model_executor/models/qwen2_5_vl.py"), lambda rules: rules.keeps_residuals,
         since=(0, 8, 0)),
    Fact("one_mixer_input", _has('prefix=f"{prefix}.in_proj",', "model_executor/models/qwen3_next.py"), lambda rules: rules.one_mixer_input,
         since=(0, 10, 2)),
    Fact("families refused in float16", _float16, _refused_float16),
    Fact("types of the KV cache", _cache_dtypes, _our_cache_dtypes),
    Fact("bitsandbytes_plugin", _plugin("bitsandbytes"), lambda rules: rules.bitsandbytes_plugin),
    Fact("bitsandbytes by a plugin", _plugin("bitsandbytes"), _needs_plugin("bitsandbytes")),
    Fact("gguf by a plugin", _plugin("gguf"), _needs_plugin("gguf")),
    Fact("graph_stride", _has("capture_size + 1, 16", _VLLM, "config/__init__.py", present=16, absent=8), lambda rules: rules.graph_stride),
    Fact("graph_ceiling", _has("is_device_capability_family(100) else 512", _VLLM, present=1024, absent=512),
         lambda rules: rules.graph_ceiling),
)  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """A fact: its name, ours, theirs (None where the source was not understood), and why theirs is not followed."""

    name: str
    ours: Any
    theirs: Found | None
    set_aside: str | None = None


def compared(source: Source, rules: Rules) -> Iterator[Comparison]:
    """Give every fact that has a meaning in this version."""
    for fact in FACTS:
        if fact.since <= rules.version < fact.until:
            yield Comparison(fact.name, fact.ours(rules), fact.theirs(source), fact.why_not(rules.version))
    told = capabilities(source)
    yield Comparison("least compute capabilities", our_capabilities(told.value if told else (), rules), told)
    listed = architectures(source)
    hows = {name: support(name, rules.version) for name in listed}
    differing = {name: how for name, how in listed.items() if hows[name] != how}
    ours = {name: hows[name] for name in differing}
    yield Comparison("architectures", ours, Found(differing, "model_executor/models/registry.py"))
