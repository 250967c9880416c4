"""What to change so that a model fits and keeps what is asked, found by trying the question of `check` with other options.

A *change* is one or more options of `check` with their values, of one kind: settings, weights, the cache's type, clients, context, cards,
engine. Kinds stand as an expert tries them. Of each kind the first change is said that does by itself, or with the two kinds that cost
least (half the cache's bits, settings); where weights do at no price at the asked context, the ones that do at a shorter one. Of settings
that do, those are said that a plan would take: the decision rule's choice. Every remedy was tried: it fits with likely odds, keeps all
goals, and none that changes the numbers loses more than anybody would accept.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from passes.errors import Reason, ReasonKind
from passes.formats.format import format_named
from passes.formats.kv_dtypes import cache_bits
from passes.ir.names import published_of
from passes.record import dataclass
from planner.asked import AS_IS, chain_of, rewrite
from planner.choice.capacity import running_at_once
from planner.choice.goals import FLOOR
from planner.choice.question import Outcome, Question
from planner.quality.expected import Quality, expected_quality, growth
from planner.quality.origin import loss_since_origin
from targets.engines.engine import ENGINE_NAMES, find_engine
from targets.gpu import Gpu, find_gpu

if TYPE_CHECKING:
    from planner.spec.parts.goals import Goals

Options = Mapping[str, Any]
Kind = Callable[[Question], Iterator[Options]]
#: Tells whether a changed question, what comes of it and its quality keep what is asked besides fitting.
Keeps = Callable[[Question, Outcome, Quality], bool]

#: Odds of fitting that a remedy has at least; those below what needs no saying are said with it.
LIKELY, SURE = 0.8, 0.95
#: A context shorter than this is no answer to somebody who asked for more; one of this share of the asked is an answer.
_USEFUL_CONTEXT, _USEFUL_SHARE = 2048, 0.25
#: A context of this share of the longest that any change gives is as good.
_AS_LONG = 0.6
#: Contexts are said in steps of so many tokens.
_STEP = 256
#: Weights of a group in most published checkpoints (AutoAWQ's, GPTQModel's and llm-compressor's default).
_USUAL_GROUP = 128
#: Cards of one machine.
_CARDS = (1, 2, 4, 8)
#: Widths that are tried of a format of any bits a weight.
_WIDTHS = (8, 6, 5, 4.5, 4, 3.5, 3, 2.5)
_DTYPES = ("bfloat16", "float16", "float32")
#: Kinds that are changed by themselves only.
_ALONE = frozenset({"kv_cache_dtype", "dtype", "engine_version", "context", "concurrency", "request_rate"})
#: Options that change what is lost.
_OF_QUALITY = frozenset({"weights", "kv_cache_dtype", "model"})
#: Shares of the requests a second that are served which a rate is lowered to.
_LESS = (0.95, 0.9, 0.8, 0.65, 0.5)
#: Cards whose memories differ by no more than this share are of one size.
_ALIKE = 0.05
#: Cards that are named in place of another, smallest first: those of desktops, and those that most clouds rent (targets/clouds.jsonl).
_DESKTOP_CARDS = ("RTX 3060 12GB", "RTX 4060 Ti 16GB", "RTX 3090", "RTX 4090", "RTX 5090")
_SERVER_CARDS = (
    "T4", "L4", "A10G", "L40S", "A100 SXM4 80GB", "H100 SXM", "RTX PRO 6000 Blackwell Server", "H200 SXM", "B200 SXM",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Remedy:
    """A change that makes a model fit: its kind, the options of `check` with their values, and both in words."""

    knob: str
    options: Options
    message: str


def keeps_anything(question: Question, outcome: Outcome, quality: Quality) -> bool:
    """Return True: nothing is asked besides fitting."""
    return True


@dataclass(frozen=True, slots=True)
class Kept:
    """What a remedy must keep besides fitting: what the test says, and the odds of fitting. `goals`: by which the rule chooses among
    settings. `quality`: where a plan knows it, of the question as it is asked; `as_given`: what is lost counts from the model as it is
    given.
    """

    test: Keeps = keeps_anything
    odds: float = LIKELY
    goals: Goals | None = None
    quality: Quality | None = None
    as_given: bool = False

    def quality_of(self, question: Question, options: Options) -> Quality:
        """Return what a changed question is expected to lose."""
        if self.quality is not None and not _OF_QUALITY & options.keys():
            return self.quality
        return quality_of(question, options, as_given=self.as_given)


#: Nothing besides fitting.
_BARE = Kept()


@dataclass(frozen=True, slots=True)
class Trial:
    """A question whose options are changed, and what must be kept: the one test of every remedy."""

    question: Question
    kept: Kept = _BARE

    def fits(self, options: Options) -> bool:
        """Tell whether the memory does, with the odds that a remedy must have."""
        return self._likely(changed(self.question, options).outcome())

    def does(self, options: Options) -> bool:
        """Tell whether it fits, loses no more than anybody would accept, and keeps all that is asked."""
        question, quality = changed(self.question, options), self.kept.quality_of(self.question, options)
        loss = growth(quality.log_ppl_increase.value)
        if loss > FLOOR and loss > growth(self.kept.quality_of(self.question, {}).log_ppl_increase.value):
            return False
        outcome = question.outcome()
        return self._likely(outcome) and self.kept.test(question, outcome, quality)

    def settled(self, tries: Sequence[Options]) -> Options | None:
        """Return what a plan would take of options that differ in settings: the rule's choice of those that do; None where none does."""
        from planner.choice.judging.questioned import Asked, chosen_of

        asked = []
        for options in tries:
            question = changed(self.question, options)
            if self._likely(outcome := question.outcome()):
                quality = self.kept.quality_of(self.question, options)
                asked.append(Asked(options, question, outcome, quality))
        while asked:
            best = chosen_of(asked, self.kept.goals) if len(asked) > 1 else asked[0]
            if self.does(best.options):
                return best.options
            asked.remove(best)
        return None

    def _likely(self, outcome: Outcome) -> bool:
        return outcome.fits and outcome.odds >= self.kept.odds


