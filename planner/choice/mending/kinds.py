"""The kinds of changes of a question of `check`, what an expert tries first in front: each gives options with their values."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from functools import partial

from passes.chain import needs_text
from passes.formats.format import format_named
from passes.formats.kv_dtypes import cache_bits
from passes.ir.names import published_of
from passes.quantize.format_names import pass_named
from planner.asked import AS_IS, chain_of, rewrite
from planner.choice.capacity import most_at_once, running_at_once
from planner.choice.goals import FLOOR
from planner.choice.mending.trial import Kept, Options, Trial, changed, quality_of
from planner.choice.question import Outcome, Question
from planner.choice.space.settings import frugal_settings, subsets
from planner.quality.expected import expected_quality, growth
from targets.engines.engine import ENGINE_NAMES, find_engine
from targets.gpu import Gpu, find_gpu

Kind = Callable[[Question], Iterator[Options]]
#: A context shorter than this is no answer to somebody who asked for more.
USEFUL_CONTEXT = 2048
#: Contexts are said in steps of so many tokens.
_STEP = 256
#: Weights of a group in most published checkpoints (AutoAWQ's, GPTQModel's and llm-compressor's default).
_USUAL_GROUP = 128
#: Perplexity that a checkpoint may lose for it to be taken before more cards.
_NEXT_TO_NOTHING = 0.01
#: Cards of one machine.
_CARDS = (1, 2, 4, 8)
#: Widths that are tried of a format of any bits a weight.
_WIDTHS = (8, 6, 5, 4.5, 4, 3.5, 3, 2.5)
_DTYPES = ("bfloat16", "float16", "float32")
#: Shares of the requests a second that are served which a rate is lowered to.
_LESS = (0.95, 0.9, 0.8, 0.65, 0.5)
#: Cards whose memories differ by no more than this share are of one size.
_ALIKE = 0.05
#: Cards that are named in place of another, smallest first: those of desktops, and those that most clouds rent (targets/clouds.jsonl).
_DESKTOP_CARDS = ("RTX 3060 12GB", "RTX 4060 Ti 16GB", "RTX 3090", "RTX 4090", "RTX 5090")
_SERVER_CARDS = (
    "T4", "L4", "A10G", "L40S", "A100 SXM4 80GB", "H100 SXM", "RTX PRO 6000 Blackwell Server", "H200 SXM", "B200 SXM",
)  # fmt: skip


def kinds(trial: Trial, outcome: Outcome) -> dict[str, Kind]:
    """Return the kinds of changes, what an expert tries first in front; a format that was named is kept where another engine reads it, and
    versions and the cut of experts change only for what is refused.
    """
    question = trial.question
    usual: dict[str, Kind] = {
        "settings": settings_of, "dtype": _dtypes, "weights": _weights, "kv_cache_dtype": _caches,
        "concurrency": lambda q: _fewer(q, outcome), "context": lambda q: _shorter(Trial(q, trial.kept), outcome),
        "model on gpus": _published_on_more, "gpus": _cards,
        "gpu": lambda q: _other_cards(q, outcome), "request_rate": lambda q: _slower(q, outcome), "engine": engines,
    }  # fmt: skip
    refused: dict[str, Kind] = {"ep": _whole_experts, "engine_version": _versions} if outcome.illegal else {}
    named: dict[str, Kind] = {"engine": engines} if question.weights else {}
    return {**named, **refused, **usual}


def settings_of(question: Question) -> Iterator[Options]:
    """Give the engine's settings that leave the cache more room, as few as do."""
    yield from subsets(question.engine.leaner(question.gpu, question.settings, question.workload), fewest=1)


def frugal(question: Question) -> Iterator[Options]:
    """Give the engine's settings that buy room with speed, beside all that leave the cache more room, as few as do."""
    yield from frugal_settings(question.engine, question.gpu, question.settings, question.workload)


def waiting(question: Question, *, fewer: bool = False) -> Iterator[Options]:
    """Give as many requests at once as surely fit where the engine is told their number, so that the others wait, or the `fewer` that do by
    the other settings: with the engine's defaults, and with the leanest settings.
    """
    if not question.concurrency or question.settings.max_num_seqs is not None:
        return
    for options in ({}, *itertools.islice(reversed(tuple(settings_of(question))), 1)):
        outcome = changed(question, options).outcome()
        most = (outcome.concurrency or 1) - 1
        at_once = 0 if outcome.used is None else min(most, running_at_once(outcome.memory))
        if at_once >= 1 and options.get("max_num_seqs", math.inf) > at_once:
            told = partial(_running_if_told, question, options)
            yield {**options, "max_num_seqs": at_once if fewer else most_at_once(at_once, most, told)}


