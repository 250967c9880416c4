"""What would be chosen, without a verdict of every design: what surely comes behind one that was judged is left out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from passes.ir.model import ModelIR
from passes.record import dataclass
from planner.choice.demand import target_gpu, workload_of
from planner.choice.goals import ODDS_BAND
from planner.choice.judging.decision import decide
from planner.choice.judging.judge import Judge, Made
from planner.choice.rule.criteria import widest
from planner.choice.rule.rule import Rule
from planner.choice.search import by_maintenance, rule_of, search
from planner.choice.space.designs import Design, designs
from planner.choice.verdict import Verdict, judge_quality
from planner.quality.expected import growth
from planner.spec.spec import Spec


@dataclass(frozen=True, slots=True)
class Foreseen:
    """What a design's chain tells before it is judged. `standing`: the best that it may come to (`Standing.place`), infinite where nothing
    can mend it; `figure`: what the spec prefers, before all others where it depends on more than the chain; `doubt`: the least by which its
    odds fall short.
    """

    standing: float
    figure: float
    doubt: float


@dataclass(frozen=True, slots=True)
class Weighed:
    """The designs of a space that may be chosen, judged by the formula in the space's order, and what they were judged by."""

    rule: Rule
    judge: Judge
    verdicts: tuple[Verdict, ...]


def likely_choice(spec: Spec, ir: ModelIR, *, cards: int | None = None) -> Verdict | None:
    """Return what a search would choose, its load simulated; None where nothing meets the goals by the formula, or its choice by
    simulation.

    Where what the formula chooses is less likely than is asked once it is simulated, the next of those that were judged is; where the
    formula alone made it likely, and so others were left out, the search itself is asked.
    """
    gpu = target_gpu(spec)
    weighed = _weighed(spec, ir, cards)
    first = _chosen(spec, ir, cards, weighed, weighed.rule.choice(weighed.verdicts))
    if first is None:
        return None
    decision, _ = decide(spec, gpu, weighed.rule, weighed.verdicts, weighed.judge.others)
    chosen = _chosen(spec, ir, cards, weighed, None if decision is None else decision.chosen)
    if first.admissible(spec.goals) and (chosen is None or not chosen.admissible(spec.goals)):
        return search(spec, ir, cards=cards).chosen
    return chosen


def best(spec: Spec, ir: ModelIR, *, cards: int | None = None) -> Verdict | None:
    """Return the verdict that a search chooses by the formula; the search simulates near misses besides."""
    weighed = _weighed(spec, ir, cards)
    return _chosen(spec, ir, cards, weighed, weighed.rule.choice(weighed.verdicts))


def _chosen(spec: Spec, ir: ModelIR, cards: int | None, weighed: Weighed, chosen: Verdict | None) -> Verdict | None:
    """What is chosen, unless it is not trusted where something maintained serves."""
    standing, gpu = weighed.rule.standing, target_gpu(spec)
    if chosen is None or standing.trusted(chosen):
        return chosen
    maintained = designs(spec, ir, gpu, by_maintenance(spec, gpu)[0], cards)
    return None if any(map(standing.serves, map(weighed.judge, maintained))) else chosen


def _weighed(spec: Spec, ir: ModelIR, cards: int | None) -> Weighed:
    """Judge the designs that may be chosen: those that the rule leaves behind whatever their memory and speed are left out.

    Best first by what a chain alone tells: where a design stands at best, then the figure that is preferred. What stands behind one that
    was judged loses to it; so does what stands as well and is surely less likely, by more than the band; so does what is worse in the
    figure, by more than its width, than one that nothing else speaks against. None of them dominates the winner.
    """
    gpu = target_gpu(spec)
    judge, rule = Judge(spec, ir, gpu), rule_of(spec, ir, gpu)
    maintained, old = by_maintenance(spec, gpu)
    for frugal in (False, True):
        kept = designs(spec, ir, gpu, maintained, cards, frugal=frugal)
        archived = designs(spec, ir, gpu, () if frugal else old, cards)
        verdicts = _not_behind(_best_first(spec, judge, rule, kept, archived), judge, rule)
        if verdicts:
            break
    return Weighed(rule, judge, verdicts)


