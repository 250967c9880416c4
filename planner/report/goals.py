"""Goals with their intervals as error bars, and beside what was predicted what was measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from passes.record import dataclass
from planner.certificate import Comparison
from planner.choice.goals import Goal
from planner.figures import apart, show, show_interval
from planner.plan.parts.chosen import PlannedGoal
from planner.quality.expected import Quality, perplexity_growth
from planner.report.facts import Facts
from planner.report.scale import Axis, linear
from targets.engines.engine import SpeedEstimate
from targets.quantity import Basis, Quantity
from targets.serve.load import LoadTiming

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
    if chosen is None:
        return ()
    return rows_of(chosen.goals, chosen.quality, chosen.speed, lambda goal: _measured(goal, facts))


def rows_of(
    goals: tuple[PlannedGoal, ...],
    quality: Quality,
    speed: SpeedEstimate | None,
    measured: Callable[[PlannedGoal], Quantity | None] = lambda goal: None,
) -> tuple[GoalRow, ...]:
    """Draw judged goals, then speed and quality where no goal is on them; beside each what was `measured` of it."""
    return tuple(_row(goal, measured(goal)) for goal in _asked_or_not(goals, quality, speed))


def kept(facts: Facts) -> Kept | None:
    """Return what the certificate says, then what the engine showed under the load and the soak; None without a certificate."""
    certificate, verified = facts.certificate, facts.verified
    if certificate is None:
        return None
    if verified is None:
        return Kept(certificate.checks, certificate.holds)
    soak = () if verified.soak is None else verified.soak.checks
    return Kept((*certificate.checks, *verified.checks, *soak), certificate.holds and verified.holds)


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


def _row(goal: PlannedGoal, measured: Quantity | None) -> GoalRow:
    asked = not math.isnan(goal.wanted)
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
    wide = quantity.low < quantity.high
    said = show_interval(quantity, axis.unit) if wide else show(quantity.value, axis.unit)
    beyond = quantity.high > axis.high
    return Bar(axis.at(quantity.low), axis.at(quantity.value), axis.at(quantity.high), said, quantity.basis, beyond)


def _measured(goal: PlannedGoal, facts: Facts) -> Quantity | None:
    """What was measured: of quality the certificate's, of speed that of `verify`, under the load that the plan is made for."""
    if goal.name.of_speed:
        timing = facts.timing
        return None if timing is None else _exactly(_SHOWN[goal.name](timing, goal.statistic))
    if facts.certificate is None:
        return None
    quality: Quality | None = facts.certificate.quality.intervals
    if quality is not None:
        return perplexity_growth(quality.log_ppl_increase) if goal.name is Goal.PERPLEXITY else quality.kl
    return _exactly(next((each.measured for each in facts.certificate.goals if each.name is goal.name), None))


#: What a load showed of a goal on speed.
_SHOWN: Mapping[Goal, Callable[[LoadTiming, str], float]] = {
    Goal.TTFT: lambda timing, statistic: timing.ttft_ms.statistic(statistic),
    Goal.TPOT: lambda timing, statistic: timing.tpot_ms.statistic(statistic),
    Goal.DECODE: lambda timing, statistic: timing.decode_tok_s, Goal.THROUGHPUT: lambda timing, statistic: timing.tok_s,
}  # fmt: skip


def _exactly(value: float | None) -> Quantity | None:
    return None if value is None or math.isnan(value) else Quantity(value, value, value, Basis.MEASURED)
