"""Two plans held against each other: the chosen one and another, the one of now and that of a changed spec."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from planner.choice.judging.candidate import complete
from planner.choice.judging.judge import judged
from planner.choice.judging.simulated import as_told
from planner.choice.verdict import Verdict
from planner.explain.asked import Answer, Asked, Row
from planner.explain.changes import bare, change
from planner.explain.compare import Judged, decides, differences, side
from planner.plan.stated import unmended
from planner.spec.patch import Patch, written

#: Candidates beside the two of a comparison that are told of.
_MORE = 5


def lost_row(verdict: Verdict) -> Row:
    """Say why a candidate lost; one with nothing against it is its own engine's best, which is weighed where a spec names it."""
    candidate = verdict.candidate
    told = "; ".join(r.message for r in verdict.reasons)
    best = f"the best of {candidate.engine}, weighed where a spec names it (engine: {candidate.engine})"
    return Row(candidate.label, told or best, tuple(map(unmended, verdict.reasons)))


def what_if(asked: Asked, words: str) -> Answer:
    """Return the plan of now against that of the spec as words change it."""
    spec, patch = change(words, asked.spec, asked.engine)
    return replanned(asked, f"with {bare(words)}", asked.changed(spec), patch)


def replanned(asked: Asked, said: str, after: Asked, patch: Patch) -> Answer:
    """Return the plan of now against that of a changed spec, which is searched first: what cannot be asked is refused at once."""
    spec, then = after.spec, after.leading
    now = asked.leading
    verdict = "the same plan" if now.label == then.label else f"another plan, {then.label}"
    if after.result.chosen is None:
        verdict = f"nothing meets the goals; the nearest is {then.label}"
    answer = compared(f"{chosen_words(asked, now)}; {said}: {verdict}", now, then, (), ("now", "then"))
    there = as_told(spec, after.result.gpu, judged(spec, after.source.ir, now.verdict.candidate))
    kept = Judged.of(spec, after.source.ir, after.result, there)
    return replace(answer, decides=_moved(now, then, kept), patch=written(patch))


def _moved(now: Judged, then: Judged, kept: Judged) -> str:
    """Why the plan of now is, or is not, that of the changed spec; `kept`: it, judged under that."""
    if then.missed:
        own = f". The plan of now, too: {_missed(kept)}" if kept.missed and now.label != then.label else ""
        return f"does not meet the goals there: {_missed(then)}{own}"
    if now.label == then.label:
        return "it meets the goals there too, and nothing is better by more than the bands"
    if kept.missed:
        return f"the plan of now would miss there: {_missed(kept)}"
    cards, named = kept.verdict.candidate.cards, then.verdict.candidate.cards
    if cards != named and not then.spec.target.fewest:
        own, all_of_them = ("1 card" if each == 1 else f"{each:,} cards" for each in (cards, named))
        return f"the plan of now meets the goals with {own}; where {all_of_them} are named, all of them are used"
    told = decides(then, kept)
    return f"the plan of now{' ' if told.startswith('meets') else ': '}{told}"


def _missed(judged: Judged) -> str:
    return "; ".join(reason.message for reason in judged.missed)


def compared(
    head: str, chosen: Judged, other: Judged, more: Sequence[Verdict], roles: tuple[str, str] = ("chosen", "other")
) -> Answer:
    """Return both plans, their loads simulated, and those of `more` that come next."""
    chosen, other = chosen.as_served, other.as_served
    shown = {chosen.label, other.label}
    rest = sorted((v for v in more if v.candidate.label not in shown), key=lambda v: v.distance)
    rows = tuple(lost_row(complete(chosen.spec, chosen.result.gpu, v)) for v in rest[:_MORE])
    named_so = ("nearest" if chosen.result.chosen is None and roles[0] == "chosen" else roles[0], roles[1])
    first, second = side(chosen, named_so[0]), side(other, named_so[1])
    return Answer(head, rows, first, second, differences(chosen, other), decides(chosen, other))


def chosen_words(asked: Asked, leading: Judged) -> str:
    """Say what was chosen, or what comes nearest where nothing was."""
    if asked.result.chosen is not None:
        return f"{leading.label} was chosen"
    return f"nothing meets the goals, nearest is {leading.label}"
