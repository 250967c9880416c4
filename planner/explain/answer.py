"""Answers to a person's questions about a plan. A question of what would be is a patch of the spec: it is planned, and both are compared.

Every answer names two plans, the chosen one and the other, with the figures of both and what decides between them. Where nothing meets
the goals, the nearest candidate stands for the chosen one.
"""

from __future__ import annotations

import itertools
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from passes.errors import InputError, ReasonKind, nearest
from passes.ir.sources import Source, open_model
from planner.choice.alternatives import likely_choice
from planner.choice.search import SearchResult, complete, judged, rule_of, search, target_gpu
from planner.choice.verdict import Verdict, judge_quality
from planner.explain.changes import change, known_words, named
from planner.explain.compare import Difference, Judged, Side, decides, differences, side
from planner.figures import show
from planner.plan.codec import to_json
from planner.plan.stated import StatedReason, stated
from planner.spec.patch import Patch, at, patched, written
from planner.spec.spec import Spec
from targets.engines.engine import ENGINE_NAMES, find_engine
from targets.gpu import Gpu, all_gpus

#: What may be asked, an example of each kind.
QUESTIONS = (
    "why exllamav2", "why vllm", "why g64", "why not awq", "why not w8a8", "what if 1 card", "what if 2 cards", "what if 2 x 4090",
    "what if vllm", "what if concurrency 4", "what if context 64k", "what if prefer speed", "what if no prune", "what if goal 2 %",
    "cheapest card that fits", "fewest bits at 2 %",
)  # fmt: skip
#: Candidates beside the two of a comparison that are told of.
_MORE = 5