def _running_if_told(question: Question, options: Options, at_once: int) -> int:
    return running_at_once(changed(question, {**options, "max_num_seqs": at_once}).outcome().memory)


def _caches(question: Question) -> Iterator[Options]:
    """The engine's other types of the cache, best quality first, that the model can have."""
    for name in question.engine.kv_dtypes:
        if name != question.kv_cache_dtype and not rewrite(question.model, chain_of(None, name))[1]:
            yield {"kv_cache_dtype": name}


def half_caches(question: Question) -> Iterator[Options]:
    """Give the first type of the cache with about half the bits that the card and the engine take, which goes beside other changes."""
    half = (own for own in _caches(question) if cache_bits(own["kv_cache_dtype"]) < cache_bits(question.kv_cache_dtype))
    refused = question.outcome().illegal
    legal = (own for own in half if set(question.changed(own).outcome().illegal) <= set(refused))
    yield from itertools.islice(legal, 1)


def _dtypes(question: Question) -> Iterator[Options]:
    """Other dtypes to compute in."""
    yield from ({"dtype": name} for name in _DTYPES if name != question.settings.dtype)


def _weights(question: Question) -> Iterator[Options]:
    """Published checkpoints of the model, which take no work, then formats to make."""
    yield from _published(question)
    yield from formats(question)


def without_text(question: Question) -> Iterator[Options]:
    """Give weights that nobody has to calibrate: published checkpoints, and rounding that loses next to nothing."""
    yield from _published(question)
    for own in formats(question):
        chosen = chain_of(own["weights"], "auto")
        lost = growth(quality_of(question, own).log_ppl_increase.value)
        if lost <= _NEXT_TO_NOTHING and not needs_text(chosen, rewrite(question.dense, chosen)[0]):
            yield own


def _published(question: Question) -> Iterator[Options]:
    """Published checkpoints of a model that is asked about as it was released, what loses least first."""
    from planner.choice.space.published import as_released, description

    if question.weights is not None or question.file is not None or not as_released(question.model):
        return

    made = (each.id for each in published_of(question.model.name) if description(question.model, each) is not None)
    changes: list[Options] = [{"model": name} for name in made]
    yield from sorted(changes, key=lambda own: quality_of(question, own).log_ppl_increase.value)


def formats(question: Question) -> Iterator[Options]:
    """Give other formats of the weights that the engine weighs: the asked format's own kind first, groups of the common size, then what
    loses least.
    """
    if question.model.quant_method is not None:
        return
    engine, dense = question.engine, question.dense
    names = [*engine.weighed_formats]
    if (wide := engine.any_width) is not None:
        names += [f"{wide.kind}-{bits:g}" for bits in _WIDTHS if wide.low <= bits <= wide.high]
    family = (question.weights or "").split("-")[0]
    losses = {name: expected_quality(dense, chain_of(name, "auto")).log_ppl_increase.value for name in names}
    for name in sorted(names, key=lambda name: (name.split("-")[0] != family, not _usual(name), losses[name])):
        useful = growth(losses[name]) <= FLOOR and name != question.weights
        if useful and not rewrite(dense, chain_of(name, "auto"))[1]:
            yield {"weights": name}
    if question.weights is not None:
        yield {"weights": AS_IS}


def _usual(name: str) -> bool:
    """Whether a format's groups, where it has any, are of the size that most published checkpoints have."""
    form, step = format_named(name, installed=False), pass_named(name)
    if form is None and step is not None:
        # other packages are not asked for `w8a8-rtn`, which is a method's: that reads the metadata of all that are installed
        form = step.options().get("storage")
    return form is None or form.group_size <= 0 or form.group_size == _USUAL_GROUP


def engines(question: Question) -> Iterator[Options]:
    """Give other engines for this card; one that nobody maintains only for a format that was named."""
    for name in ENGINE_NAMES:
        other = find_engine(name)
        useful = name != question.engine_name and (other.archived is None or question.weights is not None)
        if useful and other.weighed_on(question.gpu):
            yield {"engine": name}


def _whole_experts(question: Question) -> Iterator[Options]:
    """Whole experts on each card, where they are cut over several."""
    parallel = question.settings.parallel
    if parallel.ep == 1 and parallel.tp * parallel.dp > 1 and question.model.has_experts:
        yield {"ep": parallel.tp * parallel.dp}