def _not_behind(ahead_of_all: Iterable[tuple[Foreseen, int, Design]], judge: Judge, rule: Rule) -> tuple[Verdict, ...]:
    """The verdicts of designs that come best first and meet the goals, in the space's order, without what is surely behind another."""
    feasible: dict[int, Verdict] = {}
    standing = least = limit = doubted = math.inf
    for ahead, place, design in ahead_of_all:
        if ahead.standing > standing:
            break
        if ahead.figure > limit or ahead.doubt > doubted or (verdict := judge.feasible(design)) is None:
            continue
        feasible[place] = verdict
        if (stands := rule.standing.place(verdict)) < standing:
            standing, least, limit, doubted = stands, math.inf, math.inf, math.inf
        if stands > standing or rule.takes_too_long(verdict):
            continue
        doubted = min(doubted, _doubted(rule, verdict))
        if ahead.figure <= least and _clear(rule, verdict):
            reach = ahead.figure + widest(rule.goals, rule.gpu, verdict)
            least, limit = ahead.figure, reach if ahead.figure < least else max(limit, reach)
    return tuple(feasible[place] for place in sorted(feasible))


def _best_first(
    spec: Spec, judge: Judge, rule: Rule, kept: Iterable[Design], archived: Iterable[Design]
) -> Iterator[tuple[Foreseen, int, Design]]:
    """Give designs by what is foreseen of them, each with its place in the space; none that nothing can mend. Those of archived engines
    stand behind the best of the others and are made after these.
    """

    clients = workload_of(spec).concurrency or 1

    def foreseen(designs: Iterable[Design], start: int) -> list[tuple[Foreseen, int, Design]]:
        ahead = [
            (_foreseen(rule, judge.chain_of(design), design.engine, clients), place, design)
            for place, design in enumerate(designs, start)
        ]
        return [entry for entry in ahead if entry[0].standing < math.inf]

    def order(entry: tuple[Foreseen, int, Design]) -> tuple[float, float, int]:
        return entry[0].standing, entry[0].figure, entry[1]

    first = list(kept)
    ours = sorted(foreseen(first, 0), key=order)
    yield from (entry for entry in ours if entry[0].standing == 0)
    rest = [entry for entry in ours if entry[0].standing > 0]
    yield from sorted([*rest, *foreseen(archived, len(first))], key=order)


def _foreseen(rule: Rule, made: Made, engine: str, clients: int) -> Foreseen:
    """What a design's chain alone tells of it."""
    ir, illegal, quality = made
    standing = math.inf if illegal else rule.standing.at_best(quality, engine, clients)
    doubt = max((rule.goals.confidence - goal.odds for goal in judge_quality(rule.goals, quality)), default=0.0)
    match rule.goals.prefer:
        case "quality":
            figure = growth(quality.log_ppl_increase.value)
        case "size":
            figure = math.log(ir.tensor_bytes)
        case _:
            figure = -math.inf
    return Foreseen(standing, figure, doubt)


def _clear(rule: Rule, verdict: Verdict) -> bool:
    """Whether of those that stand as it does none is before it but for the figure that is preferred."""
    return _doubted(rule, verdict) <= ODDS_BAND and not rule.fewest


def _doubted(rule: Rule, verdict: Verdict) -> float:
    """The most doubt of what stands as this one does and does not lose to it by its odds; infinite where clients wait, or it may not fit:
    both come before odds.
    """
    behind = (verdict.capacity.waiting and not rule.goals.batch) or rule.standing.unfit(verdict) > 0
    return math.inf if behind else rule.standing.doubt(verdict) + ODDS_BAND
