"""What to change so that a model fits, found by trying the question of `check` with other options.

A *change* is one or more options of `check` with their values, of one kind: settings, the cache's type, weights, engine, context,
clients, cards. Of each kind the least change is said that does by itself, or with the two kinds that cost least (the cache's type,
settings); where weights do at no price at the asked context, the ones that do at a shorter one. Every remedy was tried.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from passes.errors import Reason
from passes.record import dataclass
from planner.asked import chain_of, rewrite
from planner.choice.question import Outcome, Question
from planner.quality.expected import expected_quality, growth
from targets.engines.engine import ENGINE_NAMES, find_engine
from targets.gpu import all_gpus

Options = Mapping[str, Any]
Kind = Callable[[Question], Iterator[Options]]

#: A context shorter than this is no answer to somebody who asked for more.
_USEFUL_CONTEXT = 2048
#: Contexts are said in steps of so many tokens.
_STEP = 256
#: Cards of one machine.
_CARDS = (1, 2, 4, 8)
#: Widths that are tried of a format of any bits a weight.
_WIDTHS = (8, 6, 5, 4.5, 4, 3.5, 3, 2.5)
_DTYPES = ("bfloat16", "float16", "float32")
#: Kinds that are changed by themselves only.
_ALONE = frozenset({"settings", "kv_cache_dtype", "dtype", "engine_version", "context", "concurrency"})
#: Formats that lose more than this share of perplexity are no answer.
_USEFUL_LOSS = 0.1


@dataclass(frozen=True, slots=True)
class Remedy:
    """A change that makes a model fit: its kind, the options of `check` with their values, and both in words."""

    knob: str
    options: Options
    message: str


def remedies(question: Question, outcome: Outcome) -> tuple[Remedy, ...]:
    """Return the least change of each kind that makes the model fit, at the lower end of what is left for the cache too.

    Where something is refused, each kind is tried as asked, and together with what takes the refusals away.
    """
    if not outcome.modelled:
        return ()
    found = list(_found(question, outcome, {}))
    if legal := _legal(question, outcome):
        mended = question.changed(legal)
        found += (
            [_remedy("legal", question, legal)] if _fits(question, legal) else _found(mended, mended.outcome(), legal)
        )
    least = {frozenset(each.options.items()): each for each in reversed(found)}
    return tuple(each for own, each in reversed(least.items()) if not any(less < own for less in least))


def mends(question: Question, outcome: Outcome, reason: Reason) -> Options | None:
    """Return the options that take one reason away and bring no other; None where no change of one kind does."""

    def goes(options: Options) -> bool:
        return question.changed(options).outcome().codes <= outcome.codes - {reason.code}

    told = (reason.options,) if reason.options else ()
    changes = itertools.chain(told, *(kind(question) for kind in _kinds(question, outcome).values()))
    return next((options for options in changes if goes(options)), None)


def said_to_mend(question: Question, outcome: Outcome, reason: Reason, whole: Sequence[Remedy]) -> str | None:
    """Return, as written on the command line, what takes a reason away: least, else with all others; None where nothing does."""
    if not outcome.modelled:
        return None
    options = mends(question, outcome, reason) or next((remedy.options for remedy in whole), None)
    return flags(options) if options else None


def flags(options: Options) -> str:
    """Return options as they are written on the command line."""
    return " ".join(
        f"--{name.replace('_', '-')} {_quoted(value)}".removesuffix(" True") for name, value in options.items()
    )


def _quoted(value: Any) -> str:
    text = str(value)
    return f'"{text}"' if " " in text else text


def _legal(question: Question, outcome: Outcome) -> Options:
    """Options that together take away every refusal, and what says itself how it goes; empty where not all go."""
    options: dict[str, Any] = {}
    for reason in outcome.reasons:
        if reason.options or reason in outcome.illegal:
            options |= mends(question, outcome, reason) or {}
    return options if not question.changed(options).outcome().illegal else {}


def _found(question: Question, outcome: Outcome, before: Options) -> Iterator[Remedy]:
    """Remedies of each kind for a question, to be said with the options that were changed before."""
    for knob, kind in _kinds(question, outcome).items():
        for options in _least(question, knob, kind):
            yield _remedy(knob, question, {**before, **options})
    for other in _engines(question):
        for options in _least(question.changed(other), "weights", _weights):
            yield _remedy("engine", question, {**before, **other, **options})


def _kinds(question: Question, outcome: Outcome) -> dict[str, Kind]:
    """The kinds of changes, what costs least first; a format that was named is kept where another engine reads it."""
    kinds: dict[str, Kind] = {
        "settings": _settings, "kv_cache_dtype": _caches, "dtype": _dtypes, "weights": _weights, "engine_version": _versions,
        "context": lambda q: _shorter(q, outcome), "concurrency": lambda q: _fewer(q, outcome), "gpus": _cards, "engine": _engines,
        "gpu": _other_cards,
    }  # fmt: skip
    return {"engine": _engines, **kinds} if question.weights else kinds


def _least(question: Question, knob: str, kind: Kind) -> Iterator[Options]:
    """The first change of a kind that fits, by itself or beside settings and another type of the cache; for weights, a context too."""
    alone = knob in _ALONE
    settings: tuple[Options, ...] = ({},) if alone else ({}, *_settings(question))
    caches: tuple[Options, ...] = ({},) if alone else ({}, *_caches(question))
    changes = ({**own, **cache} for own in kind(question) for cache in caches)
    found = next((options for change in changes if (options := _with_settings(question, change, settings))), None)
    if found is None and knob == "weights":
        leanest = ({**own, **settings[-1]} for own in kind(question))
        longest = ((options, _longest(question, options)) for options in leanest)
        found = next(({**own, "context": n} for own, n in longest if n is not None and n >= _USEFUL_CONTEXT), None)
    if found is not None:
        yield found


def _with_settings(question: Question, change: Options, settings: Sequence[Options]) -> Options | None:
    """A change with the first of the settings that make it fit. The last leave the cache the most room: where they do not do, none does."""
    leanest = {**change, **settings[-1]}
    if not _fits(question, leanest):
        return None
    return next((options for setting in settings[:-1] if _fits(question, options := {**change, **setting})), leanest)


def _fits(question: Question, options: Options) -> bool:
    return question.changed(options).outcome().surely_fits


def _remedy(knob: str, question: Question, options: Options) -> Remedy:
    changed = question.changed(options)
    told = []
    if {"weights", "kv_cache_dtype"} & options.keys():
        loss = growth(expected_quality(changed.dense, changed.chain).log_ppl_increase.value)
        told.append(f"perplexity about {100 * loss:+.1f} %")
    if "context" in options and (question.concurrency or 1) > 1:
        told.append(f"for each of {question.concurrency} requests at once")
    return Remedy(knob, options, flags(options) + (f" ({'; '.join(told)})" if told else ""))


def _settings(question: Question) -> Iterator[Options]:
    """The engine's settings that leave the cache more room, as few as do."""
    knobs = question.engine.leaner(question.gpu, question.settings, question.workload)
    for size in range(1, len(knobs) + 1):
        yield from (dict(chosen) for chosen in itertools.combinations(knobs, size))


