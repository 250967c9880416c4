"""From the flags of a server's command to what is asked of a plan or a check: model, lengths, settings, features.

What each flag means is vLLM's `engine/arg_utils.py` and `config/`; what it takes of the memory is counted by the engine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from passes.errors import InputError, Reason
from passes.ir.fields import LARGEST
from passes.record import dataclass
from targets.engines.engine import Parallel, Settings
from targets.engines.features import Adapters, Drafting, Features
from targets.engines.vllm.arguments.command import ServeCommand
from targets.engines.vllm.arguments.configs import gone, judged
from targets.engines.vllm.arguments.parsers import absent_parsers, parser_notes
from targets.engines.vllm.arguments.table import CHOICES_OF, Flag, find_flag
from targets.engines.vllm.rules.versions import parse_version
from targets.numbers import AUTO, count, real_number, whole_number

_GIB = 1 << 30
#: More bytes than any machine has.
_MOST_BYTES = 1 << 50
#: Flags that this module reads.
COUNTED = frozenset({
    "config", "model", "revision", "dtype", "quantization", "max-model-len", "tensor-parallel-size", "pipeline-parallel-size",
    "data-parallel-size", "enable-expert-parallel", "gpu-memory-utilization", "max-num-seqs", "max-num-batched-tokens",
    "enforce-eager", "block-size", "kv-cache-memory-bytes", "kv-cache-dtype", "calculate-kv-scales", "enable-lora", "max-loras",
    "max-lora-rank", "lora-dtype", "fully-sharded-loras", "speculative-config", "spec-method", "spec-model", "spec-tokens",
    "speculative-model", "num-speculative-tokens", "cpu-offload-gb", "language-model-only", "limit-mm-per-prompt",
    "skip-mm-profiling", "mm-encoder-tp-mode", "enable-multimodal-encoder-data-parallel", "enable-prefix-caching",
    "compilation-config", "optimization-level", "cudagraph-capture-sizes", "cuda-graph-sizes", "max-cudagraph-capture-size",
    "num-gpu-blocks-override", "decode-context-parallel-size", "mamba-cache-dtype", "mamba-ssm-cache-dtype", "mamba-cache-mode",
    "hf-overrides", "rope-scaling", "rope-theta", "load-format", "runner", "convert", "task", "enable-chunked-prefill",
})  # fmt: skip
#: Flags that move the card's memory by what is not counted, and how.
UNCOUNTED: Mapping[str, str] = {
    "moe-backend": "experts are counted as these kernels pad them, workspaces are taken to be the default's",
    **dict.fromkeys(("attention-backend", "attention-config", "linear-backend", "mamba-backend", "kernel-config"),
                    "chooses kernels, whose workspaces are taken to be the default's"),
    **dict.fromkeys(("enable-dbo", "ubatch-size"), "two half batches at once take more activations"),
    **dict.fromkeys(("enable-eplb", "eplb-config", "num-redundant-experts", "enable-elastic-ep"),
                    "further copies of experts are not counted"),
    **dict.fromkeys(("kv-transfer-config", "ec-transfer-config", "ec-manager-config"), "buffers of a connector are not counted"),
    **dict.fromkeys(("offload-group-size", "offload-num-in-group", "offload-params", "cpu-offload-params", "offload-backend"),
                    "which weights are offloaded is not counted"),
    "lora-target-modules": "adapters are counted for every matrix",
    "enable-tower-connector-lora": "adapters of encoders are not counted",
    "enable-mixed-moe-lora-format": "adapters are counted a matrix of each expert",
    "enable-moe-shared-loras": "adapters are counted a matrix of each expert",
    "kv-cache-dtype-skip-layers": "the cache is counted in one type for all layers",
    "disable-hybrid-kv-cache-manager": "sliding layers are counted with groups of their own",
    "disable-sliding-window": "sliding layers are counted as such",
    "mm-ipc-gpu-memory-gb": "memory of the API process is not counted",
    "mm-processor-device": "memory of the processor of pictures is not counted",
    "prefill-context-parallel-size": "the cache is counted on one rank",
    "max-logprobs": "rows of log-probabilities are not counted", "enable-prompt-embeds": "their buffers are not counted",
    "enable-sleep-mode": "its allocator's pools are not counted",
    "performance-mode": "graphs, tokens and sequences of a step are counted for the balanced mode",
    "mamba-block-size": "its default is counted", "quantization-config": "the checkpoint's own is counted",
    "mm-encoder-only": "the language model, which it leaves out, is counted",
    **dict.fromkeys(("mm-processor-kwargs", "media-io-kwargs"),
                    "pictures and videos are counted as large and as long as the model's own processor takes them"),
    **dict.fromkeys(("mm-encoder-attn-backend", "mm-encoder-attn-dtype"), "the default kernels of encoders are counted"),
    "specialize-active-lora": "graphs for each number of active adapters are not counted",
    "dcp-q-replicate": "query projections are counted once for the ranks that share the cache",
    **dict.fromkeys(("use-replayssm", "replayssm-buffer-len"), "the recent inputs that it keeps beside each state are not counted"),
    "enable-mamba-shared-prefix-checkpoint": "the further states that it keeps are not counted",
    "offload-prefetch-step": "layers fetched ahead are not counted",
    **dict.fromkeys(("enable-return-routed-experts", "aux-output-config"), "what it keeps of each token is not counted"),
    "engram-config": "tables of n-grams are counted as the model's config says",
    "model-impl": "vLLM's own code for the model is counted",
    "weight-transfer-config": "buffers for new weights are not counted",
    "watermark": "the share of the cache that it keeps free is counted as usable",
}  # fmt: skip
#: `--quantization` of a dense checkpoint by the format that it makes while loading; all others name what a checkpoint must be.
_ONLINE = {
    "fp8": "fp8-online", "fp8_per_tensor": "fp8-online", "bitsandbytes": "nf4",
}  # fmt: skip
#: Flags whose values are judged with the card and the model.
_JUDGED_ELSEWHERE = frozenset({"dtype", "kv-cache-dtype", "quantization"})
#: Tasks that answer with vectors or scores.
_POOLING = ("embed", "embedding", "classify", "score", "reward", "pooling")
_BYTES = {"float32": 4, "float": 4, "bfloat16": 2, "float16": 2, "half": 2}
#: Methods of drafting: by layers of the model itself end in `mtp`; these draft from the text so far.
_FROM_TEXT = ("ngram", "ngram_gpu", "suffix", "[ngram]")


@dataclass(frozen=True, slots=True)
class Asked:
    """What a command asks for, in the words of `check`. None: it does not say. `draft`: the name of the model that drafts.
    `longest`: the longest context that fits is taken. `overrides`: of the model's config. `notes`: what is not counted, or has no effect.
    """

    model: str | None
    revision: str | None
    context: int | None
    longest: bool
    settings: Settings
    weights: str | None
    quantization: str | None
    kv_cache_dtype: str | None
    draft: str | None
    overrides: Mapping[str, Any]
    reasons: tuple[Reason, ...]
    notes: tuple[str, ...]


def asked(command: ServeCommand, version: str | None = None) -> Asked:
    """Return what a command asks for. `version`: of the engine, where another place names it. Raises InputError for values that a
    flag does not take.
    """
    read = _Reader(command.flags)
    if len(command.words) > 1:
        raise InputError(
            f"{command.words[1]!r} stands where no word is expected",
            remedy="one model, then flags; values with spaces go into quotes",
        )
    version = version or command.version
    for flag in _flags(command.flags):
        if flag.name not in _JUDGED_ELSEWHERE and isinstance(value := command.flags[flag.name], str):
            flag.refuse(value, version)
    of_keys = tuple(reason for name, value in command.flags.items() for reason in judged(name, value, version))
    context = read.text("max-model-len")
    overrides = read.mapping("hf-overrides")
    for old in ("rope-scaling", "rope-theta"):
        if old in command.flags:
            overrides = {**overrides, old.replace("-", "_"): command.flags[old]}
    return Asked(
        model=command.model,
        revision=read.text("revision"),
        context=None if context is None or context in AUTO else read.count("max-model-len"),
        longest=context in AUTO,
        settings=_settings(read, version),
        weights=_online(read),
        quantization=read.text("quantization"),
        kv_cache_dtype=_cache_dtype(read),
        draft=_draft(read),
        overrides=overrides,
        reasons=(*_refused(command.flags, version), *of_keys),
        notes=(*command.notes, *_notes(command.flags, version), *parser_notes(command.flags, version)),
    )


class _Reader:
    """Flags by their types. Raises InputError for values that are none of them."""

    def __init__(self, flags: Mapping[str, Any]) -> None:
        self._flags = flags

    def text(self, name: str) -> str | None:
        value = self._flags.get(name)
        return None if value is None else str(value)

    def count(self, name: str, most: int = LARGEST) -> int | None:
        text = self.text(name)
        return None if text is None else count(text, f"--{name}", most)

    def real(self, name: str) -> float | None:
        text = self.text(name)
        return None if text is None else real_number(text, f"--{name}")

    def switch(self, name: str) -> bool | None:
        value = self._flags.get(name)
        return None if value is None else bool(value)

    def mapping(self, name: str) -> dict[str, Any]:
        value = self._flags.get(name, {})
        if not isinstance(value, dict):
            if name == "compilation-config" and str(value).isdigit():
                return {"level": int(value)}
            raise InputError(
                f"--{name} {value!r:.100} is no JSON object", remedy=f"write --{name} '{{\"key\": value}}'"
            )
        return value

    def counts(self, name: str) -> tuple[int, ...]:
        return _counts(self._flags.get(name), f"--{name}")


def _counts(value: Any, flag: str) -> tuple[int, ...]:
    listed = value if isinstance(value, list) else [] if value is None else [value]
    return tuple(count(str(each), flag) for each in listed)


def _settings(read: _Reader, version: str | None) -> Settings:
    tp, pp, dp = (read.count(f"{name}-parallel-size") or 1 for name in ("tensor", "pipeline", "data"))
    experts = tp * dp if read.switch("enable-expert-parallel") else 1
    share = read.real("gpu-memory-utilization")
    if share is not None and not 0 < share <= 1:
        raise InputError(
            f"--gpu-memory-utilization {share:g} is no share of a card", remedy="write one above 0, at most 1"
        )
    return Settings(
        version=version,
        parallel=Parallel(tp, pp, dp, experts),
        gpu_memory_utilization=share,
        max_num_seqs=read.count("max-num-seqs"),
        max_num_batched_tokens=read.count("max-num-batched-tokens"),
        enforce_eager=bool(read.switch("enforce-eager")),
        block_size=read.count("block-size"),
        kv_cache_memory_bytes=read.count("kv-cache-memory-bytes", _MOST_BYTES),
        dtype=read.text("dtype"),
        features=_features(read),
    )


def _features(read: _Reader) -> Features:
    whole = read.text("mm-encoder-tp-mode") == "data" or bool(read.switch("enable-multimodal-encoder-data-parallel"))
    return Features(
        adapters=_adapters(read),
        drafting=_drafting(read),
        offload_bytes=_offloaded(read),
        text_only=bool(read.switch("language-model-only")),
        media=tuple((kind, _items(limit)) for kind, limit in _limits(read).items()),
        profiles_media=not read.switch("skip-mm-profiling"),
        whole_encoders=whole,
        prefix_caching=_caching(read),
        graphs=_graphs(read),
        largest_graph=_largest_graph(read),
        cache_blocks=read.count("num-gpu-blocks-override"),
        context_parallel=read.count("decode-context-parallel-size") or 1,
        state_bytes=_BYTES.get(read.text("mamba-ssm-cache-dtype") or read.text("mamba-cache-dtype") or ""),
        convolution_bytes=_BYTES.get(read.text("mamba-cache-dtype") or ""),
        pools=_pools(read),
        expert_kernels=_expert_kernels(read),
        whole_prompts=read.switch("enable-chunked-prefill") is False,
    )


def _offloaded(read: _Reader) -> int:
    size = read.real("cpu-offload-gb") or 0.0
    if not 0 <= size * _GIB <= _MOST_BYTES:
        raise InputError(f"--cpu-offload-gb {size:g} is out of range", remedy="write GiB a card, such as 4")
    return int(size * _GIB)


def _pools(read: _Reader) -> bool:
    task = read.text("task") or "generate"
    return read.text("runner") == "pooling" or read.text("convert") in _POOLING or task in _POOLING


def _expert_kernels(read: _Reader) -> str | None:
    return read.text("moe-backend") or read.mapping("kernel-config").get("moe_backend")


def _limits(read: _Reader) -> Mapping[str, Any]:
    """Limits by the kind of an item, as JSON or as versions to 0.9 wrote them: `image=2,video=0`."""
    written = read.text("limit-mm-per-prompt") or ""
    if "=" in written and "{" not in written:
        pairs = (part.partition("=") for part in written.split(","))
        return {kind.strip(): items for kind, _, items in pairs}
    return read.mapping("limit-mm-per-prompt")


def _items(limit: Any) -> int:
    """The items of a modality at most: `0`, or `{"count": 0, …}`."""
    value = limit.get("count", 1) if isinstance(limit, dict) else limit
    return whole_number(str(value), "--limit-mm-per-prompt")


def _caching(read: _Reader) -> bool | None:
    """Prefix caching as switched, and as the states' mode says: `none` keeps one state, `align` and `all` more."""
    mode = read.text("mamba-cache-mode")
    return read.switch("enable-prefix-caching") if mode is None else mode != "none"