def likely(outcome: Outcome) -> bool:
    """Tell whether an outcome fits with odds that any remedy must have."""
    return outcome.fits and outcome.odds >= LIKELY


def changed(question: Question, options: Options) -> Question:
    """Return the question with options of `check` at other values; another `model` is a published checkpoint of its own."""
    if (name := options.get("model")) is None:
        return question.changed(options)
    from planner.choice.space.published import description

    made = next(each for each in published_of(question.model.name) if each.id == name)
    served = description(question.model, made)
    assert served is not None, f"{name} is no checkpoint that can be described"
    rest = {key: value for key, value in options.items() if key != "model"}
    return replace(question, model=served, file=None).changed(rest)


def quality_of(question: Question, options: Options, *, as_given: bool = False) -> Quality:
    """Return what a changed question is expected to lose against the model that was asked about, by default with what that lost before."""
    after = changed(question, options)
    if (name := options.get("model")) is None:
        return (expected_quality if as_given else loss_since_origin)(after.dense, after.chain)
    from planner.choice.space.published import published_quality

    made = next(each for each in published_of(question.model.name) if each.id == name)
    return published_quality(question.dense, made, after.chain)


def remedies(question: Question, outcome: Outcome, kept: Kept = _BARE) -> tuple[Remedy, ...]:
    """Return the first change of each kind that makes the model fit and keeps what is asked.

    Where something is refused, each kind is tried as asked, and together with what takes the refusals away.
    """
    if not outcome.modelled:
        return ()
    trial = Trial(question, kept)
    found = list(_found(trial, outcome, {}))
    if legal := _legal(question, outcome):
        mended = Trial(changed(question, legal), kept)
        found += (
            [_remedy("legal", trial, legal, {})]
            if trial.does(legal)
            else _found(mended, mended.question.outcome(), legal)
        )
    least = {frozenset(each.options.items()): each for each in reversed(found)}
    return tuple(each for own, each in reversed(least.items()) if not any(less < own for less in least))


def surer(question: Question, kept: Kept) -> tuple[Remedy, ...]:
    """Return the settings with which a model that fits does so surely, as a plan would take them; none where no settings do."""
    trial = Trial(question, replace(kept, odds=SURE))
    return tuple(_remedy("settings", trial, options, {}) for options in _first(trial, "settings", _settings))


def first_that_keeps(question: Question, outcome: Outcome, kept: Kept) -> Remedy | None:
    """Return the first change of any kind that makes the model fit and keeps what is asked."""
    return next(_found(Trial(question, kept), outcome, {}), None) if outcome.modelled else None


