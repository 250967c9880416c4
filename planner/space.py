"""The space of a spec: every candidate = engine × chain of passes × KV type × number of cards.

Formats of fixed width are enumerated. EXL2 and EXL3 take any bits a weight; there the space is continuous, and the candidate
is *solved for*: the most bits that still leave room for the asked context, since quality only rises and speed only falls with
bits. Where a speed goal binds instead, the most bits that meet it.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import lru_cache

from passes import graph
from passes.base import Pass
from passes.ir.model import ModelIR
from passes.kv_cache import KVCachePass
from passes.prune.depth import DepthPrune
from passes.quantize.quantize import Quantize
from passes.quantize.scheme import parse_scheme
from planner.chains import rewrite
from planner.spec import EngineChoice, EngineSettings, PruneChoice, Spec
from planner.verdict import Candidate
from targets.engines import ENGINE_NAMES, find_engine
from targets.engines.engine import Engine, Parallel, Settings
from targets.gpu import Gpu
from targets.workload import Workload

#: Formats of fixed width that are weighed on each engine when the spec names none.
FORMATS: dict[str, tuple[str, ...]] = {
    "vllm": (
        "fp8", "fp8-block", "w8a8", "w8a16-channel", "w8a16-g128", "w4a16-g128", "w4a16-g64", "w4a16-g32", "w4a16-g128-asym",
        "gptq-4-g128", "gptq-4-g64", "gptq-4-g32", "gptq-8-g128", "awq-4-g128", "awq-4-g64", "awq-4-g32", "nvfp4", "nf4", "fp8-online",
    ),
    "vllm-cpu": ("w8a8", "fp8", "w4a16-g128", "w4a16-g64", "w4a16-g32", "gptq-4-g128", "gptq-4-g64", "gptq-4-g32"),
    "exllamav2": ("gptq-4-g128", "gptq-4-g64", "gptq-4-g32"),
    "exllamav3": (),
}  # fmt: skip

#: Engines whose own format has any bits a weight: its name, and the range and step (hundredths) worth solving in.
CONTINUOUS = {"exllamav2": ("exl2", 2.0, 8.0), "exllamav3": ("exl3", 1.0, 8.0)}
_STEP = 0.01
_PRUNED_SHARES = (0.05, 0.10, 0.15, 0.20, 0.25)

#: Engines that `auto` leaves out: no measurement of their speed is held, so they are weighed only where the spec names them.
ON_REQUEST = ("exllamav3",)

#: KV types by engine, best quality first.
KV_DTYPES = {
    "vllm": ("auto", "fp8"), "vllm-cpu": ("auto", "fp8"), "exllamav2": ("auto", "q8", "q6", "q4"), "exllamav3": ("auto", "q8", "q6", "q4"),
}  # fmt: skip


def workload_of(spec: Spec) -> Workload:
    """The workload of a spec."""
    w = spec.workload
    return Workload(w.context, w.concurrency, w.input_tokens, w.output_tokens)


def candidates(spec: Spec, ir: ModelIR, gpu: Gpu, cards: int | None = None) -> Iterator[Candidate]:
    """Every candidate of the space, legal or not: the illegal ones lose with a reason. `cards`: of this parallel degree only."""
    for name, choice in engines(spec, gpu):
        chains = list(_chains(spec, ir, name))
        for tp in (cards,) if cards else _degrees(spec.target.count):
            settings = _settings(choice, spec, tp)
            for chain in chains:
                yield Candidate(name, chain, settings)
            yield from _solved(spec, ir, gpu, name, settings)


def engines(spec: Spec, gpu: Gpu) -> Iterator[tuple[str, EngineChoice]]:
    """The engines that are weighed. Raises InputError for an unknown name."""
    if isinstance(spec.engine, EngineChoice):
        find_engine(spec.engine.name)
        yield spec.engine.name, spec.engine
    elif spec.engine != "auto":
        find_engine(spec.engine)
        yield spec.engine, EngineChoice(name=spec.engine)
    else:
        for name in ENGINE_NAMES:
            if name.endswith("-cpu") == gpu.is_cpu and name not in ON_REQUEST:
                yield name, EngineChoice(name=name)


def _chains(spec: Spec, ir: ModelIR, engine: str) -> Iterator[tuple[Pass, ...]]:
    """Pruning × quantization × KV type."""
    for pruning in _prunings(spec, ir):
        for first in _quantizations(spec, ir, engine):
            head: tuple[Pass, ...] = (*pruning, first) if first is not None else pruning
            for dtype in _kv_dtypes(spec, engine):
                yield (*head, *_cache(ir, head, dtype))


def _prunings(spec: Spec, ir: ModelIR) -> Iterator[tuple[Pass, ...]]:
    """The structural heads of a chain: as asked, none, or none and each share of the blocks."""
    choice = spec.passes.prune
    if isinstance(choice, PruneChoice):
        yield (DepthPrune(choice.depth),)
        return
    yield ()
    if choice == "allow":
        layers = len(ir.decoder.layers)
        yield from (
            (DepthPrune(count),) for count in sorted({max(1, round(layers * share)) for share in _PRUNED_SHARES})
        )


def _kv_dtypes(spec: Spec, engine: str) -> tuple[str, ...]:
    asked = spec.passes.kv_cache
    return tuple(d for d in KV_DTYPES.get(engine, ("auto",)) if asked is None or d in asked) or (
        () if asked else ("auto",)
    )


def _cache(ir: ModelIR, head: tuple[Pass, ...], dtype: str) -> tuple[Pass, ...]:
    """The KV pass; fp8 carries calibrated scales where the checkpoint's format can hold them."""
    if dtype == "auto":
        return ()
    scaled = KVCachePass(dtype, scales=True)
    after, _ = rewrite(ir, head)
    return (scaled if not scaled.illegal(after) else KVCachePass(dtype),)