def _adapters(read: _Reader) -> Adapters | None:
    if not read.switch("enable-lora"):
        return None
    element = _BYTES.get(read.text("lora-dtype") or "bfloat16", 2)
    return Adapters(
        read.count("max-lora-rank") or 16,
        read.count("max-loras") or 1,
        bool(read.switch("fully-sharded-loras")),
        element,
    )


def _speculative(read: _Reader) -> dict[str, Any]:
    """The configuration of drafting, from `--speculative-config` and its short forms, old and new."""
    config = read.mapping("speculative-config")
    short = {
        "method": read.text("spec-method"), "model": read.text("spec-model") or read.text("speculative-model"),
        "num_speculative_tokens": read.text("spec-tokens") or read.text("num-speculative-tokens"),
    }  # fmt: skip
    return {**{key: value for key, value in short.items() if value is not None}, **config}


def _draft(read: _Reader) -> str | None:
    """The model that drafts, where one is named that is not the method itself."""
    model = _speculative(read).get("model")
    return None if model is None or str(model) in _FROM_TEXT else str(model)


def _drafting(read: _Reader) -> Drafting | None:
    config = _speculative(read)
    if not config:
        return None
    model = config.get("model")
    method = str(config.get("method") or (model if model in _FROM_TEXT else _method_of(str(model or ""))))
    tokens = count(str(config.get("num_speculative_tokens", 1)), "num_speculative_tokens of --speculative-config")
    whole = str(config.get("draft_tensor_parallel_size", "")) == "1"
    own = method == "mtp" or method.endswith("_mtp")
    assumed = not own and method not in _FROM_TEXT
    return Drafting(method.strip("[]"), tokens, own=own, whole=whole, assumed=assumed)


