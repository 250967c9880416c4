"""What becomes of one candidate: its memory under a load, then its speed and every goal."""

from __future__ import annotations

from passes.errors import Reason
from passes.ir.model import ModelIR
from passes.record import replace
from planner.choice import capacity as cache
from planner.choice.demand import workload_of
from planner.choice.verdict import Candidate, GoalResult, Verdict, judge, missed
from planner.quality.expected import Quality
from planner.spec.spec import Spec
from targets.engines.engine import SpeedEstimate, find_engine
from targets.gpu import Gpu
from targets.workload import Workload


def fitted(
    candidate: Candidate, ir: ModelIR, gpu: Gpu, workload: Workload, quality: Quality, illegal: tuple[Reason, ...] = ()
) -> Verdict:
    """Return what is known of a candidate under a load before its speed is asked: its memory, and why it is out."""
    engine, settings = find_engine(candidate.engine), candidate.settings
    if not illegal:
        workload = cache.loaded(engine, ir, gpu, settings, workload)
    memory, capacity = cache.in_use(engine, ir, gpu, settings, workload)
    memory = replace(memory, memory=cache.as_used(memory.memory, capacity.needed_bytes))
    reasons = (*illegal, *cache.reasons(memory, capacity, workload))
    return Verdict(candidate, ir, memory, capacity, None, quality, (), reasons, memory.notes)


def complete(spec: Spec, gpu: Gpu, verdict: Verdict) -> Verdict:
    """Return the verdict with its speed and every goal judged."""
    if verdict.speed is not None:
        return verdict
    engine, asked, clients = find_engine(verdict.candidate.engine), workload_of(spec), verdict.capacity.clients
    workload = asked if asked.concurrency == clients else replace(asked, concurrency=clients)
    speed = engine.speed(verdict.ir, gpu, verdict.candidate.settings, workload, verdict.memory)
    return _with_speed(spec, verdict, speed, tuple(judge(spec.goals, asked, speed, verdict.quality)))


def as_fast(spec: Spec, verdict: Verdict, whole: Verdict) -> Verdict:
    """Return the verdict completed by the speed of another one's, of the same checkpoint, that is as fast."""
    assert whole.speed is not None
    return _with_speed(spec, verdict, whole.speed, whole.goals)


def _with_speed(spec: Spec, verdict: Verdict, speed: SpeedEstimate, goals: tuple[GoalResult, ...]) -> Verdict:
    reasons = tuple(dict.fromkeys((*verdict.reasons, *missed(goals, spec.goals.bands))))
    return replace(verdict, speed=speed, goals=goals, reasons=reasons, notes=(*verdict.notes, *speed.notes))