def _quantizations(spec: Spec, ir: ModelIR, engine: str) -> Iterator[Pass | None]:
    choice = spec.passes.quantize
    if choice == "forbid" or ir.quant_method is not None:
        yield None
        return
    if choice.dense:
        yield None
    for name in choice.formats if choice.formats is not None else FORMATS.get(engine, ()):
        parsed = parse_scheme(name)
        if parsed is None:
            continue
        methods = choice.methods
        if (
            not isinstance(parsed, Quantize)
            or choice.formats is not None
            or methods is None
            or parsed.method in methods
        ):
            yield parsed
        elif parsed.method == "gptq" and "rtn" in methods:
            yield replace(parsed, method="rtn")


def _solved(spec: Spec, ir: ModelIR, gpu: Gpu, engine: str, settings: Settings) -> Iterator[Candidate]:
    """For each KV type the most bits a weight that fit; where a decode goal binds, the most that meet it."""
    choice = spec.passes.quantize
    if engine not in CONTINUOUS or choice == "forbid" or ir.quant_method is not None or choice.formats is not None:
        return
    kind, low, high = CONTINUOUS[engine]
    if choice.methods is not None and kind not in choice.methods:
        return
    target, workload = find_engine(engine), workload_of(spec)
    for pruning, dtype in itertools.product(_prunings(spec, ir), _kv_dtypes(spec, engine)):

        def chain(bits: float, pruning: tuple[Pass, ...] = pruning, dtype: str = dtype) -> tuple[Pass, ...]:
            stored = parse_scheme(f"{kind}-{bits:.2f}".rstrip("0").rstrip("."))
            assert stored is not None
            head = (*pruning, stored)
            return (*head, *_cache(ir, head, dtype))

        def fits(bits: float, chain: Callable[[float], tuple[Pass, ...]] = chain) -> bool:
            described = graph.rewrite(ir, chain(bits))
            return _meets(spec, target, described, gpu, settings, workload)

        best = most_bits(fits, low, high)
        yield Candidate(engine, chain(best if best is not None else _lowest(ir, kind, low)), settings)


def _lowest(ir: ModelIR, kind: str, low: float) -> float:
    """The fewest bits the format reaches on this model, in hundredths upwards."""
    if kind != "exl2":
        return low
    from passes.quantize.exl2_pass import lowest_bpw

    return math.ceil(lowest_bpw(ir) * 100) / 100


def _meets(spec: Spec, engine: Engine, ir: ModelIR, gpu: Gpu, settings: Settings, workload: Workload) -> bool:
    """Fits, serves, and decodes as fast as asked."""
    memory = engine.memory(ir, gpu, settings, workload)
    if not memory.serves:
        return False
    if spec.goals.decode is None and spec.goals.tpot is None:
        return True
    speed = engine.speed(ir, gpu, settings, workload)
    fast = spec.goals.decode is None or speed.decode_tok_s_per_request.value >= spec.goals.decode
    return fast and (spec.goals.tpot is None or speed.tpot_ms.value <= 1000 * spec.goals.tpot)


def most_bits(fits: Callable[[float], bool], low: float, high: float) -> float | None:
    """The largest multiple of 0.01 in [low, high] that fits, by bisection (fitting is monotone in bits); None: not even the least."""
    first, last = round(low / _STEP), round(high / _STEP)
    if not fits(first * _STEP):
        return None
    while first < last:
        middle = (first + last + 1) // 2
        first, last = (middle, last) if fits(middle * _STEP) else (first, middle - 1)
    return first * _STEP


@lru_cache(maxsize=64)
def _degrees(count: int) -> Iterable[int]:
    """Powers of two up to the cards at hand, and all of them."""
    powers = [1 << n for n in range(count.bit_length()) if 1 << n <= count]
    return tuple(dict.fromkeys([*powers, count]))


def _settings(choice: EngineChoice, spec: Spec, tp: int) -> Settings:
    s: EngineSettings = choice.settings
    return Settings(
        version=choice.version, parallel=Parallel(tp=tp), gpu_memory_utilization=s.gpu_memory_utilization,
        max_num_seqs=s.max_num_seqs, max_num_batched_tokens=s.max_num_batched_tokens, enforce_eager=s.enforce_eager,
        block_size=s.block_size, kv_cache_memory_bytes=s.kv_cache_memory, reserve_bytes=spec.target.reserve,
    )  # fmt: skip