def _method_of(model: str) -> str:
    """The method that vLLM reads from a draft's name or config (`config/speculative.py`): a head by its name, else a model. Assistants are
    Gemma 4's, which share its cache and run as MTP layers do.
    """
    name = model.lower().replace("-", "")
    heads = ("eagle3", "eagle", "medusa", "dflash", "dspark")
    return next((head for head in heads if head in name), "mtp" if name.endswith("assistant") else "draft_model")


def _compilation(read: _Reader) -> dict[str, Any]:
    return read.mapping("compilation-config")


def _graphs(read: _Reader) -> bool:
    """Whether graphs are captured: not at level 0, not where the mode says so."""
    config = _compilation(read)
    mode = str(config.get("cudagraph_mode", "")).upper()
    level = read.text("optimization-level")
    return (
        mode != "NONE"
        and config.get("use_cudagraph") is not False
        and level != "0"
        and config.get("cudagraph_capture_sizes") != []
    )


def _largest_graph(read: _Reader) -> int | None:
    config = _compilation(read)
    listed = (
        *read.counts("cudagraph-capture-sizes"), *read.counts("cuda-graph-sizes"),
        *_counts(config.get("cudagraph_capture_sizes"), "cudagraph_capture_sizes of --compilation-config"),
    )  # fmt: skip
    most = config.get("max_cudagraph_capture_size")
    named = None if most is None else count(str(most), "max_cudagraph_capture_size of --compilation-config")
    return read.count("max-cudagraph-capture-size") or named or max(listed, default=None)


