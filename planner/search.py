"""From a spec to a choice: every legal candidate, its verdict, the best that meets the goals.

The space: engines × formats × KV types × number of cards. It is enumerated whole, so the choice is optimal over it for the
stated preference by construction; what is shared between candidates (a rewritten description, a block's bytes, a format's
expected loss) is computed once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from passes.base import Pass
from passes.ir.model import ModelIR
from passes.kv_cache import KVCachePass
from passes.quantize.quantize import Quantize
from passes.quantize.scheme import parse_scheme
from passes.reason import InputError, Reason
from planner.chains import rewrite
from planner.quality import expected_quality
from planner.spec import EngineChoice, EngineSettings, Spec
from planner.verdict import Candidate, Verdict, judge
from targets.engines import ENGINE_NAMES, find_engine
from targets.engines.engine import Parallel, Settings
from targets.gpu import Gpu, find_gpu, inline_gpu
from targets.workload import Workload

#: Formats that are weighed when the spec names none.
FORMATS = ("w4a16-g128", "w4a16-g64", "w4a16-g32", "gptq-4-g128", "gptq-4-g64", "gptq-4-g32", "w8a8", "fp8")


@dataclass(frozen=True)
class SearchResult:
    """The chosen verdict (None: nothing meets the goals), all others, and the Pareto set over quality, speed and memory."""

    chosen: Verdict | None
    rejected: tuple[Verdict, ...]
    pareto: tuple[Verdict, ...]
    searched: int
    gpu: Gpu
    ir: ModelIR

    @property
    def nearest(self) -> tuple[Verdict, ...]:
        """The alternatives a person wants to see, nearest first: near misses, one a format and engine."""
        seen: set[tuple[str, str]] = set()
        out = []
        for verdict in sorted(
            self.rejected, key=lambda v: (v.distance, v.quality.log_ppl_increase.value, v.candidate.label)
        ):
            key = (verdict.candidate.engine, verdict.candidate.passes[0].text() if verdict.candidate.passes else "")
            if key not in seen:
                seen.add(key)
                out.append(verdict)
        return tuple(out)

    @property
    def illegal(self) -> list[dict[str, object]]:
        """Each kind of illegality with how many candidates it ruled out, most first."""
        counts: Counter[Reason] = Counter(
            reason for verdict in self.rejected for reason in verdict.reasons if not reason.measured
        )
        return [{**reason.as_json(), "candidates": count} for reason, count in counts.most_common()]


def target_gpu(spec: Spec) -> Gpu:
    """The card of a spec. `auto` is this machine's first card, or its processor."""
    gpu = spec.target.gpu
    if isinstance(gpu, dict):
        return inline_gpu(gpu)
    if gpu != "auto":
        return find_gpu(gpu)
    from targets.probe import installed_gpus

    names = installed_gpus()
    return find_gpu(names[0]) if names else find_gpu("cpu")


def workload_of(spec: Spec) -> Workload:
    """The workload of a spec."""
    w = spec.workload
    return Workload(w.context, w.concurrency, w.input_tokens, w.output_tokens)


def search(spec: Spec, ir: ModelIR) -> SearchResult:
    """Judge every candidate of the spec's space and choose."""
    gpu = target_gpu(spec)
    verdicts = [_verdict(spec, ir, gpu, candidate) for candidate in candidates(spec, ir, gpu)]
    feasible = sorted((v for v in verdicts if v.feasible), key=lambda v: preference(spec.goals.prefer, v))
    chosen = feasible[0] if feasible else None
    rejected = [v for v in verdicts if not v.feasible]
    if chosen is not None:
        rejected += [replace(v, reasons=(_dominated(spec.goals.prefer, chosen, v),)) for v in feasible[1:]]
    return SearchResult(chosen, tuple(rejected), pareto_set(feasible), len(verdicts), gpu, ir)


def candidates(spec: Spec, ir: ModelIR, gpu: Gpu) -> Iterator[Candidate]:
    """Every candidate of the space, legal or not: the illegal ones lose with a reason."""
    chains = list(_chains(spec, ir))
    for engine, choice in _engines(spec, gpu):
        for chain in chains:
            for tp in _degrees(spec.target.count):
                yield Candidate(engine, chain, _settings(choice, spec, tp))


def _engines(spec: Spec, gpu: Gpu) -> Iterator[tuple[str, EngineChoice]]:
    if isinstance(spec.engine, EngineChoice):
        find_engine(spec.engine.name)
        yield spec.engine.name, spec.engine
    elif spec.engine != "auto":
        find_engine(spec.engine)
        yield spec.engine, EngineChoice(name=spec.engine)
    else:
        for name in ENGINE_NAMES:
            if name.endswith("-cpu") == gpu.is_cpu:
                yield name, EngineChoice(name=name)


def _chains(spec: Spec, ir: ModelIR) -> Iterator[tuple[Pass, ...]]:
    """Quantization × KV type. Formats of the compressed-tensors family (and dense models) carry calibrated KV scales."""
    for first in _quantizations(spec, ir):
        for dtype in spec.passes.kv_cache:
            head: tuple[Pass, ...] = (first,) if first is not None else ()
            if dtype == "auto":
                yield head
                continue
            scaled = KVCachePass(dtype, scales=True)
            after, _ = rewrite(ir, head)
            yield (*head, scaled if not scaled.illegal(after) else KVCachePass(dtype))