def _versions(question: Question) -> Iterator[Options]:
    """The engine's known versions, newest first."""
    known = reversed(question.engine.known_versions())
    yield from ({"engine_version": version} for version in known if version != question.settings.version)


def _shorter(trial: Trial, outcome: Outcome) -> Iterator[Options]:
    """The longest context that fits, where it fits at all."""
    if outcome.memory.memory.kv_cache.value > 0 and (context := longest(trial, {})) is not None:
        yield {"context": context}


def longest(trial: Trial, options: Options) -> int | None:
    """Return the longest context below the asked one that fits with the odds that a remedy must have, in steps of 256 tokens."""
    question, bare = trial.question, Trial(trial.question, Kept(odds=trial.kept.odds))
    least = (question.input_tokens or 0) + (question.output_tokens or 0)
    low, high = 0, (question.workload.context - 1) // _STEP
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if bare.fits({**options, "context": middle * _STEP}) else (low, middle - 1)
    useful = min(USEFUL_CONTEXT, question.workload.context // 2)
    return low * _STEP if low * _STEP >= max(least, useful, _STEP) else None


def _fewer(question: Question, outcome: Outcome) -> Iterator[Options]:
    """As many clients as are surely served at once, where all are half of them; then halves, which are served faster."""
    at_once = outcome.at_once * question.settings.parallel.dp
    if question.concurrency and at_once >= 1:
        clients = int(at_once) if at_once < question.concurrency else question.concurrency >> 1
        yield from ({"concurrency": clients >> halved} for halved in range(clients.bit_length()))


def _slower(question: Question, outcome: Outcome) -> Iterator[Options]:
    """Fewer requests a second than are served at most, where they come at a rate."""
    if question.load.rate is None or question.load.ramp_up is not None or not outcome.fits:
        return
    speed = question.engine.speed(outcome.ir, question.gpu, question.settings, outcome.workload, outcome.memory)
    most = speed.capacity_req_s.value if speed.capacity_req_s else question.load.rate
    rates = (float(f"{share * min(most, question.load.rate):.3g}") for share in _LESS)
    yield from ({"request_rate": rate} for rate in rates if 0 < rate < question.load.rate)


def _cards(question: Question) -> Iterator[Options]:
    """More cards, or fewer, of one machine, in the engine's preferred spread first, and more replicas of what is asked."""
    parallel = question.settings.parallel
    if question.gpu.is_cpu:
        return
    more = [count for count in _CARDS if count > parallel.gpus]
    fewer = [count for count in reversed(_CARDS) if count <= parallel.gpus]
    for count in (*more, *fewer):
        for spread in question.engine.spreads(count) if parallel.dp == 1 else ():
            if (spread.tp, spread.pp) != (parallel.tp, parallel.pp):
                yield {"gpus": count, "tp": spread.tp} | (
                    {"pp": spread.pp} if (spread.pp, parallel.pp) != (1, 1) else {}
                )
        if question.engine.replicates and count > parallel.gpus and count % parallel.gpus == 0:
            yield {"gpus": count, "tp": parallel.tp, "dp": parallel.dp * (count // parallel.gpus)}


def _published_on_more(question: Question) -> Iterator[Options]:
    """Published checkpoints that lose next to nothing, on more cards: fewer than the model takes as it is."""
    near = [
        own
        for own in _published(question)
        if growth(quality_of(question, own).log_ppl_increase.value) <= _NEXT_TO_NOTHING
    ]
    more = (own for own in _cards(question) if own["gpus"] > question.settings.parallel.gpus) if near else ()
    yield from ({**own, **cards} for cards in more for own in near)


def _other_cards(question: Question, outcome: Outcome) -> Iterator[Options]:
    """Common larger cards, as large ones where the asked one is refused or has the memory, the smallest first; those of desktops for one of
    them.
    """
    own = question.gpu
    names = (*_DESKTOP_CARDS, *_SERVER_CARDS) if _of_desktop(own) else _SERVER_CARDS
    cards = (find_gpu(name) for name in names)
    least = (
        0.0 if own.is_cpu else (1 - _ALIKE if outcome.illegal or outcome.fits else 1 + _ALIKE) * own.memory_bytes.value
    )
    many = {"gpus": question.settings.parallel.gpus} if question.cards_named else {}
    yield from (
        {"gpu": card.name, **many} for card in cards if card.name != own.name and card.memory_bytes.value >= least
    )


def _of_desktop(card: Gpu) -> bool:
    """Whether a card is a GeForce by its name."""
    return card.name.startswith("RTX ") and card.name[4].isdigit() and "Ada" not in card.name
