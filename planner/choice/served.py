"""Judges candidates by what users of the load see: the formula ranks, the simulation decides among those near a goal.

A goal on a percentile, or on means that queues make, is known only once the load is simulated. So the rule's choice is simulated, and where
it misses a goal by that, the next one, best first; where the formula meets the goals nowhere, the nearest that miss goals on speed are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from passes.errors import ReasonKind
from planner.choice.goals import Goal
from planner.choice.rule import Decision, Rule
from planner.choice.space import workload_of
from planner.choice.verdict import Verdict, judge
from planner.spec.spec import Spec
from targets.engines.engine import find_engine
from targets.gpu import Gpu

#: Candidates that are simulated at most, and of those that the formula finds too slow: so many, that miss by this factor at most.
MOST, _NEAREST, _NEAR = 16, 4, 3.0
_SPEED = {goal.reason_code for goal in Goal if goal.of_speed}


def served(spec: Spec, gpu: Gpu, verdict: Verdict) -> Verdict:
    """The verdict with its load simulated, and the goals judged by that."""
    if verdict.speed is None or verdict.served is not None:
        return verdict
    engine = find_engine(verdict.candidate.engine)
    workload = replace(workload_of(spec), concurrency=verdict.capacity.clients)
    speed = engine.served(verdict.ir, gpu, verdict.candidate.settings, workload, verdict.memory)
    goals = tuple(judge(spec.goals, speed, verdict.quality))
    missed = (goal.reason() for goal in goals if not goal.tolerated(spec.goals.bands))
    kept = (reason for reason in verdict.reasons if reason.kind is not ReasonKind.GOAL_MISSED)
    return replace(verdict, goals=goals, reasons=tuple(dict.fromkeys((*kept, *missed))), served=speed)


def decide(
    spec: Spec, gpu: Gpu, rule: Rule, verdicts: Sequence[Verdict]
) -> tuple[Decision | None, tuple[Verdict, ...]]:
    """Choose among verdicts by the rule, the chosen one simulated. Returns the decision, and the verdicts as they are known then."""
    known = list(verdicts)
    if spec.goals.asks_speed and not any(v.feasible for v in known):
        near = sorted((v for v in known if _near(v)), key=lambda v: v.distance)[:_NEAREST]
        known = [served(spec, gpu, v) if any(v is each for each in near) else v for v in known]
    decision = rule.decide([v for v in known if v.feasible])
    for _ in range(MOST):
        if decision is None or decision.chosen.served is not None:
            break
        chosen = decision.chosen
        known = [served(spec, gpu, v) if v is chosen else v for v in known]
        decision = rule.decide([v for v in known if v.feasible])
    return decision, tuple(known)


def _near(verdict: Verdict) -> bool:
    """Whether nothing is against a candidate but goals on speed, by the formula, and not by far."""
    codes = {reason.code for reason in verdict.reasons}
    return verdict.speed is not None and codes <= _SPEED and verdict.distance[1] < math.log(_NEAR)
