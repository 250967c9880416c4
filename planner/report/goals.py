"""Goals with their intervals as error bars, and beside what was predicted what was measured."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from planner.certificate import Certificate, Comparison
from planner.choice.goals import Goal
from planner.figures import apart, show, show_interval
from planner.plan.document import PlannedGoal
from planner.quality.expected import Quality, perplexity_growth
from planner.report.facts import Facts
from planner.report.scale import Axis, linear
from targets.engines.engine import SpeedEstimate
from targets.quantity import Basis, Quantity

#: Where bars are drawn, and beyond which multiple of a figure an end is not followed.
_LEFT, _RIGHT, _FAR = 36.0, 464.0, 4.0


@dataclass(frozen=True, slots=True)
class Bar:
    """An interval on its axis: its ends, its figure, and in words. `open_end`: it goes on beyond the axis."""

    low: float
    value: float
    high: float
    said: str
    basis: str
    open_end: bool


@dataclass(frozen=True, slots=True)
class GoalRow:
    """A goal, or a figure that everybody asks for though no goal is on it: then nothing is `wanted`."""

    name: str
    axis: Axis
    predicted: Bar
    measured: Bar | None
    wanted: float | None
    wanted_said: str
    verdict: str
    met: bool


@dataclass(frozen=True, slots=True)
class Kept:
    """What was promised beside what was measured, in words."""

    checks: tuple[Comparison, ...]
    holds: bool


def goal_rows(facts: Facts) -> tuple[GoalRow, ...]:
    """Draw the goals of the chosen plan, then speed and quality where no goal is on them."""
    chosen = facts.plan.chosen
    return () if chosen is None else rows_of(chosen.goals, chosen.quality, chosen.speed, facts.certificate)


def rows_of(
    goals: tuple[PlannedGoal, ...],
    quality: Quality,
    speed: SpeedEstimate | None,
    certificate: Certificate | None = None,
) -> tuple[GoalRow, ...]:
    """Draw judged goals, then speed and quality where no goal is on them."""
    return tuple(_row(goal, certificate) for goal in _asked_or_not(goals, quality, speed))


def kept(facts: Facts) -> Kept | None:
    """Return what the certificate says; None without one."""
    certificate = facts.certificate
    return None if certificate is None else Kept(certificate.checks, certificate.holds)


def _asked_or_not(
    goals: tuple[PlannedGoal, ...], quality: Quality, speed: SpeedEstimate | None
) -> Iterator[PlannedGoal]:
    yield from goals
    named = {goal.name for goal in goals}
    figures = [(Goal.PERPLEXITY, perplexity_growth(quality.log_ppl_increase))]
    if speed is not None:
        figures += [(Goal.DECODE, speed.decode_tok_s_per_request), (Goal.TTFT, speed.ttft_ms)]
    for goal, predicted in figures:
        if goal not in named:
            yield PlannedGoal(goal, math.nan, goal.unit, goal.at_most, True, predicted)


def _row(goal: PlannedGoal, certificate: Certificate | None) -> GoalRow:
    asked = not math.isnan(goal.wanted)
    measured = None if certificate is None or goal.statistic != "mean" else _measured(goal.name, certificate)
    figures = [goal.predicted.value, *([goal.wanted] if asked else []), *([measured.value] if measured else [])]
    far = _FAR * max(map(abs, figures))
    ends = [q.high for q in (goal.predicted, measured) if q is not None]
    axis = linear(goal.said, goal.unit, [*figures, *(min(end, far) for end in ends)], (_LEFT, _RIGHT))
    lowest = min(q.low for q in (goal.predicted, measured) if q is not None)
    axis = replace(axis, low=min(0.0, max(lowest, -far)))
    wanted = apart(goal.wanted, goal.predicted.value, goal.unit)[0] if asked else ""
    sign = "at most" if goal.at_most else "at least"
    return GoalRow(
        goal.said, axis, _bar(axis, goal.predicted), None if measured is None else _bar(axis, measured),
        axis.at(goal.wanted) if asked else None, f"{sign} {wanted}" if asked else "no goal", _verdict(goal, asked), goal.met,
    )  # fmt: skip


def _verdict(goal: PlannedGoal, asked: bool) -> str:
    if not asked:
        return ""
    odds = f", {show(goal.odds, 'odds')} sure" if goal.odds is not None and goal.met else ""
    return f"{'met' if goal.met else 'missed'}{odds}"


def _bar(axis: Axis, quantity: Quantity) -> Bar:
    said = show_interval(quantity, axis.unit)
    beyond = quantity.high > axis.high
    return Bar(axis.at(quantity.low), axis.at(quantity.value), axis.at(quantity.high), said, quantity.basis, beyond)


def _measured(goal: Goal, certificate: Certificate) -> Quantity | None:
    """What the result was measured to lose; speed is `verify`'s, which the certificate does not hold."""
    quality: Quality | None = certificate.quality.intervals
    if quality is not None and goal in (Goal.PERPLEXITY, Goal.KL):
        return perplexity_growth(quality.log_ppl_increase) if goal is Goal.PERPLEXITY else quality.kl
    value = next((each.measured for each in certificate.goals if each.name is goal), None)
    return None if value is None else Quantity(value, value, value, Basis.MEASURED)
