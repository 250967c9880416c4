"""Answers to a person's questions about a plan. A question of what would be is a patch of the spec: it is planned, and both are compared.

Every answer names two plans, the chosen one and the other, with the figures of both and what decides between them. Where nothing meets
the goals, the nearest candidate stands for the chosen one.
"""

from __future__ import annotations

import itertools
import math
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cache

from passes.errors import InputError, nearest
from passes.ir.operations import forward_operations
from passes.ir.sources import Source
from planner.choice.best_first import likely_choice
from planner.choice.demand import target_gpu
from planner.choice.judging.candidate import complete
from planner.choice.judging.judge import judged
from planner.choice.search import rule_of
from planner.choice.verdict import Verdict, judge_quality
from planner.explain.asked import Answer, Asked, Row
from planner.explain.changes import change, known_words, named
from planner.explain.compare import Judged, decides, differences, side
from planner.explain.users import how_many
from planner.figures import show, show_interval
from planner.plan.stated import stated
from planner.quality.expected import perplexity_growth
from planner.spec.patch import Patch, at, patched, written
from planner.spec.spec import Spec
from targets.engines.engine import ENGINE_NAMES, find_engine
from targets.gpu import Gpu, all_gpus

#: What may be asked, an example of each kind.
QUESTIONS = (
    "why", "how many users", "highest rate", "why exllamav2", "why vllm", "why g64", "why not awq", "why not w8a8", "what if 1 card",
    "what if 2 cards", "what if 2 x 4090", "what if vllm", "what if concurrency 4", "what if 3 requests a second", "what if context 64k",
    "what if prefer speed", "what if no prune", "what if goal 2 %", "cheapest card that fits", "fewest bits at 2 %",
)  # fmt: skip
#: What people call formats, and how candidates are named.
_SPELLED = {"int8": "w8a8", "int4": "4 bit", "fp4": "nvfp4", "bf16": "as it is", "fp16": "as it is"}
#: Numbers as words, and what people count so.
_NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_COUNTED = "cards?|gpus?|users?|clients?|machines?|nodes?|requests?"
#: Candidates beside the two of a comparison that are told of.
_MORE = 5


def explain(spec: Spec, source: Source, question: str | None = None) -> Answer:
    """Answer a question about the plan of a spec; without one, every candidate with its reasons.

    Raises InputError for a question of no known form, or one that names nothing that is known: it lists what may be asked.
    """
    text = re.sub(r"\s+", " ", (question or "").strip().rstrip("?").strip())
    for said, name in _SPELLED.items():
        text = re.sub(rf"(?<!\S){said}(?!\S)", name, text, flags=re.IGNORECASE)  # not inside a model's name
    for number, word in enumerate(_NUMBERS, 1):
        text = re.sub(rf"\b{word}(?= (?:{_COUNTED}))", str(number), text, flags=re.IGNORECASE)
    asked = Asked.of(spec, source)
    if not text:
        return _all(asked)
    for pattern, answer in _FORMS:
        if match := re.fullmatch(pattern, text, re.IGNORECASE):
            return answer(asked, (match[match.lastindex or 0] or "").strip())
    try:
        return _what_if(asked, text)
    except InputError:
        pass
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


def _chosen_one(asked: Asked, words: str) -> Answer:
    """The chosen plan against the next best: its figures, and what decided."""
    leading = asked.leading
    others = [v for v in asked.verdicts if v.candidate != leading.verdict.candidate]
    other = asked.best(others)
    if other is None:
        return Answer(f"{leading.label} is the only candidate that there is")
    why = f": {asked.result.why}" if asked.result.why else ""
    return _compared(f"{_chosen(asked, leading)}{why}; the next best: {other.label}", leading, other, others)