@dataclass(frozen=True, slots=True)
class Row:
    """A candidate, what is to be said of it, and the reasons that say it."""

    candidate: str
    message: str
    reasons: tuple[StatedReason, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """A headline; where two plans are compared both of them, their figures and what decides; and what is to be said of other candidates.

    `patch`: what was changed of the spec, as it may stand there.
    """

    answer: str
    candidates: tuple[Row, ...] = ()
    chosen: Side | None = None
    other: Side | None = None
    differences: tuple[Difference, ...] = ()
    decides: str = ""
    patch: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return the answer as a document."""
        document: dict[str, Any] = to_json(self)
        return {"answer": self.answer, "candidates": []} | document


@dataclass(frozen=True)
class Asked:
    """What a question is asked about: a spec, its model, and the search that chose."""

    spec: Spec
    source: Source
    result: SearchResult

    @classmethod
    def of(cls, spec: Spec, source: Source) -> Asked:
        """Search a spec. Raises InputError where nothing is left to weigh."""
        return cls(spec, source, search(spec, source.ir))

    def changed(self, spec: Spec) -> Asked:
        """Ask the same about a changed spec, of another model where the change names one."""
        model = (spec.model, spec.revision, spec.assume)
        same = model == (self.spec.model, self.spec.revision, self.spec.assume)
        return Asked.of(spec, self.source if same else open_model(model[0], revision=model[1], assume=spec.assume))

    def judged(self, verdict: Verdict) -> Judged:
        """Return a verdict of the search, whole."""
        return Judged.of(self.spec, self.source.ir, self.result, verdict)

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """The best of every design, the chosen one first."""
        return (*((self.result.chosen,) if self.result.chosen else ()), *self.result.rejected)

    @property
    def leading(self) -> Judged:
        """The chosen candidate, else the nearest to the goals."""
        return self.judged(self.result.chosen or self.result.nearest()[0])

    def best(self, verdicts: Sequence[Verdict]) -> Judged | None:
        """Return the best of some verdicts by the rule, where none meets the goals the nearest; None of none."""
        if not verdicts:
            return None
        pairs = [(v, _undominated(v)) for v in verdicts]
        feasible = [plain for _, plain in pairs if plain.feasible]
        decision = rule_of(self.spec, self.source.ir, self.result.gpu).decide(feasible)
        if decision is None:
            return self._nearest(verdicts)
        return self.judged(next(v for v, plain in pairs if plain is decision.chosen))

    def _nearest(self, verdicts: Sequence[Verdict]) -> Judged:
        """The nearest to the goals. A verdict that ended early is at least as far as it says: those that are farther need no more of it."""
        found: Judged | None = None
        for verdict in sorted(verdicts, key=lambda v: v.distance):
            if found is not None and verdict.distance >= found.verdict.distance:
                break
            whole = self.judged(verdict)
            if found is None or whole.verdict.distance < found.verdict.distance:
                found = whole
        assert found is not None
        return found


def explain(spec: Spec, source: Source, question: str | None = None) -> Answer:
    """Answer a question about the plan of a spec; without one, every candidate with its reasons.

    Raises InputError for a question of no known form, or one that names nothing that is known: it lists what may be asked.
    """
    text = re.sub(r"\s+", " ", (question or "").strip().rstrip("?").strip())
    asked = Asked.of(spec, source)
    if not text:
        return _all(asked)
    for pattern, answer in _FORMS:
        if match := re.fullmatch(pattern, text, re.IGNORECASE):
            return answer(asked, match[match.lastindex or 0])
    close = nearest(text, QUESTIONS)
    hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
    raise InputError(f"cannot answer {question!r}.{hint}", remedy=f"ask for instance: {'; '.join(QUESTIONS)}")


def _all(asked: Asked) -> Answer:
    """Every design that lost, nearest first."""
    lost = sorted(asked.result.rejected, key=lambda v: v.distance)
    chosen = asked.result.chosen.candidate.label if asked.result.chosen else "nothing"
    others = f"the {len(lost):,} designs that lost, nearest first, each with its best settings"
    head = f"{chosen} was chosen out of {asked.result.searched:,} candidates; {others}"
    return Answer(head, tuple(map(_lost, lost)))


def _lost(verdict: Verdict) -> Row:
    """Why a candidate lost; one with nothing against it is its own engine's best, which is weighed where a spec names it."""
    candidate = verdict.candidate
    told = "; ".join(r.message for r in verdict.reasons)
    best = f"the best of {candidate.engine}, weighed where a spec names it (engine: {candidate.engine})"
    return Row(candidate.label, told or best, tuple(map(stated, verdict.reasons)))


def _why(asked: Asked, name: str) -> Answer:
    """The chosen plan against the best without what is named; where it has nothing of the name, against the best that has."""
    leading = asked.leading
    if not _has(leading.verdict, name):
        return _why_not(asked, name)
    without = [v for v in asked.verdicts if not _has(v, name)] or list(_of_other_engines(asked, name))
    other = asked.best(without) or asked.best([v for v in asked.verdicts if v is not asked.result.chosen])
    if other is None:
        return Answer(f"{leading.label} is the only candidate that there is")
    head = f"{_chosen(asked, leading)}; the best without {name}: {other.label}"
    return _compared(head, leading, other, without)


def _why_not(asked: Asked, name: str) -> Answer:
    """The chosen plan against the best with what is named; planned for it alone where it was not weighed."""
    leading = asked.leading
    found = [v for v in asked.verdicts if _has(v, name)]
    if asked.result.chosen is not None and _has(asked.result.chosen, name):
        return _why(asked, name)
    if not found:
        return _planned_for(asked, name)
    other = asked.best([v for v in found if v.candidate != leading.verdict.candidate] or found)
    assert other is not None
    return _compared(f"{_chosen(asked, leading)}; the best with {name}: {other.label}", leading, other, found)


def _planned_for(asked: Asked, name: str) -> Answer:
    """The same for what was not weighed: the spec with nothing else, planned."""
    for patch in named(name):
        try:
            return _unasked(asked, name, patch)
        except InputError as error:
            refused = error
    if any(True for _ in named(name)):
        raise InputError(f"{name!r} cannot be planned: {refused.message}", remedy=refused.remedy)
    try:
        return _what_if(asked, name)
    except InputError:
        close = nearest(name, (*known_words(), *_words_of(asked)))
        hint = f" Did you mean {' or '.join(map(repr, close))}?" if close else ""
        raise InputError(
            f"no candidate is called {name!r}.{hint}",
            remedy=f"`optimize explain` without a question lists all of them; ask for instance: {'; '.join(QUESTIONS)}",
        ) from None


def _unasked(asked: Asked, name: str, patch: Patch) -> Answer:
    """What is not weighed, planned for by itself, then held against the chosen one under the goals that both have."""
    spec = patched(asked.spec, patch)
    answer = _replanned(asked, f"{name} was not weighed; with it alone", spec, patch)
    if spec.target != asked.spec.target or spec.goals != asked.spec.goals:
        return answer
    return replace(answer, decides=decides(asked.leading, asked.changed(spec).leading))


def _what_if(asked: Asked, words: str) -> Answer:
    """The plan of now against that of the changed spec."""
    spec, patch = change(words, asked.spec, asked.leading.verdict.candidate.engine)
    return _replanned(asked, f"with {words}", spec, patch)


def _replanned(asked: Asked, said: str, spec: Spec, patch: Patch) -> Answer:
    now, after = asked.leading, asked.changed(spec)
    then = after.leading
    verdict = "the same plan" if now.label == then.label else f"another plan, {then.label}"
    if after.result.chosen is None:
        verdict = f"nothing meets the goals; the nearest is {then.label}"
    answer = _compared(f"{_chosen(asked, now)}; {said}: {verdict}", now, then, (), ("now", "then"))
    kept = Judged.of(spec, after.source.ir, after.result, judged(spec, after.source.ir, now.verdict.candidate))
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
    return f"the plan of now {decides(then, kept)}"


def _missed(judged: Judged) -> str:
    return "; ".join(reason.message for reason in judged.missed)


def _fewest_bits(asked: Asked, share: str) -> Answer:
    """The smallest weights that lose no more than a share of perplexity, planned for size; where the card holds none, on the largest."""
    patch: Patch = at(("goals",), {"quality": {"max_perplexity_increase": share}, "prefer": "size"})
    said, largest = f"the fewest bits at {share}", _cards()[-1].name
    found = _by_size(asked, patch)
    if not found:
        said, patch = f"{said}: none on {asked.result.gpu.name}; on {largest}", {**patch, **_on(asked, largest)}
        found = _by_size(asked, patch)
    patch = found[0][0] if found else patch
    answer = _replanned(asked, said, patched(asked.spec, patch), patch)
    told = [
        f"{8 * v.ir.tensor_bytes / asked.source.ir.weights:.2f} bits a weight, {show(v.ir.tensor_bytes, 'B')}"
        for _, v in found
    ]
    others = [
        f"; {v.candidate.label} takes {bits}: where its engine is named"
        for (_, v), bits in list(zip(found, told, strict=True))[1:]
        if v.ir.tensor_bytes < found[0][1].ir.tensor_bytes
    ]
    return replace(answer, answer="".join((answer.answer, *(f", {bits}" for bits in told[:1]), *others[:1])))


def _by_size(asked: Asked, patch: Patch) -> list[tuple[Patch, Verdict]]:
    """The plan of each engine that meets the goals: the plan's own engine first, then those with the smallest weights."""
    base, own = patched(asked.spec, patch), asked.leading.verdict.candidate.engine
    names = [name for name in ENGINE_NAMES if find_engine(name).weighed_on(target_gpu(base))]
    patches = [{**patch, "engine": name} for name in names] if base.engine == "auto" else [patch]
    plans = ((each, asked.changed(patched(asked.spec, each)).result.chosen) for each in patches)
    found = [(each, chosen) for each, chosen in plans if chosen is not None]
    return sorted(found, key=lambda pair: (pair[1].candidate.engine != own, pair[1].ir.tensor_bytes))


def _cheapest(asked: Asked, words: str) -> Answer:
    """The least card that a plan meets the goals on, with the odds asked for where there is one. No prices are known: less memory, then
    less bandwidth, counts as cheaper. None is tried where the fastest of all does not do, and none of a size whose newest and fastest does
    not; of a size, cards are tried by halving, as more bandwidth does no worse.
    """
    cards, count = _cards(), _count(asked)
    least = _fewest_bytes(asked, cards[-1].name)
    plausible = [card for card in cards if least is not None and count * card.memory_bytes.value >= least]

    @cache
    def chosen(card: str) -> Verdict | None:
        return likely_choice(patched(asked.spec, _on(asked, card)), asked.source.ir)

    def surely(card: Gpu) -> bool:
        found = chosen(card.name)
        return found is not None and found.admissible(asked.spec.goals)

    likely: Gpu | None = None
    fastest = max(plausible, key=lambda card: card.bandwidth_bytes_per_s, default=None)
    tried = plausible if fastest is not None and chosen(fastest.name) is not None else ()
    for _, group in itertools.groupby(tried, key=lambda card: round(card.memory_bytes.value / 2**30)):
        alike = sorted(group, key=lambda card: card.bandwidth_bytes_per_s)
        newest = max(alike, key=lambda card: (card.capability or 0, card.bandwidth_bytes_per_s))
        if chosen(newest.name) is None:
            continue
        place = bisect_left(alike, True, key=surely)
        if place < len(alike) or surely(newest):
            return _on_card(asked, "the least card that meets the goals", (*alike, newest)[place])
        likely = likely or newest
    if likely is not None:
        return _on_card(asked, "none meets the goals with the odds asked for; the least that may", likely)
    return _on_card(asked, "no card is known to meet the goals; the largest", cards[-1])


def _on_card(asked: Asked, said: str, card: Gpu) -> Answer:
    patch = _on(asked, card.name)
    ordered = "by memory, then bandwidth: no prices are known"
    return _replanned(asked, f"{said} ({ordered}) is {card.name}", patched(asked.spec, patch), patch)


def _cards() -> list[Gpu]:
    """NVIDIA's cards that can be bought, the least first: none that is part of a laptop."""
    cards = (card for card in all_gpus() if card.vendor == "NVIDIA" and card.offered and "Laptop" not in card.name)
    return sorted(cards, key=lambda card: (card.memory_bytes.value, card.bandwidth_bytes_per_s))


def _on(asked: Asked, card: str) -> Patch:
    """The patch that puts a plan on another card; an engine of processors gives way to those of cards."""
    engine = asked.leading.verdict.candidate.engine
    return {"target": {"gpu": card, "count": _count(asked)}} | (
        {"engine": "auto"} if find_engine(engine).device == "cpu" else {}
    )


def _count(asked: Asked) -> int:
    """The cards of a plan: where the fewest are asked for, as many as were chosen."""
    target = asked.spec.target
    return asked.leading.verdict.candidate.cards if target.fewest else target.cards


def _fewest_bytes(asked: Asked, largest: str) -> float | None:
    """Bytes of the smallest weights that are good enough, whatever the speed; None where none are."""
    free = {"ttft": None, "decode": None, "tpot": None, "throughput": None, "prefer": "size"}
    found = asked.changed(patched(asked.spec, {**_on(asked, largest), "goals": free})).verdicts
    good = [
        v
        for v in found
        if all(goal.tolerated(asked.spec.goals.bands) for goal in judge_quality(asked.spec.goals, v.quality))
    ]
    return min((v.ir.tensor_bytes for v in good), default=None)


_FORMS: tuple[tuple[str, Callable[[Asked, str], Answer]], ...] = (
    (r"why not (.+)", _why_not),
    (r"why (.+)", _why),
    (r"(?:what )?if (.+)", _what_if),
    (r"(?:the |which )?(?:cheapest|smallest|least) (?:card|gpu)( .*)?", _cheapest),
    (r"(?:the )?fewest bits (?:at|for|with|within) (.+)", _fewest_bits),
)  # fmt: skip


def _compared(
    head: str, chosen: Judged, other: Judged, more: Sequence[Verdict], roles: tuple[str, str] = ("chosen", "other")
) -> Answer:
    """Both plans, and those of `more` that come next."""
    shown = {chosen.label, other.label}
    rest = sorted((v for v in more if v.candidate.label not in shown), key=lambda v: v.distance)
    rows = tuple(_lost(complete(chosen.spec, chosen.result.gpu, v)) for v in rest[:_MORE])
    named_so = ("nearest" if chosen.result.chosen is None and roles[0] == "chosen" else roles[0], roles[1])
    first, second = side(chosen, named_so[0]), side(other, named_so[1])
    return Answer(head, rows, first, second, differences(chosen, other), decides(chosen, other))


def _chosen(asked: Asked, leading: Judged) -> str:
    if asked.result.chosen is not None:
        return f"{leading.label} was chosen"
    return f"nothing meets the goals, nearest is {leading.label}"


def _has(verdict: Verdict, name: str) -> bool:
    """Whether a candidate has something of a name: every word of it is one of the candidate's, or a part of one."""
    candidate = verdict.candidate
    said = " ".join((candidate.label, *(pass_.title() for pass_ in candidate.passes)))
    words = re.findall(r"[a-z0-9.]+", said.lower())
    asked = re.findall(r"[a-z0-9.]+", name.lower())
    return all(any(word == part or (len(part) > 1 and _part(part, word)) for word in words) for part in asked)


def _part(part: str, word: str) -> bool:
    """Whether a word holds another, numbers as a whole: `g12` is no part of `g128`."""
    return (
        re.search(rf"(?<!\d){re.escape(part)}(?!\d)" if part[0].isdigit() else rf"{re.escape(part)}(?!\d)", word)
        is not None
    )


def _words_of(asked: Asked) -> Iterator[str]:
    for verdict in asked.verdicts:
        yield from re.findall(r"[a-z0-9.-]+", verdict.candidate.label.lower())


def _of_other_engines(asked: Asked, name: str) -> Iterator[Verdict]:
    """What other engines for this card would do, where all candidates have what is named."""
    device = find_engine(asked.leading.verdict.candidate.engine).device
    for engine in ENGINE_NAMES:
        if find_engine(engine).device == device and engine != asked.leading.verdict.candidate.engine:
            found = asked.changed(patched(asked.spec, at(("engine",), engine)))
            yield from (v for v in found.verdicts if not _has(v, name))


def _undominated(verdict: Verdict) -> Verdict:
    """A verdict without what only says that another one is better."""
    reasons = tuple(r for r in verdict.reasons if r.kind is not ReasonKind.DOMINATED)
    return verdict if reasons == verdict.reasons else replace(verdict, reasons=reasons)