def mends(question: Question, outcome: Outcome, reason: Reason) -> Options | None:
    """Return the options that take one reason away and bring no other; None where no change of one kind does."""

    def goes(options: Options) -> bool:
        after = changed(question, options).outcome()
        return after.codes <= outcome.codes - {reason.code} and (bool(after.codes) or likely(after))

    told = (reason.options,) if reason.options else ()
    changes = itertools.chain(told, *(kind(question) for kind in _kinds(Trial(question), outcome).values()))
    return next((options for options in changes if goes(options)), None)


def said_to_mend(question: Question, outcome: Outcome, reason: Reason, whole: Sequence[Remedy]) -> str | None:
    """Return, as written on the command line, what takes a reason away: of too little memory the first remedy, of a refusal its least
    change, else the first remedy; None where nothing does.
    """
    if not outcome.modelled:
        return None
    first = next((remedy.options for remedy in whole), None)
    short = reason.kind is ReasonKind.TOO_LARGE
    options = (first if short else None) or mends(question, outcome, reason) or first
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
    for knob, kind in _kinds(trial, outcome).items():
        for options in _first(trial, knob, kind):
            yield _remedy(knob, trial, options, before)
    for other in _engines(question):
        if find_engine(other["engine"]).archived is not None:
            continue  # is weighed for the format that was named, not for another
        for options in _first(Trial(question.changed(other), trial.kept), "weights", _formats):
            yield _remedy("engine", trial, {**other, **options}, before)


def _kinds(trial: Trial, outcome: Outcome) -> dict[str, Kind]:
    """The kinds of changes, what an expert tries first in front; a format that was named is kept where another engine reads it, and
    versions change only for what is refused.
    """
    question = trial.question
    kinds: dict[str, Kind] = {
        "settings": _settings, "dtype": _dtypes, "weights": _weights, "kv_cache_dtype": _caches,
        "concurrency": lambda q: _fewer(q, outcome), "context": lambda q: _shorter(Trial(q, trial.kept), outcome), "gpus": _cards,
        "gpu": lambda q: _other_cards(q, outcome), "request_rate": lambda q: _slower(q, outcome), "engine": _engines,
    }  # fmt: skip
    versions: dict[str, Kind] = {"engine_version": _versions} if outcome.illegal else {}
    named: dict[str, Kind] = {"engine": _engines} if question.weights else {}
    return {**named, **versions, **kinds}


def _first(trial: Trial, knob: str, kind: Kind) -> Iterator[Options]:
    """The first change of a kind that does, by itself or beside settings and half the cache's bits; for weights, a context too. Of settings
    those that a plan would take, and where none holds all requests fewer at once.
    """
    question, alone = trial.question, knob in _ALONE
    if knob == "settings":
        found = trial.settled(tuple(kind(question))) or trial.settled(tuple(_waiting(question)))
    else:
        settings: tuple[Options, ...] = ({},) if alone else ({}, *_settings(question))
        changes = (
            {**own, **cache}
            for own in kind(question)
            for cache in ({}, *(() if alone else _half_caches(changed(question, own))))
        )
        found = next((options for change in changes if (options := _with_settings(trial, change, settings))), None)
        if found is None and knob == "weights":
            found = _at_shorter_context(trial, [{**own, **settings[-1]} for own in kind(question)])
    if found is not None:
        yield found


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
    found = [({**own, "context": n}, n) for own in changes if (n := _longest(trial, own)) is not None]
    found = [(own, n) for own, n in found if n >= _USEFUL_CONTEXT]
    enough = min(_USEFUL_SHARE * trial.question.workload.context, _AS_LONG * max((n for _, n in found), default=0))
    return next((own for own, n in found if n >= enough and trial.does(own)), None)


def _remedy(knob: str, trial: Trial, options: Options, before: Options) -> Remedy:
    """A remedy by the options that were found, and those that were changed before."""
    after, told = changed(trial.question, options), []
    if _OF_QUALITY & options.keys():
        loss = growth(trial.kept.quality_of(trial.question, options).log_ppl_increase.value)
        told.append(f"perplexity about {100 * loss:+.1f} %")
    if "context" in options and (after.concurrency or 1) > 1:
        told.append(f"for each of {after.concurrency} requests at once")
    if (odds := after.outcome().odds) < SURE:
        told.append(f"fits with odds of {odds:.0%}")
    said = {**before, **options}
    return Remedy(knob, said, flags(said) + (f" ({'; '.join(told)})" if told else ""))


def _settings(question: Question) -> Iterator[Options]:
    """The engine's settings that leave the cache more room, as few as do."""
    knobs = question.engine.leaner(question.gpu, question.settings, question.workload)
    for size in range(1, len(knobs) + 1):
        yield from (dict(chosen) for chosen in itertools.combinations(knobs, size))