def _how_fast(asked: Asked, words: str) -> Answer:
    """The figures of the chosen plan with their intervals; it beside the next best."""
    leading = asked.leading.as_served
    speed, verdict = leading.verdict.shown, leading.verdict
    told = [f"memory {show_interval(verdict.memory.memory.total, 'B')}"]
    if speed is not None:
        figures = (
            ("decode", speed.decode_tok_s_per_request, "tok/s"), ("all clients", speed.throughput_tok_s, "tok/s"),
            ("time to the first token", speed.ttft_ms, "ms"),
        )  # fmt: skip
        told = [*(f"{name} {show_interval(figure, unit)}" for name, figure, unit in figures), *told]
    grown = show_interval(perplexity_growth(verdict.quality.log_ppl_increase), "%")
    return replace(_chosen_one(asked, words), answer=f"{leading.label}: {'; '.join((*told, f'perplexity {grown}'))}")


def _how_many(asked: Asked, words: str) -> Answer:
    return how_many(asked)


def _why_cards(asked: Asked, count: str) -> Answer:
    """The chosen plan against the nearest one on fewer cards; on another number than the plan's, what it would be there."""
    cards = asked.leading.verdict.candidate.cards
    if int(count) != cards or cards == 1:
        return _what_if(asked, "1 card" if int(count) == 1 else f"{count} cards")
    fewer = asked.result.with_fewer_cards()
    if fewer is None:
        return _what_if(asked, f"{cards // 2} cards")
    other = asked.judged(fewer)
    taken = "1 card" if fewer.candidate.cards == 1 else f"{fewer.candidate.cards} cards"
    return _compared(
        f"{_chosen(asked, asked.leading)}; the nearest on {taken}: {other.label}", asked.leading, other, ()
    )


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
    cards, named = kept.verdict.candidate.cards, then.verdict.candidate.cards
    if cards != named and not then.spec.target.fewest:
        own, all_of_them = ("1 card" if each == 1 else f"{each:,} cards" for each in (cards, named))
        return f"the plan of now meets the goals with {own}; where {all_of_them} are named, all of them are used"
    return f"the plan of now {decides(then, kept)}"


def _missed(judged: Judged) -> str:
    return "; ".join(reason.message for reason in judged.missed)


def _fewest_bits(asked: Asked, share: str) -> Answer:
    """The smallest weights that lose no more than a share of perplexity, planned for size; where the card holds none, on the largest."""
    patch: Patch = at(("goals",), {"quality": {"max_perplexity_increase": share}, "prefer": "size"})
    said = f"the fewest bits at {share}"
    found = _by_size(asked, patch)
    if not found:
        card = _least_for(asked, patch)
        held = f"the least card that does is {card.name}" if card else "nor on any other card"
        said = f"{said}: none on {asked.result.gpu.name}; {held}"
        patch = {**patch, **_on(asked, (card or _cards()[-1]).name)}
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


def _least_for(asked: Asked, patch: Patch) -> Gpu | None:
    """The least card on which the changed spec has a plan (`_cheapest` says what is least, and which are tried)."""

    @cache
    def chosen(card: str) -> bool:
        return likely_choice(patched(asked.spec, {**patch, **_on(asked, card)}), asked.source.ir) is not None

    for alike, newest in _by_memory(_cards()):
        if chosen(newest.name):
            place = bisect_left(alike, True, key=lambda card: chosen(card.name))
            return (*alike, newest)[place]
    return None


def _by_memory(cards: Sequence[Gpu]) -> Iterator[tuple[list[Gpu], Gpu]]:
    """Cards of each size, by bandwidth, with the newest and fastest of them."""
    for _, group in itertools.groupby(cards, key=lambda card: round(card.memory_bytes.value / 2**30)):
        alike = sorted(group, key=lambda card: card.bandwidth_bytes_per_s)
        yield alike, max(alike, key=lambda card: (card.capability or 0, card.bandwidth_bytes_per_s))


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
        rule = rule_of(asked.spec, asked.source.ir, card)
        return found is not None and rule.standing.of(found) == 0

    likely: Gpu | None = None
    plausible = [card for card in plausible if count * _operations_s(card) >= _asked_operations_s(asked)]
    fastest = max(plausible, key=lambda card: card.bandwidth_bytes_per_s, default=None)
    tried = plausible if fastest is not None and chosen(fastest.name) is not None else ()
    for alike, newest in _by_memory(tried):
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


