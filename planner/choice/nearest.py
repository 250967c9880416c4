"""Which candidate comes nearest to goals that none meets, of all that the search may set: the rule's choice among all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from passes.errors import ReasonKind
from passes.record import dataclass
from planner.choice.goals import ODDS_BAND
from planner.choice.judging.judge import Judge
from planner.choice.odds import at_least
from planner.choice.rule.criteria import missed_width
from planner.choice.rule.rule import Decision, Loss, Rule
from planner.choice.space.designs import Design
from planner.choice.verdict import Verdict, folds_missed, judge_quality, refusals

#: Candidates that are told, at most, until the nearest is one of them; and of those that miss less.
MOST_TOLD, _MOST_LEVEL = 8, 2
#: The criteria that are weighed before what is missed.
_BEFORE = frozenset({"refused", "standing", "waiting", "fit", "odds"})
#: Odds of fitting that are none, and e-folds that are none.
_NO_ODDS, _NOTHING = 1e-9, 1e-9


@dataclass(frozen=True, slots=True)
class _AtBest:
    """What a design comes to at best: `behind`: what refuses it, where it stands, its doubt of fitting; `doubt`: of its quality. `goals`,
    `missed`: by how many e-folds it misses goals, and with them memory, at least. `hopeless`: with no settings one longest request fits.
    """

    behind: tuple[float, float, float]
    doubt: float
    goals: float
    missed: float
    hopeless: bool


class _Judged:
    """The verdicts of designs that were judged, and what they tell of the others."""

    def __init__(self, rule: Rule, judge: Judge) -> None:
        self._rule, self._judge = rule, judge
        self._reach, self._doubt = (math.inf, math.inf, math.inf), math.inf
        self._short: list[tuple[float, float, float]] = []
        self.verdicts: dict[int, list[Verdict]] = {}

    def puts_behind(self, best: _AtBest) -> bool:
        """Tell whether a design surely comes behind one of these. What is hopeless is the last in all that is weighed before what it
        misses, so that what misses less, and will as it is told, is before it; and nothing else is behind others for its sake.
        """
        if best.behind > self._reach or best.doubt > self._doubt:
            return True
        return best.hopeless and any(
            hard <= best.behind[0] and missed < best.missed and stands <= best.behind[1]
            for hard, stands, missed in self._short
        )

    def add(self, place: int, design: Design) -> None:
        """Judge the design of a place, with all settings."""
        stands, width = self._rule.standing, missed_width(self._rule.goals) + _NOTHING
        self.verdicts[place] = self._judge.whole(design)
        for verdict in self.verdicts[place]:
            unfit, hard = stands.unfit(verdict), refusals(verdict.reasons)
            self._reach = min(self._reach, (hard, stands.of(verdict), unfit + ODDS_BAND))
            if not (hard or unfit or stands.unserved(verdict)) and stands.of(verdict) == self._reach[1]:
                self._doubt = min(self._doubt, stands.doubt(verdict) + ODDS_BAND)
            if any(reason.kind is ReasonKind.TOO_LARGE for reason in verdict.reasons):
                behind = stands.behind(verdict.candidate.engine, verdict.capacity.clients)
                self._short.append((hard, behind, stands.missed(verdict) + width))


def nearest(
    rule: Rule, judge: Judge, space: Sequence[Design], told: Callable[[Verdict], Verdict]
) -> tuple[tuple[int, Verdict], tuple[int, Loss] | None]:
    """Return the place of a design in a space that is not empty, and its candidate that the rule chooses of all designs with all settings;
    and the same of another design's that misses goals least, by less than can be told, with what it lost by.

    Each is judged by the formula, and what would be the nearest by that as it is `told` (simulated), until that is the nearest still. A
    design is judged only where what its chain and the memory of one longest request tell does not put it behind one that was.
    """
    judged = _Judged(rule, judge)
    ahead = sorted(
        ((_at_best(rule, judge, design), place) for place, design in enumerate(space)),
        key=lambda entry: (entry[0].behind, entry[0].doubt, entry[1]),
    )
    order = [place for _, place in ahead]
    for best, place in sorted(ahead, key=lambda entry: entry[0].missed if entry[0].hopeless else -1.0):
        if not judged.puts_behind(best):
            judged.add(place, space[place])
    found = _in_order(judged, order)
    decision, known = told_of(rule, [verdict for _, verdict in found], told)
    # What is behind for all that it misses may miss less of the goals alone; what is refused for more is behind for that.
    hard, most = refusals(decision.chosen.reasons), _missed(decision.chosen)
    near = (place for best, place in ahead if best.hopeless and best.behind[0] <= hard and best.goals < most)
    if close := [place for place in near if place not in judged.verdicts]:
        for place in close:
            judged.add(place, space[place])
        found = _in_order(judged, order)
        decision, known = told_of(rule, [verdict for _, verdict in found], told)
    return _with_level(decision, {id(v): place for (place, _), v in zip(found, known, strict=True)}, told)


def _in_order(judged: _Judged, order: Sequence[int]) -> list[tuple[int, Verdict]]:
    return [(place, verdict) for place in order for verdict in judged.verdicts.get(place, ())]


def _with_level(
    decision: Decision, places: Mapping[int, int], told: Callable[[Verdict], Verdict]
) -> tuple[tuple[int, Verdict], tuple[int, Loss] | None]:
    """The chosen one with its place, and what misses the goals least and less than it, where there is any."""
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
    return folds_missed(verdict.goals)


def _at_best(rule: Rule, judge: Judge, design: Design) -> _AtBest:
    goals, clients = rule.goals, judge.clients
    _, illegal, quality = judge.described(design)
    memory, results = judge.leanest(design), list(judge_quality(goals, quality))
    fits, budget = at_least(memory.margin, 0.0), memory.memory.budget.value
    doubt = 1.0 - math.prod(goal.odds for goal in results)
    behind = rule.standing.behind(design.engine, clients)
    missed = folds_missed(results)
    short = math.log((budget - min(0.0, memory.margin.value)) / budget) if budget > 0 else math.inf
    hopeless = memory.margin.value < 0 and fits < _NO_ODDS
    return _AtBest(
        (refusals(illegal), behind, max(0.0, goals.fit_confidence - fits)), doubt, missed, short + missed, hopeless
    )