def _waiting(question: Question) -> Iterator[Options]:
    """As many requests at once as surely fit, so that the others wait: with the engine's defaults, and with the leanest settings."""
    if not question.concurrency or question.settings.max_num_seqs is not None:
        return
    for options in ({}, *itertools.islice(reversed(tuple(_settings(question))), 1)):
        outcome = changed(question, options).outcome()
        at_once = 0 if outcome.used is None else min((outcome.concurrency or 1) - 1, running_at_once(outcome.memory))
        if at_once >= 1 and options.get("max_num_seqs", math.inf) > at_once:
            yield {**options, "max_num_seqs": at_once}


def _caches(question: Question) -> Iterator[Options]:
    """The engine's other types of the cache, best quality first, that the model can have."""
    for name in question.engine.kv_dtypes:
        if name != question.kv_cache_dtype and not rewrite(question.model, chain_of(None, name))[1]:
            yield {"kv_cache_dtype": name}


def _half_caches(question: Question) -> Iterator[Options]:
    """The first type of the cache with about half the bits that the card and the engine take, which goes beside other changes."""
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
    yield from _formats(question)


def _published(question: Question) -> Iterator[Options]:
    """Published checkpoints of a model that is asked about as it was released, what loses least first."""
    from planner.choice.space.published import as_released, description

    if question.weights is not None or question.file is not None or not as_released(question.model):
        return

    made = (each.id for each in published_of(question.model.name) if description(question.model, each) is not None)
    changes: list[Options] = [{"model": name} for name in made]
    yield from sorted(changes, key=lambda own: quality_of(question, own).log_ppl_increase.value)


def _formats(question: Question) -> Iterator[Options]:
    """Other formats of the weights that the engine weighs: the asked format's own kind first, groups of the common size, then what loses
    least.
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
    form = format_named(name)
    return form is None or form.group_size <= 0 or form.group_size == _USUAL_GROUP


def _engines(question: Question) -> Iterator[Options]:
    """Other engines for this card; one that nobody maintains only for a format that was named."""
    for name in ENGINE_NAMES:
        other = find_engine(name)
        useful = name != question.engine_name and (other.archived is None or question.weights is not None)
        if useful and other.weighed_on(question.gpu):
            yield {"engine": name}


def _versions(question: Question) -> Iterator[Options]:
    """The engine's known versions, newest first."""
    known = reversed(question.engine.known_versions())
    yield from ({"engine_version": version} for version in known if version != question.settings.version)


def _shorter(trial: Trial, outcome: Outcome) -> Iterator[Options]:
    """The longest context that fits, where it fits at all."""
    if outcome.memory.memory.kv_cache.value > 0 and (context := _longest(trial, {})) is not None:
        yield {"context": context}


def _longest(trial: Trial, options: Options) -> int | None:
    """The longest context below the asked one that fits with the odds that a remedy must have, in steps of 256 tokens."""
    question, bare = trial.question, Trial(trial.question, Kept(odds=trial.kept.odds))
    least = (question.input_tokens or 0) + (question.output_tokens or 0)
    low, high = 0, (question.workload.context - 1) // _STEP
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if bare.fits({**options, "context": middle * _STEP}) else (low, middle - 1)
    useful = min(_USEFUL_CONTEXT, question.workload.context // 2)
    return low * _STEP if low * _STEP >= max(least, useful, _STEP) else None


def _fewer(question: Question, outcome: Outcome) -> Iterator[Options]:
    """As many clients as are surely served at once, where all are half of them; then halves, which are served faster."""
    at_once = outcome.at_once * question.settings.parallel.dp
    if question.concurrency and at_once >= 1:
        clients = int(at_once) if at_once < question.concurrency else question.concurrency >> 1
        yield from ({"concurrency": clients >> halved} for halved in range(clients.bit_length()))


def _slower(question: Question, outcome: Outcome) -> Iterator[Options]:
    """Fewer requests a second than are served at most, where they come at a rate."""
    if question.load.rate is None or not outcome.fits:
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
    yield from ({"gpu": card.name} for card in cards if card.name != own.name and card.memory_bytes.value >= least)


def _of_desktop(card: Gpu) -> bool:
    """Whether a card is a GeForce by its name."""
    return card.name.startswith("RTX ") and card.name[4].isdigit() and "Ada" not in card.name