def _asked_operations_s(asked: Asked) -> float:
    """The operations a second that a rate of requests takes: of each token once through the model; 0 where no rate is asked."""
    load = asked.spec.workload.asked
    tokens = load.output_tokens + load.input_tokens - min(load.shared_prefix, load.input_tokens)
    return (load.rate or 0.0) * tokens * forward_operations(asked.source.ir) if load.lasts else 0.0


def _operations_s(card: Gpu) -> float:
    """The most operations a second that a card's data sheet has, in any arithmetic."""
    rates = (card.bf16_flops, card.fp16_accumulate_flops, card.fp8_flops, card.int8_ops, card.fp4_flops)
    return max((rate for rate in rates if rate), default=math.inf)


def _fewest_bytes(asked: Asked, largest: str) -> float | None:
    """Bytes of the smallest weights that are good enough, whatever the speed; None where none are."""
    free = {"ttft": None, "decode": None, "tpot": None, "throughput": None, "prefer": "size"}
    alone = {"rate": None, "max_concurrency": None, "burstiness": 1.0, "trace": None, "concurrency": 1}
    found = asked.changed(patched(asked.spec, {**_on(asked, largest), "goals": free, "workload": alone})).verdicts
    good = [
        v
        for v in found
        if all(goal.tolerated(asked.spec.goals.bands) for goal in judge_quality(asked.spec.goals, v.quality))
    ]
    return min((v.ir.tensor_bytes for v in good), default=None)


_A_CHEAPER = "(?:we had |i had |on |with )?(?:an? |the )?(?:cheaper|cheapest|smaller|smallest|lesser|least)"
_FORMS: tuple[tuple[str, Callable[[Asked, str], Answer]], ...] = (
    (rf"(?:what )?(?:if|about) {_A_CHEAPER} (?:card|gpu)", _cheapest),
    (r"why not (.+)", _why_not),
    (r"why(?: (?:this|that|it|this plan|the plan|is it chosen|was it chosen))?", _chosen_one),
    (r"why (\d+) (?:cards?|gpus?)", _why_cards),
    (r"why (.+)", _why),
    (r"(?:can|could|will|would|does) (?:it|this|that|we|i|they) (?:serve|handle|hold|take|do|run on) (.+)", _what_if),
    (r"(?:what |and |how )?(?:if|about) (.+)", _what_if),
    (r"(?:what happens|is it possible|possible) (?:with|on|if) (.+)", _what_if),
    (r"(?:what (?:is|would be|could be|can be) )?(faster)", lambda asked, words: _what_if(asked, "prefer speed")),
    (r"(?:what (?:is|would be|could be|can be) )?(cheaper)", lambda asked, words: _cheapest(asked, "")),
    (r"(?:how many|most|max(?:imum)?) (?:users?|clients?|concurren\w+|requests?|people)( .*)?", _how_many),
    (r"(?:what is |what's )?(?:the )?(?:highest|most|max(?:imum)?|largest) (?:rate|load|concurrency|throughput)( .*)?", _how_many),
    (r"how (?:fast|much|good|well|big|large|long|slow)( .*)?", _how_fast),
    (r"what (?:is|are) (?:its|the) (?:speed|memory|quality|loss|throughput|latency|ttft|figures|cost)( .*)?", _how_fast),
    (r"(?:the |which |what )?(?:is the )?(?:(?:cheapest|smallest|least) )?(?:card|gpu)( .*)?", _cheapest),
    (r"(?:the )?fewest bits (?:at|for|with|within) (.+)", _fewest_bits),
)  # fmt: skip


def _compared(
    head: str, chosen: Judged, other: Judged, more: Sequence[Verdict], roles: tuple[str, str] = ("chosen", "other")
) -> Answer:
    """Both plans, their loads simulated, and those of `more` that come next."""
    chosen, other = chosen.as_served, other.as_served
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