def _online(read: _Reader) -> str | None:
    """The format that the engine makes of a dense checkpoint while it loads."""
    named = read.text("quantization") or ("bitsandbytes" if read.text("load-format") == "bitsandbytes" else None)
    return _ONLINE.get(named or "")


def _cache_dtype(read: _Reader) -> str | None:
    dtype = read.text("kv-cache-dtype")
    return {"fp8_e4m3": "fp8"}.get(dtype or "", dtype)


def _refused(flags: Mapping[str, Any], version: str | None) -> Iterator[Reason]:
    """What the version's command line stops at."""
    if version is not None:
        yield from _unknown_to(version, flags)
    yield from absent_parsers(flags, version)


def _unknown_to(version: str, flags: Mapping[str, Any]) -> Iterator[Reason]:
    """Flags of the engine, and values of them, that a version has not yet, or no longer: its parser stops."""
    for flag in _flags(flags):
        if flag.since and flag.of_engine and parse_version(version) < parse_version(flag.since):
            yield _not_there(flag, version, f"it came with {flag.since}")
        if flag.until and parse_version(version) > parse_version(flag.until):
            yield _not_there(flag, version, f"it went after {flag.until}")
        if flag.took(value := flags[flag.name]) and parse_version(version) >= parse_version(CHOICES_OF):
            message = f"vLLM {version} does not take --{flag.name} {value} any more: it stops at its command line"
            yield Reason("flag_not_in_version", message, f"write one of: {', '.join(flag.choices)}")