def _caches(question: Question) -> Iterator[Options]:
    """The engine's other types of the cache, best quality first, that the model can have."""
    for name in question.engine.kv_dtypes:
        if name != question.kv_cache_dtype and not rewrite(question.model, chain_of(None, name))[1]:
            yield {"kv_cache_dtype": name}


def _dtypes(question: Question) -> Iterator[Options]:
    """Other dtypes to compute in."""
    yield from ({"dtype": name} for name in _DTYPES if name != question.settings.dtype)


def _weights(question: Question) -> Iterator[Options]:
    """Other formats of the weights that the engine weighs: the asked format's own kind first, then what loses least."""
    if question.model.quant_method is not None:
        return
    engine, dense = question.engine, question.dense
    names = [*engine.weighed_formats]
    if (wide := engine.any_width) is not None:
        names += [f"{wide.kind}-{bits:g}" for bits in _WIDTHS if wide.low <= bits <= wide.high]
    family = (question.weights or "").split("-")[0]
    losses = {name: expected_quality(dense, chain_of(name, "auto")).log_ppl_increase.value for name in names}
    for name in sorted(names, key=lambda name: (name.split("-")[0] != family, losses[name])):
        useful = growth(losses[name]) <= _USEFUL_LOSS and name != question.weights
        if useful and not rewrite(dense, chain_of(name, "auto"))[1]:
            yield {"weights": name}


def _engines(question: Question) -> Iterator[Options]:
    """Other engines for this card."""
    for name in ENGINE_NAMES:
        if name != question.engine_name and find_engine(name).weighed_on(question.gpu):
            yield {"engine": name}


def _versions(question: Question) -> Iterator[Options]:
    """The engine's known versions, newest first."""
    known = reversed(question.engine.known_versions())
    yield from ({"engine_version": version} for version in known if version != question.settings.version)


def _shorter(question: Question, outcome: Outcome) -> Iterator[Options]:
    """The longest context that fits, where it fits at all."""
    if outcome.memory.memory.kv_cache.value > 0 and (context := _longest(question, {})) is not None:
        yield {"context": context}


def _longest(question: Question, options: Options) -> int | None:
    """The longest context below the asked one that surely fits, in steps of 256 tokens."""
    least = (question.input_tokens or 0) + (question.output_tokens or 0)
    low, high = 0, (question.workload.context - 1) // _STEP
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if _fits(question, {**options, "context": middle * _STEP}) else (low, middle - 1)
    useful = min(_USEFUL_CONTEXT, question.workload.context // 2)
    return low * _STEP if low * _STEP >= max(least, useful, _STEP) else None


def _fewer(question: Question, outcome: Outcome) -> Iterator[Options]:
    """As many clients as are surely served at once."""
    at_once = outcome.at_once * question.settings.parallel.dp
    if question.concurrency and 1 <= at_once < question.concurrency:
        yield {"concurrency": int(at_once)}


def _cards(question: Question) -> Iterator[Options]:
    """More cards, or fewer, of one machine, in the engine's preferred spread first."""
    parallel = question.settings.parallel
    if question.gpu.is_cpu or parallel.dp > 1:
        return
    more = [count for count in _CARDS if count > parallel.gpus]
    fewer = [count for count in reversed(_CARDS) if count <= parallel.gpus]
    for count in (*more, *fewer):
        for spread in question.engine.spreads(count):
            if (spread.tp, spread.pp) != (parallel.tp, parallel.pp):
                yield {"gpus": count, "tp": spread.tp} | (
                    {"pp": spread.pp} if (spread.pp, parallel.pp) != (1, 1) else {}
                )


def _other_cards(question: Question) -> Iterator[Options]:
    """Other NVIDIA cards, one of each size, the smallest first."""
    cards = sorted(
        (
            card
            for card in all_gpus()
            if card.vendor == "NVIDIA" and card.pcie and card.offered and card.name != question.gpu.name
        ),
        key=lambda card: (card.memory_bytes.value, -(card.capability or 0)),
    )
    for _, alike in itertools.groupby(cards, key=lambda card: round(card.memory_bytes.value / (1 << 30))):
        yield {"gpu": next(alike).name}