def _quantizations(spec: Spec, ir: ModelIR) -> Iterator[Pass | None]:
    choice = spec.passes.quantize
    if choice == "forbid" or ir.quant_method is not None:
        yield None
        return
    if choice.dense:
        yield None
    for name in choice.formats or FORMATS:
        parsed = parse_scheme(name)
        if not isinstance(parsed, Quantize):
            continue
        if choice.formats is not None or parsed.method == "rtn":
            yield parsed
        else:
            yield from (replace(parsed, method=method) for method in choice.methods)


def _degrees(count: int) -> Iterable[int]:
    degree = 1
    while degree < count:
        yield degree
        degree *= 2
    yield count


def _settings(choice: EngineChoice, spec: Spec, tp: int) -> Settings:
    s: EngineSettings = choice.settings
    return Settings(
        version=choice.version, parallel=Parallel(tp=tp), gpu_memory_utilization=s.gpu_memory_utilization,
        max_num_seqs=s.max_num_seqs, max_num_batched_tokens=s.max_num_batched_tokens, enforce_eager=s.enforce_eager,
        block_size=s.block_size, kv_cache_memory_bytes=s.kv_cache_memory, reserve_bytes=spec.target.reserve,
    )  # fmt: skip


def _verdict(spec: Spec, source: ModelIR, gpu: Gpu, candidate: Candidate) -> Verdict:
    engine, workload = find_engine(candidate.engine), workload_of(spec)
    ir, reasons = rewrite(source, candidate.passes)
    reasons = (*reasons, *engine.illegal(ir, gpu, candidate.settings))
    memory = engine.memory(ir, gpu, candidate.settings, workload)
    speed = engine.speed(ir, gpu, candidate.settings, workload)
    quality = expected_quality(source, candidate.passes)
    goals = tuple(judge(spec.goals, memory, speed, quality))
    missed = tuple(goal.reason() for goal in goals if not goal.met)
    return Verdict(candidate, ir, memory, speed, quality, goals, (*reasons, *memory.reasons, *missed), memory.notes)


def preference(prefer: str, verdict: Verdict) -> tuple[float, ...]:
    """Sort key, best first: the preferred figure, then the others as ties. Fewer cards before more at equal figures."""
    loss = round(verdict.quality.log_ppl_increase.value, 9)
    speed = -verdict.speed.decode_tok_s_per_request.value if verdict.speed else 0.0
    size = float(verdict.ir.tensor_bytes)
    context = -float(verdict.memory.kv.max_context)
    cards = float(verdict.candidate.settings.parallel.gpus)
    orders = {
        "quality": (loss, cards, speed, size), "speed": (speed, loss, cards, size), "context": (context, loss, cards, speed),
        "size": (size, loss, cards, speed),
    }  # fmt: skip
    if prefer not in orders:
        raise InputError(f"unknown preference {prefer!r}", remedy=f"one of {', '.join(orders)}")
    return orders[prefer]


def _dominated(prefer: str, chosen: Verdict, other: Verdict) -> Reason:
    """Why a feasible candidate was not chosen: the figure that decided."""
    if prefer == "quality":
        mine, theirs = chosen.quality.log_ppl_increase.value, other.quality.log_ppl_increase.value
        text = f"perplexity {100 * theirs:+.2f} % against {100 * mine:+.2f} %"
        if abs(mine - theirs) < 1e-9:
            text = _speeds(chosen, other)
    elif prefer == "speed":
        text = _speeds(chosen, other)
    elif prefer == "context":
        text = f"context {other.memory.kv.max_context:,} against {chosen.memory.kv.max_context:,}"
    else:
        text = f"{other.ir.tensor_bytes / 1e9:.2f} GB against {chosen.ir.tensor_bytes / 1e9:.2f} GB"
    return Reason("dominated_by", f"meets the goals too, but {text}", None, {"by": chosen.candidate.label})


def _speeds(chosen: Verdict, other: Verdict) -> str:
    mine = chosen.speed.decode_tok_s_per_request.value if chosen.speed else 0.0
    theirs = other.speed.decode_tok_s_per_request.value if other.speed else 0.0
    return f"decodes {theirs:.1f} tok/s against {mine:.1f}"


def pareto_set(feasible: Iterable[Verdict]) -> tuple[Verdict, ...]:
    """Feasible candidates that no other one beats or equals in quality, speed and memory at once."""

    def figures(v: Verdict) -> tuple[float, float, float]:
        speed = v.speed.decode_tok_s_per_request.value if v.speed else 0.0
        return v.quality.log_ppl_increase.value, -speed, v.memory.memory.total.value

    ordered = sorted(feasible, key=figures)
    front: list[Verdict] = []
    for verdict in ordered:
        mine = figures(verdict)
        if not any(all(a <= b for a, b in zip(figures(other), mine, strict=True)) for other in front):
            front.append(verdict)
    return tuple(front)
