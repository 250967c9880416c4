"""What to change so that a model fits and keeps what is asked, found by trying the question of `check` with other options.

A *change* is one or more options of `check` with their values, of one kind: settings, weights, the cache's type, clients, context, cards,
engine. Kinds stand as an expert tries them. Of each kind the first change is said that does by itself, or with the two kinds that cost
least (half the cache's bits, settings); where weights do at no price at the asked context, the ones that do at a shorter one. Of settings
that do, those are said that a plan would take: the decision rule's choice. Every remedy was tried: it fits with likely odds, keeps all
goals, and none that changes the numbers loses more than anybody would accept.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from passes.errors import Reason, ReasonKind
from passes.record import dataclass
from planner.choice.mending.kinds import (
    USEFUL_CONTEXT,
    Kind,
    engines,
    formats,
    frugal,
    half_caches,
    kinds,
    longest,
    settings_of,
    waiting,
    without_text,
)
from planner.choice.mending.trial import BARE, OF_QUALITY, SURE, Kept, Options, Trial, changed, likely
from planner.choice.question import Outcome, Question
from planner.figures import show
from planner.quality.expected import growth
from targets.engines.engine import find_engine

#: A shorter context of this share of the asked one is an answer to somebody who asked for more.
_USEFUL_SHARE = 0.25
#: A context of this share of the longest that any change gives is as good.
_AS_LONG = 0.6
#: Options that need no other card, engine or checkpoint, and lose nothing.
_FREE = frozenset({"max_num_seqs", "max_num_batched_tokens", "block_size", "dtype"})
#: Kinds that are changed by themselves only.
_ALONE = frozenset({"kv_cache_dtype", "dtype", "ep", "engine_version", "context", "concurrency", "request_rate"})


@dataclass(frozen=True, slots=True)
class Remedy:
    """A change that makes a model fit: its kind, the options of `check` with their values, and both in words."""

    knob: str
    options: Options
    message: str


def remedies(question: Question, outcome: Outcome, kept: Kept = BARE) -> tuple[Remedy, ...]:
    """Return the first change of each kind that makes the model fit and keeps what is asked.

    Where something is refused, each kind is tried as asked, and together with what takes the refusals away.
    """
    if not outcome.modelled:
        return ()
    trial = Trial(question, kept)
    found = list(_found(trial, outcome, {}))
    if legal := _legal(question, outcome):
        mended = Trial(changed(question, legal), kept)
        if trial.does(legal):
            # What costs nothing stands before other cards.
            found.insert(0 if legal.keys() <= _FREE else len(found), _remedy("legal", trial, legal, {}))
        else:
            found += _found(mended, mended.question.outcome(), legal)
    own = [frozenset(each.options.items()) for each in found]
    return tuple(
        each
        for number, each in enumerate(found)
        if own[number] not in own[:number] and not any(less < own[number] for less in own)
    )


def surer(question: Question, kept: Kept) -> tuple[Remedy, ...]:
    """Return the settings with which a model that fits does so surely, as a plan would take them; none where no settings do."""
    trial = Trial(question, replace(kept, odds=SURE))
    return tuple(_remedy("settings", trial, options, {}) for options in _first(trial, "settings", settings_of))


def first_that_keeps(question: Question, outcome: Outcome, kept: Kept) -> Remedy | None:
    """Return the first change of any kind that makes the model fit and keeps what is asked."""
    return next(_found(Trial(question, kept), outcome, {}), None) if outcome.modelled else None


def mends(question: Question, outcome: Outcome, reason: Reason) -> Options | None:
    """Return the options that take one reason away and bring no other; None where no change of one kind does."""

    def goes(options: Options) -> bool:
        after = changed(question, options).outcome()
        return after.codes <= outcome.codes - {reason.code} and (bool(after.codes) or likely(after))

    told = (reason.options,) if reason.options else ()
    changes = itertools.chain(told, *(kind(question) for kind in kinds(Trial(question), outcome).values()))
    return next((options for options in changes if goes(options)), None)


def said_to_mend(question: Question, outcome: Outcome, reason: Reason, whole: Sequence[Remedy]) -> str | None:
    """Return, as written on the command line, what takes a reason away: what it says itself, of too little memory the first remedy, of a
    refusal its least change, else the first remedy; None where nothing does.
    """
    if not outcome.modelled:
        return None
    first = next((remedy.options for remedy in whole), None)
    short = reason.kind is ReasonKind.TOO_LARGE
    options = (first if short and not reason.options else None) or mends(question, outcome, reason) or first
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
    return options if not changed(question, options).outcome().illegal else {}


def _found(trial: Trial, outcome: Outcome, before: Options) -> Iterator[Remedy]:
    """Remedies of each kind for a question, to be said with the options that were changed before."""
    question = trial.question
    for knob, kind in kinds(trial, outcome).items():
        for options in _first(trial, knob, kind):
            yield _remedy(knob, trial, options, before)
    for other in engines(question):
        if find_engine(other["engine"]).archived is not None:
            continue  # is weighed for the format that was named, not for another
        for options in _first(Trial(question.changed(other), trial.kept), "weights", formats):
            yield _remedy("engine", trial, {**other, **options}, before)


def _first(trial: Trial, knob: str, kind: Kind) -> Iterator[Options]:
    """The first change of a kind that does, by itself or beside settings and half the cache's bits; for weights, a context too. Of
    settings, and of weights where none were named, those that a plan would take; where no settings hold all requests fewer at once, and
    where none hold one, those that buy room with speed.
    """
    question, alone = trial.question, knob in _ALONE
    if knob == "settings":
        found = trial.settled(tuple(kind(question))) or trial.settled(tuple(waiting(question)))
        found = found or trial.settled(tuple(waiting(question, fewer=True))) or trial.settled(tuple(frugal(question)))
    elif knob == "weights" and question.weights is None and (chosen := _as_planned(trial)) is not None:
        found = chosen
    else:
        settings: tuple[Options, ...] = ({},) if alone else ({}, *settings_of(question))
        changes = (
            {**own, **cache}
            for own in kind(question)
            for cache in ({}, *(() if alone else half_caches(changed(question, own))))
        )
        found = next((options for change in changes if (options := _with_settings(trial, change, settings))), None)
        if found is None and knob == "weights":
            found = _at_shorter_context(trial, [{**own, **settings[-1]} for own in kind(question)])
    if found is not None:
        yield found


def _as_planned(trial: Trial) -> Options | None:
    """Of weights that nobody has to calibrate, and that surely fit, the ones that a plan would take: by themselves, beside half the cache's
    bits, and beside the settings that leave it the most room; None where none do.
    """
    question = trial.question
    leanest = tuple(settings_of(question))[-1:]
    tries = [
        {**own, **cache, **settings}
        for own in without_text(question)
        for cache in ({}, *half_caches(changed(question, own)))
        for settings in ({}, *leanest)
    ]
    return trial.settled([own for own in tries if changed(question, own).outcome().odds >= SURE])


def _with_settings(trial: Trial, change: Options, settings: Sequence[Options]) -> Options | None:
    """A change with the settings that a plan would take, none where it surely fits without. The last leave the cache the most room: where
    they do not fit, none does.
    """
    if not trial.fits({**change, **settings[-1]}):
        return None
    if len(settings) == 1 or changed(trial.question, change).outcome().odds >= SURE:
        return change if trial.does(change) else None
    return trial.settled([{**change, **setting} for setting in settings])


def _at_shorter_context(trial: Trial, changes: Sequence[Options]) -> Options | None:
    """The first change whose longest context is a useful share of what is asked, or nearly as long as any."""
    found = [({**own, "context": n}, n) for own in changes if (n := longest(trial, own)) is not None]
    found = [(own, n) for own, n in found if n >= USEFUL_CONTEXT]
    enough = min(_USEFUL_SHARE * trial.question.workload.context, _AS_LONG * max((n for _, n in found), default=0))
    return next((own for own, n in found if n >= enough and trial.does(own)), None)


def _remedy(knob: str, trial: Trial, options: Options, before: Options) -> Remedy:
    """A remedy by the options that were found, and those that were changed before."""
    after, told = changed(trial.question, options), []
    if OF_QUALITY & options.keys():
        loss = growth(trial.kept.quality_of(trial.question, options).log_ppl_increase.value)
        told.append(f"perplexity about {100 * loss:+.1f} %")
    if "context" in options and (after.concurrency or 1) > 1:
        told.append(f"for each of {after.concurrency} requests at once")
    if (odds := after.outcome().odds) < SURE:
        told.append(f"fits with odds of {show(odds, 'odds')}")
    said = {**before, **options}
    return Remedy(knob, said, flags(said) + (f" ({'; '.join(told)})" if told else ""))
