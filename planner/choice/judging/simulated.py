"""A candidate whose load is simulated: goals on percentiles, and on means that queues make, are known only then."""

from __future__ import annotations

from dataclasses import replace

from passes.errors import ReasonKind
from planner.choice import capacity as cache
from planner.choice.demand import asks_speed, limits_of, workload_of
from planner.choice.goals import Goal
from planner.choice.judging.candidate import complete, fitted
from planner.choice.verdict import Verdict, judge, missed
from planner.spec.spec import Spec
from targets.engines.engine import SpeedEstimate, find_engine
from targets.gpu import Gpu

#: The codes of goals on speed that are missed.
OF_SPEED = frozenset(goal.reason_code for goal in Goal if goal.of_speed)


def under(spec: Spec, gpu: Gpu, verdict: Verdict) -> Verdict:
    """Return a verdict's candidate, with its own settings, under the load of a spec: simulated where it fits."""
    fresh = fitted(verdict.candidate, verdict.ir, gpu, workload_of(spec), verdict.quality)
    if fresh.reasons:
        return fresh
    return served(spec, gpu, complete(spec, gpu, fresh))


def _simulated(spec: Spec, gpu: Gpu, verdict: Verdict) -> SpeedEstimate:
    engine = find_engine(verdict.candidate.engine)
    workload = replace(workload_of(spec), concurrency=verdict.capacity.clients, limits=limits_of(spec.goals))
    return engine.served(verdict.ir, gpu, verdict.candidate.settings, workload, verdict.memory)


def served(spec: Spec, gpu: Gpu, verdict: Verdict) -> Verdict:
    """Return the verdict with its load simulated, and the goals judged by that."""
    if verdict.speed is None or verdict.served is not None:
        return verdict
    speed = _simulated(spec, gpu, verdict)
    verdict = _in_flight(spec, gpu, verdict, speed)
    goals = tuple(judge(spec.goals, workload_of(spec), speed, verdict.quality))
    kept = (reason for reason in verdict.reasons if reason.kind is not ReasonKind.GOAL_MISSED)
    return replace(
        verdict, goals=goals, reasons=tuple(dict.fromkeys((*kept, *missed(goals, spec.goals.bands)))), served=speed
    )


def as_told(spec: Spec, gpu: Gpu, verdict: Verdict) -> Verdict:
    """Return a verdict judged as the chosen one is, so that their figures compare: with its load simulated where only goals are missed. Of
    what is refused or does not fit nothing is said of its speed.
    """
    kinds = {reason.kind for reason in verdict.reasons}
    if kinds & {ReasonKind.ILLEGAL, ReasonKind.NOT_MODELLED, ReasonKind.TOO_LARGE}:
        whole = verdict if ReasonKind.ILLEGAL in kinds else complete(spec, gpu, verdict)
        told = tuple(reason for reason in whole.reasons if reason.code not in OF_SPEED)
        return whole if told == whole.reasons else replace(whole, reasons=told)
    whole = complete(spec, gpu, verdict)
    return served(spec, gpu, whole) if asks_speed(spec) and kinds != {ReasonKind.DOMINATED} else whole


def _in_flight(spec: Spec, gpu: Gpu, verdict: Verdict, speed: SpeedEstimate) -> Verdict:
    """The verdict with the cache for as many requests as its simulation keeps in flight, where the spec says only how often they come."""
    asked, settings = workload_of(spec), verdict.candidate.settings
    if asked.rate is None or asked.concurrency is not None:
        return verdict
    workload = replace(asked, concurrency=cache.in_flight(asked, speed))
    sequences = find_engine(verdict.candidate.engine).scheduler(gpu, settings, workload).sequences
    needs = cache.capacity(verdict.memory, sequences, workload, settings.parallel.dp)
    memory = replace(verdict.memory, memory=cache.as_used(verdict.memory.memory, needs.needed_bytes))
    short = (reason for reason in cache.reasons(memory, needs, workload) if reason not in verdict.reasons)
    return replace(verdict, capacity=needs, memory=memory, reasons=(*verdict.reasons, *short))