def _not_there(flag: Flag, version: str, why: str) -> Reason:
    return Reason(
        "flag_not_in_version",
        f"vLLM {version} has no flag --{flag.name} ({why}): it stops at its command line",
        f"leave --{flag.name} out",
    )


def _flags(flags: Mapping[str, Any]) -> Iterator[Flag]:
    yield from (find_flag(f"--{name}")[0] for name in flags)


def _notes(flags: Mapping[str, Any], version: str | None) -> Iterator[str]:
    for name, why in UNCOUNTED.items():
        if name in flags:
            yield f"--{name}: {why}"
    if "cpu-offload-gb" in flags:
        yield "speeds are those without offload: offloaded weights cross the PCIe bus at every step"
    free = sorted(name for name in flags if name not in COUNTED and name not in UNCOUNTED)
    if free:
        yield f"without effect on the card's memory: {', '.join(f'--{name}' for name in free)}"
    for flag in _flags(flags) if version is None else ():
        if flag.until:
            yield f"--{flag.name} went after vLLM {flag.until}: newer ones stop at it; name the version with --engine-version"
        if flag.took(value := flags[flag.name]):
            yield f"--{flag.name} {value} went before vLLM {CHOICES_OF}: newer ones stop at it; name the version with --engine-version"
        yield from gone(flag.name, flags[flag.name])


def with_draft(settings: Settings, **changes: Any) -> Settings:
    """Return settings whose drafting knows more of its model."""
    drafting = settings.features.drafting
    if drafting is None:
        return settings
    return replace(settings, features=replace(settings.features, drafting=replace(drafting, **changes)))
