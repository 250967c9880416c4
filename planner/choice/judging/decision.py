"""The decision among verdicts, the chosen one simulated: the formula ranks, and where the rule's choice misses a goal once its load is
simulated, the next one is, best first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from passes.record import replace
from planner.choice.demand import asks_speed, limits_of
from planner.choice.judging.simulated import OF_SPEED, served
from planner.choice.rule.rule import Decision, Rule
from planner.choice.verdict import MEAN, GoalResult, Verdict, missed
from planner.spec.parts.goals import Goals
from planner.spec.spec import Spec
from targets.gpu import Gpu
from targets.quantity import Quantity

#: Candidates that are simulated at most where the formula gives what goals ask; and of those that it finds too slow: so many, that miss by
#: this factor at most. Percentiles are known of no other candidate, so for these there is no limit.
_MOST, _NEAREST, _NEAR = 16, 4, 3.0

#: Odds of the formula that are short of the confidence by no more may be enough where the load is simulated, and a mean that misses its
#: goal by no larger share may meet it: so many are tried.
_JUST_SHORT, _JUST_MISSED, _DOUBTED = 0.15, 0.3, 2


def decide(
    spec: Spec,
    gpu: Gpu,
    rule: Rule,
    verdicts: Sequence[Verdict],
    others: Callable[[Verdict], list[Verdict]] = lambda verdict: [],
) -> tuple[Decision | None, tuple[Verdict, ...]]:
    """Choose among verdicts by the rule, the chosen one simulated. Returns the decision, and the verdicts as they are known then.

    `others`: what else of a verdict's design meets the goals by the formula. It is weighed again where the design's best is simulated: that
    was its best by the formula.
    """
    known = list(verdicts)
    if not any(v.feasible and v.served is None for v in known):
        near = sorted((v for v in known if _near(v)), key=lambda v: v.distance)[:_NEAREST]
        known = [likelier(spec, gpu, v) if any(v is each for each in near) else v for v in known]
    percentile = any(limit.statistic != MEAN for limit in limits_of(spec.goals))
    chosen, tried = rule.choice([v for v in known if v.feasible]), 0
    while chosen is not None and chosen.served is None and (tried < _MOST or percentile):
        simulated, tried = served(spec, gpu, chosen), tried + 1
        known = [simulated if v is chosen else v for v in known] + others(chosen)
        chosen = rule.choice([v for v in known if v.feasible])
    if chosen is not None and chosen.served is not None:
        known = _with_doubtful(spec, gpu, rule, known)
    return rule.decide([v for v in known if v.feasible]), tuple(known)


def likelier(spec: Spec, gpu: Gpu, verdict: Verdict) -> Verdict:
    """Return a verdict that misses goals by the formula with its load simulated, where it may meet them so."""
    return served(spec, gpu, verdict) if asks_speed(spec) and _near(verdict) else verdict


def _with_doubtful(spec: Spec, gpu: Gpu, rule: Rule, known: list[Verdict]) -> list[Verdict]:
    """The verdicts once candidates are simulated, too, that would be chosen but for odds which the formula puts just below what is asked,
    or a goal on speed that they just miss by it: the chosen one's are the simulation's, and the formula may be the stricter.
    """
    for _ in range(_DOUBTED):
        eased = [(easy, v) for v in known if (easy := _eased(spec.goals, v)).feasible]
        if all(easy is v for easy, v in eased):
            break
        best = rule.choice([easy for easy, _ in eased])
        would = next(v for easy, v in eased if easy is best)
        if would.served is not None:
            break
        simulated = served(spec, gpu, would)
        known = [simulated if v is would else v for v in known]
    return known


def _eased(goals: Goals, verdict: Verdict) -> Verdict:
    """The verdict with every goal on speed kept that is just missed or whose odds are just short by the formula, where it would be
    admissible so.
    """
    if verdict.served is not None or verdict.admissible(goals) or not _misses_only_speed(verdict):
        return verdict
    kept = tuple(
        replace(result, predicted=Quantity.exact(result.wanted)) if _may_be_kept(goals, result) else result
        for result in verdict.goals
    )
    easier = replace(verdict, goals=kept, reasons=missed(kept, goals.bands))
    return easier if easier.admissible(goals) else verdict


def _may_be_kept(goals: Goals, result: GoalResult) -> bool:
    """Whether a goal on speed is just missed in the mean, or met with odds just short of those asked, by the formula."""
    if not result.goal.of_speed or result.endless:
        return False
    if not result.met:
        return result.statistic == MEAN and result.miss <= _JUST_MISSED
    return result.odds >= goals.confidence - _JUST_SHORT


def _misses_only_speed(verdict: Verdict) -> bool:
    return verdict.speed is not None and {reason.code for reason in verdict.reasons} <= OF_SPEED


def _near(verdict: Verdict) -> bool:
    """Whether nothing is against a candidate but goals on speed, by the formula, and not by far."""
    return _misses_only_speed(verdict) and verdict.distance[1] < math.log(_NEAR)
