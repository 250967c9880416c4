"""A question of `check` as a candidate of a plan, so that the decision rule chooses among its settings as it does in a plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, cast

from passes.record import dataclass
from planner.choice.capacity import Capacity
from planner.choice.goals import NO_GOALS
from planner.choice.question import Outcome, Question
from planner.choice.rule.rule import Rule
from planner.choice.verdict import Candidate, Verdict, judge, missed
from planner.quality.expected import Quality
from targets.engines.engine import Settings
from targets.quantity import Quantity

if TYPE_CHECKING:
    from planner.spec.parts.goals import Goals


@dataclass(frozen=True, slots=True)
class Asked:
    """A question with some options changed, what comes of it, and what it is expected to lose."""

    options: Mapping[str, Any]
    question: Question
    outcome: Outcome
    quality: Quality


def chosen_of(asked: Sequence[Asked], goals: Goals | None) -> Asked:
    """Return the one that the rule chooses by the formula of questions that differ in settings only; the fewest options count as least."""
    goals = goals or cast("Goals", NO_GOALS)
    first = asked[0]
    load = first.outcome.workload
    rule = Rule(goals, first.question.gpu, engine_named=True, decodes=load.decodes)
    verdicts = [_verdict(each, goals) for each in asked]
    chosen = rule.choice(verdicts)
    return next(each for each, verdict in zip(asked, verdicts, strict=True) if verdict is chosen)


def _verdict(asked: Asked, goals: Goals) -> Verdict:
    question, outcome = asked.question, asked.outcome
    capacity = outcome.used or _of_whole_contexts(outcome, question.settings.parallel.dp)
    load = replace(outcome.workload, concurrency=capacity.clients)
    speed = question.engine.speed(outcome.ir, question.gpu, question.settings, load, outcome.memory)
    changed = tuple(each.name for each in fields(Settings) if each.name in asked.options)
    candidate = Candidate(question.engine_name, question.chain, question.settings, changed)
    results = tuple(judge(goals, outcome.workload, speed, asked.quality))
    reasons = missed(results, goals.bands)
    return Verdict(candidate, outcome.ir, outcome.memory, capacity, speed, asked.quality, results, reasons)


def _of_whole_contexts(outcome: Outcome, replicas: int) -> Capacity:
    """The cache of requests that may each take the whole context."""
    cache, each = outcome.memory.memory.kv_cache, outcome.memory.kv.bytes_per_sequence
    clients = outcome.workload.concurrency or 1
    needed = each * -(-clients // replicas)
    room = Quantity(cache.value - needed, cache.low - needed, cache.high - needed, cache.basis)
    return Capacity(each, each, clients, clients, room, replicas)
