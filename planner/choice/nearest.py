"""Which candidate comes nearest to goals that none meets, of all that the search may set: the rule's choice among all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

from planner.choice.goals import ODDS_BAND
from planner.choice.judging.judge import Judge
from planner.choice.odds import at_least
from planner.choice.rule.rule import Decision, Loss, Rule
from planner.choice.space.designs import Design
from planner.choice.verdict import Verdict, judge_quality, refusals

#: Candidates that are told, at most, until the nearest is one of them; and of those that miss less.
MOST_TOLD, _MOST_LEVEL = 8, 2
#: The criteria that are weighed before what is missed.
_BEFORE = frozenset({"refused", "standing", "waiting", "fit", "odds"})


def nearest(
    rule: Rule, judge: Judge, space: Sequence[Design], told: Callable[[Verdict], Verdict]
) -> tuple[tuple[int, Verdict], tuple[int, Loss] | None]:
    """Return the place of a design in a space that is not empty, and its candidate that the rule chooses of all designs with all settings;
    and the same of another design's that misses goals least, by less than can be told, with what it lost by.

    Each is judged by the formula, and what would be the nearest by that as it is `told` (simulated), until that is the nearest still. A
    design is judged only where what its chain and the memory of one longest request tell does not put it behind one that was.
    """
    stands, found = rule.standing, list[tuple[int, Verdict]]()
    reach, doubt = (math.inf, math.inf, math.inf), math.inf
    for (behind, doubted), place in sorted(
        (_at_best(rule, judge, design), place) for place, design in enumerate(space)
    ):
        if behind > reach:
            break
        if doubted > doubt:
            continue
        for verdict in judge.whole(space[place]):
            found.append((place, verdict))
            unfit, hard = stands.unfit(verdict), refusals(verdict.reasons)
            reach = min(reach, (hard, stands.of(verdict), unfit + ODDS_BAND))
            if not (hard or unfit or stands.unserved(verdict)) and stands.of(verdict) == reach[1]:
                doubt = min(doubt, stands.doubt(verdict) + ODDS_BAND)
    decision, known = told_of(rule, [verdict for _, verdict in found], told)
    places = {id(verdict): place for (place, _), verdict in zip(found, known, strict=True)}
    first = places[id(decision.chosen)]
    level = [
        loss for loss in decision.lost
        if loss.criterion not in _BEFORE and _missed(loss.candidate) < _missed(decision.chosen)
        and places[id(loss.candidate)] != first
    ]  # fmt: skip
    for loss in sorted(level, key=lambda loss: _missed(loss.candidate))[:_MOST_LEVEL]:
        if _missed(as_told := told(loss.candidate)) < _missed(decision.chosen):
            return (first, decision.chosen), (places[id(loss.candidate)], replace(loss, candidate=as_told))
    return (first, decision.chosen), None


def told_of(
    rule: Rule, verdicts: Sequence[Verdict], told: Callable[[Verdict], Verdict]
) -> tuple[Decision, list[Verdict]]:
    """Decide among verdicts, at least one, until what the rule chooses is as it is told; where it never is, among those that were told.
    Returns the decision, and the verdicts as they are known then.
    """
    known, tried = list(verdicts), set[int]()
    while True:
        chosen = rule.choice(known)
        place = next(number for number, verdict in enumerate(known) if verdict is chosen)
        if place in tried or len(tried) == MOST_TOLD:
            break
        tried.add(place)
        known[place] = told(known[place])
    decision = rule.decide(known if place in tried else [known[place] for place in sorted(tried)])
    assert decision is not None
    return decision, known


def _missed(verdict: Verdict) -> float:
    """By how many e-folds goals are missed."""
    return sum(math.log1p(goal.miss) for goal in verdict.goals)


def _at_best(rule: Rule, judge: Judge, design: Design) -> tuple[tuple[float, float, float], float]:
    """What a design comes to at best: what refuses it, where it stands, its doubt of fitting; and its doubt of quality."""
    goals, clients = rule.goals, judge.clients
    _, illegal, quality = judge.described(design)
    fits = at_least(judge.leanest(design).margin, 0.0)
    doubt = 1.0 - math.prod(goal.odds for goal in judge_quality(goals, quality))
    behind = rule.standing.behind(design.engine, clients)
    return (refusals(illegal), behind, max(0.0, goals.fit_confidence - fits)), doubt
