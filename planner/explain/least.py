"""The least that does: the least card on which a plan meets the goals, the fewest bits within a loss of quality."""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache

from passes.ir.operations import forward_operations
from planner.choice.best_first import likely_choice
from planner.choice.demand import target_gpu
from planner.choice.search import rule_of
from planner.choice.verdict import Verdict, judge_quality
from planner.explain.asked import Answer, Asked
from planner.explain.two_plans import replanned
from planner.figures import show
from planner.spec.patch import Patch, at, patched
from targets.engines.engine import ENGINE_NAMES, find_engine
from targets.gpu import Gpu, all_gpus


def fewest_bits(asked: Asked, share: str) -> Answer:
    """Return the smallest weights that lose no more than a share of perplexity, planned for size; where the card holds none, on the
    largest card.
    """
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
    answer = replanned(asked, said, asked.changed(patched(asked.spec, patch)), patch)
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
    """The least card on which the changed spec has a plan (`cheapest_card` says what is least, and which are tried)."""

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


def cheapest_card(asked: Asked, words: str) -> Answer:
    """Return the least card that a plan meets the goals on, with the odds asked for where there is one.

    No prices are known: less memory, then less bandwidth, counts as cheaper. None is tried where the fastest of all does not do, none of
    a size whose newest and fastest does not; of a size, cards are tried by halving, as more bandwidth does no worse.
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
    return replanned(asked, f"{said} ({ordered}) is {card.name}", asked.changed(patched(asked.spec, patch)), patch)


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
    alone = {"rate": None, "max_concurrency": None, "burstiness": 1.0, "trace": None, "concurrency": 1, "ramp_up": None}
    found = asked.changed(patched(asked.spec, {**_on(asked, largest), "goals": free, "workload": alone})).verdicts
    good = [
        v
        for v in found
        if all(goal.tolerated(asked.spec.goals.bands) for goal in judge_quality(asked.spec.goals, v.quality))
    ]
    return min((v.ir.tensor_bytes for v in good), default=None)
