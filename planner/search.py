"""From a spec to a choice: every legal candidate, its verdict, the best that meets the goals.

The space: engines × formats × KV types × number of cards. It is enumerated whole, so the choice is optimal over it for the
stated preference by construction; what is shared between candidates (a rewritten description, a block's bytes, a format's
expected loss) is computed once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from passes.ir.model import ModelIR
from passes.reason import InputError, Reason
from planner.chains import rewrite
from planner.quality import expected_quality
from planner.space import candidates, workload_of
from planner.spec import Spec
from planner.verdict import Candidate, Verdict, judge
from targets.engines import find_engine
from targets.gpu import Gpu, find_gpu, inline_gpu


@dataclass(frozen=True)
class SearchResult:
    """The chosen verdict (None: nothing meets the goals), all others, and the Pareto set over quality, speed and memory."""

    chosen: Verdict | None
    rejected: tuple[Verdict, ...]
    pareto: tuple[Verdict, ...]
    searched: int
    gpu: Gpu
    spec: Spec

    def nearest(self, count: int = 5) -> tuple[Verdict, ...]:
        """The alternatives a person wants to see, nearest first: one for each engine and kind of trouble, judged in full."""
        seen: set[tuple[str, frozenset[str]]] = set()
        out: list[Verdict] = []
        for verdict in sorted(
            self.rejected, key=lambda v: (v.distance, v.quality.log_ppl_increase.value, v.candidate.label)
        ):
            key = (verdict.candidate.engine, frozenset(reason.code for reason in verdict.reasons))
            if key not in seen:
                seen.add(key)
                out.append(complete(self.spec, self.gpu, verdict))
        return tuple(sorted(out[: 2 * count], key=lambda v: v.distance)[:count])

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


def search(spec: Spec, ir: ModelIR, *, cards: int | None = None) -> SearchResult:
    """Judge every candidate of the spec's space and choose. `cards`: only candidates that use so many."""
    gpu = target_gpu(spec)
    verdicts = [_verdict(spec, ir, gpu, candidate) for candidate in candidates(spec, ir, gpu, cards)]
    feasible = sorted((v for v in verdicts if v.feasible), key=lambda v: preference(spec.goals.prefer, v))
    chosen = feasible[0] if feasible else None
    rejected = [v for v in verdicts if not v.feasible]
    if chosen is not None:
        rejected += [replace(v, reasons=(_dominated(spec.goals.prefer, chosen, v),)) for v in feasible[1:]]
    return SearchResult(chosen, tuple(rejected), pareto_set(feasible), len(verdicts), gpu, spec)


def _verdict(spec: Spec, source: ModelIR, gpu: Gpu, candidate: Candidate) -> Verdict:
    """Judge one candidate as far as it takes to know that it is out: legality, quality, memory, then speed.

    A verdict that ended early is whole in its reasons so far; `complete` judges the rest of the few that are shown.
    """
    engine, workload = find_engine(candidate.engine), workload_of(spec)
    ir, reasons = rewrite(source, candidate.passes)
    reasons = (*reasons, *engine.illegal(ir, gpu, candidate.settings))
    memory = engine.memory(ir, gpu, candidate.settings, workload)
    quality = expected_quality(source, candidate.passes)
    verdict = Verdict(candidate, ir, memory, None, quality, (), (*reasons, *memory.reasons), memory.notes)
    return verdict if verdict.reasons else complete(spec, gpu, verdict)


def complete(spec: Spec, gpu: Gpu, verdict: Verdict) -> Verdict:
    """The verdict with its speed and every goal judged."""
    if verdict.speed is not None:
        return verdict
    engine = find_engine(verdict.candidate.engine)
    speed = engine.speed(verdict.ir, gpu, verdict.candidate.settings, workload_of(spec))
    goals = tuple(judge(spec.goals, verdict.memory, speed, verdict.quality))
    missed = tuple(goal.reason() for goal in goals if not goal.met)
    return replace(verdict, speed=speed, goals=goals, reasons=(*verdict.reasons, *missed))


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
