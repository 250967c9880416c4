"""From what `check` is given (options, a pasted command, a spec, a plan or a result) to the question, and its answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import field, replace
from functools import cache
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from passes.errors import InputError, Reason, TightfitError
from passes.ir.model import ModelIR
from passes.ir.purpose import purpose
from passes.ir.sources import Source, open_model
from passes.record import dataclass
from planner.check import CheckResult, answer, to_make
from planner.checking.terms import Terms
from planner.choice.demand import joined, limits_of
from planner.choice.question import Load, Question, is_limit, limits_named
from planner.quality.expected import Quality, expected_quality
from planner.spec.arguments import is_file
from planner.spec.units import with_unit
from targets.cards import Cards, find_cards
from targets.engines.engine import DEFAULT_ENGINE, ENGINE_NAMES, MOST_CARDS, Parallel, Settings, find_engine
from targets.gpu import SharedNameError, find_gpu
from targets.workload import RampUp

if TYPE_CHECKING:
    from planner.spec.parts.goals import Goals
    from planner.spec.parts.target import Target
    from planner.spec.spec import Spec
    from targets.engines.pasted import Pasted
    from targets.machine.live import LiveMachine

Options = Mapping[str, Any]

#: Options that are fields of the settings, by their names there.
_SETTINGS = {
    "engine_version": "version", "gpu_memory_utilization": "gpu_memory_utilization", "max_num_seqs": "max_num_seqs",
    "max_num_batched_tokens": "max_num_batched_tokens", "block_size": "block_size", "kv_cache_memory": "kv_cache_memory_bytes",
    "enforce_eager": "enforce_eager", "reserve": "reserve_bytes", "dtype": "dtype",
}  # fmt: skip
#: Words of the longest names of cards, beside the first.
_WORDS_OF_CARD = 4
#: Goals by the options that set them, with the unit of a bare number.
_GOALS = {"ttft": " ms", "tpot": " ms", "decode": " tok/s", "throughput": " tok/s"}
#: Options that change what a plan knows of its quality.
_OF_QUALITY = frozenset({"model", "weights", "kv_cache_dtype", "engine"})
#: Files that are plans, and specs.
_PLAN, _SPECS = ".json", (".yaml", ".yml")


#: Settings at their defaults, and a load that takes as many requests as steady figures do.
_PLAIN, _STEADY = Settings(), Load()
#: Options that say how a rate grows, and those that make a new load.
_RAMP_UP = ("ramp_up_strategy", "ramp_up_start_rps", "ramp_up_end_rps")
_OF_A_LOAD = {"num_prompts", "request_rate", "goodput", "max_concurrency", "concurrency_ramp_duration", *_RAMP_UP}
#: Of even lengths between 1 - R and 1 + R, 95 of 100 are no more than 1 + this times R.
_TO_P95 = 0.9


@dataclass(frozen=True, slots=True)
class Subject:
    """What is checked, before the options of the command line are laid over it. None: not said. `as_given`: goals on quality are on what is
    done to the model as it is given, as a plan's are, and not on what it lost before. `target`: a spec's, whose cards are joined so.
    """

    model: str | None = None
    source: Source | None = None
    gpu: str | Mapping[str, Any] | None = None
    target: Target | None = None
    cards: int | None = None
    engine: str | None = None
    settings: Settings = _PLAIN
    context: int | None = None
    longest: bool = False
    concurrency: int | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    weights: str | None = None
    kv_cache_dtype: str | None = None
    load: Load = _STEADY
    goals: Goals | None = None
    min_confidence: float | None = None
    quality: Quality | None = None
    as_given: bool = False
    refused: tuple[Reason, ...] = ()
    refused_in: Callable[[str | None], tuple[Reason, ...]] | None = None
    notes: tuple[str, ...] = field(default=())


def checked(words: Sequence[str], options: Options, *, live: bool = False) -> tuple[CheckResult, LiveMachine | None]:
    """Return the answer, and this machine where it was looked at. `words`: what stands without an option's name, and flags of vLLM (limits
    in front belong to goodput, where that is given); `options`: of `check`, those that were given. Raises InputError.
    """
    if "goodput" in options:
        limits = list(takewhile(is_limit, words))
        words, options = words[len(limits) :], {**options, "goodput": [*options["goodput"], *limits]}
    _require_whole_name(options.get("gpu"), words)
    subject = _subject(words, options)
    machine = _machine(live, options, subject)
    cards = _cards(options, subject, machine)
    question, notes = _question(subject, options, cards)
    terms = Terms(
        _goals(options, subject.goals), options.get("min_confidence", subject.min_confidence), subject.as_given
    )
    question = _promised(question, terms)
    own = subject.quality if not _OF_QUALITY & options.keys() else None
    if own is None and subject.as_given:
        own = expected_quality(question.dense, question.chain)
    result = answer(question, terms, (*subject.notes, *notes), own)
    if machine is None:
        return result, None
    from planner.checking.live import on_machine

    return on_machine(result, question, machine), machine


def _require_whole_name(gpu: object, words: Sequence[str]) -> None:
    """Refuse a card's name whose other words stand behind it: `--gpu H100 PCIe` without quotes would be another card."""
    if not isinstance(gpu, str):
        return
    for count in range(min(len(words), _WORDS_OF_CARD), 0, -1):
        name = " ".join((gpu, *words[:count]))
        if not any(word.startswith("-") for word in words[:count]) and _names_card(name):
            raise InputError(
                f"--gpu takes one word, and {' '.join(words[:count])!r} stands behind {gpu!r}",
                remedy=f"quote the card's name: --gpu {name!r}",
            )


def _names_card(name: str) -> bool:
    try:
        find_gpu(name)
    except SharedNameError:
        return True
    except TightfitError:
        return False
    return True


def _promised(question: Question, terms: Terms) -> Question:
    """The question with the goals on a request's own speed as promises to its users, where it is of several and makes no others: how many
    are served so is told then.
    """
    load = question.load
    several = (question.concurrency or 1) > 1 or load.rate is not None or load.trace is not None
    if load.limits or terms.goals is None or not several:
        return question
    return replace(question, load=replace(load, limits=limits_of(terms.goals)))


def _subject(words: Sequence[str], options: Options) -> Subject:
    """What the words stand for: a file, a folder, a command, or flags of a server beside the options."""
    path = Path(words[0]) if words and not words[0].startswith("-") else None
    if path is not None and (path.suffix in (*_SPECS, _PLAN) or is_file(path / "plan.json")):
        flags = _of_command(words[1:], options) if len(words) > 1 else Subject()
        return _over(_of_file(path), flags)
    return _of_command(words, options) if words else Subject()


def _over(below: Subject, above: Subject) -> Subject:
    """A subject with what another one says laid over it."""
    plain = Subject()
    said = {
        name: getattr(above, name)
        for name in Subject.__dataclass_fields__
        if getattr(above, name) != getattr(plain, name)
    }
    return replace(below, **said)


def _of_command(words: Sequence[str], options: Options) -> Subject:
    """What a pasted command, or flags beside the options, ask for: those of the engine that is meant where none is named."""
    engine = find_engine(DEFAULT_ENGINE)

    def of_version(version: str | None) -> Pasted | None:
        return engine.pasted(words, _option_names(), version, options.get("model"))

    @cache
    def refused_in(version: str | None) -> tuple[Reason, ...]:
        try:
            other = of_version(version)
        except InputError as error:
            return (Reason("flag_not_in_version", str(error)),)
        return other.reasons if other else ()

    if (read := of_version(options.get("engine_version"))) is None:
        return Subject()
    return Subject(
        model=read.model, source=read.source, cards=read.cards, engine=engine.name if read.whole else None, settings=read.settings,
        context=read.context, longest=read.longest, weights=read.weights, kv_cache_dtype=read.kv_cache_dtype,
        refused=read.reasons, refused_in=refused_in, notes=read.notes,
    )  # fmt: skip


def _option_names() -> tuple[str, ...]:
    return tuple(
        f"--{name.replace('_', '-')}"
        for name in (*_SETTINGS, *_GOALS, "model", "gpu", "engine", "gpus", "context", "weights")
    )


def _of_file(path: Path) -> Subject:
    """What a spec asks, its model as it is stored; or what a plan or result chose."""
    if path.suffix in _SPECS:
        from planner.spec.parse import load_spec

        return _of_spec(load_spec(path))
    from planner.plan.document import moved_plan, spec_of
    from planner.plan.saved import PLAN, load_plan, read_plan

    plan = read_plan(path / PLAN) if path.is_dir() else load_plan(path)
    finished = path.is_dir() and plan.places is None  # else it names what is served as it is
    chosen = plan.decision
    at_load = any(pass_.load_time for pass_ in chosen.chain)
    model = str(path) if finished else chosen.published
    spec = spec_of(moved_plan(plan, {"model": path}) if finished else plan)
    subject = _of_spec(spec, model)
    settings = replace(chosen.settings.settings, version=chosen.engine.version, reserve_bytes=spec.target.reserve)
    chosen_clients = chosen.capacity.clients if chosen.capacity and spec.workload.concurrency == "auto" else None
    return replace(
        subject, settings=settings, engine=chosen.engine.name, concurrency=chosen_clients or subject.concurrency,
        cards=chosen.settings.gpus, weights=chosen.weights if at_load or not finished else None, kv_cache_dtype=chosen.kv_cache_dtype,
        min_confidence=None, quality=chosen.quality,
    )  # fmt: skip


def _of_spec(spec: Spec, model: str | None = None) -> Subject:
    """What a spec asks; of another model, where one is named in its place."""
    workload = spec.workload.asked
    named = None if isinstance(spec.engine, str) else spec.engine
    name = spec.engine if isinstance(spec.engine, str) else spec.engine.name
    settings = Settings(reserve_bytes=spec.target.reserve)
    if named is not None:
        own = named.settings
        settings = replace(
            settings, version=named.version, gpu_memory_utilization=own.gpu_memory_utilization, max_num_seqs=own.max_num_seqs,
            max_num_batched_tokens=own.max_num_batched_tokens, enforce_eager=own.enforce_eager, block_size=own.block_size,
            kv_cache_memory_bytes=own.kv_cache_memory,
        )  # fmt: skip
    gpu = spec.target.gpu if isinstance(spec.target.gpu, str) else spec.target.gpu.model_dump(exclude_none=True)
    source = open_model(model or spec.model, revision=None if model else spec.revision, assume=spec.assume)
    return Subject(
        model=model or spec.model, source=source, gpu=gpu, target=spec.target, cards=spec.target.cards,
        engine=None if name == "auto" else name, settings=settings, context=workload.context, concurrency=workload.concurrency,
        input_tokens=workload.input_tokens, output_tokens=workload.output_tokens,
        load=Load.of(workload),
        goals=spec.goals, min_confidence=spec.goals.fit_confidence, as_given=True,
    )  # fmt: skip


def _machine(live: bool, options: Options, subject: Subject) -> LiveMachine | None:
    """This machine, where it is to be looked at: when asked, or when nobody names a card."""
    named = options.get("gpu") or subject.gpu
    if not live and named not in (None, "auto"):
        return None
    from targets.machine.live import look

    machine = look()
    if not live and not machine.cards:
        raise InputError(
            "no card is named, and this machine has none"
            + (f" that answers: {machine.silent}" if machine.silent else ""),
            remedy="name it: optimize check --gpu 'RTX 4090' …; cpu is this machine's processor, `optimize targets` lists the cards",
        )
    return machine if live else None


def _cards(options: Options, subject: Subject, machine: LiveMachine | None) -> Cards:
    """The cards that are meant: as named, else this machine's."""
    named = options.get("gpu", subject.gpu)
    if machine is not None and "gpu" not in options:
        from planner.checking.live import cards_of

        return cards_of(machine, _wanted(options, subject), named)
    if isinstance(named, Mapping):
        from targets.gpu import inline_gpu

        return Cards(inline_gpu(named))
    if named in (None, "auto"):
        from planner.checking.live import cards_of
        from targets.machine.live import look

        return cards_of(look(), _wanted(options, subject), None)
    return find_cards(str(named))


def _wanted(options: Options, subject: Subject) -> int:
    """How many cards the degrees ask for."""
    parallel = subject.settings.parallel
    return int(
        options.get("gpus")
        or options.get("tp", parallel.tp) * options.get("pp", parallel.pp) * options.get("dp", parallel.dp)
    )


def _question(subject: Subject, options: Options, cards: Cards) -> tuple[Question, tuple[str, ...]]:
    model = options.get("model", subject.model)
    source = subject.source if "model" not in options or (subject.source and model == subject.model) else None
    if source is None:
        if model is None:
            raise InputError(
                "what is to be checked is not said",
                remedy="optimize check --model MODEL --gpu CARD; or a spec, a plan, a result; or -- vllm serve MODEL …",
            )
        source = open_model(model)
    card = cards.gpu if subject.target is None or "gpu" in options else joined(subject.target, cards.gpu)
    engine = options.get("engine") or subject.engine or DEFAULT_ENGINE
    if not (options.get("engine") or options.get("gpu")) and card.is_cpu and engine == DEFAULT_ENGINE:
        engine = next(name for name in ENGINE_NAMES if find_engine(name).weighed_on(card))
    settings, notes = _settings(subject, options, cards)
    context = options.get("context", subject.context)
    longest = context == -1 or (subject.longest and "context" not in options)
    concurrency, at_once = options.get("concurrency", subject.concurrency), options.get("max_concurrency")
    if at_once is not None and not {"request_rate", *_RAMP_UP} & options.keys():
        if options.get("concurrency", 0) > at_once:
            message = f"--concurrency {concurrency} and --max-concurrency {at_once} of one closed loop"
            raise InputError(message, remedy="give one of them, or a --request-rate")
        concurrency, at_once = options.get("concurrency", at_once), None
    load = _alike(_load(subject.load, options, at_once), subject, options)
    question = Question(
        source.ir, card, engine, settings, None if context == -1 else context, concurrency,
        options.get("input_tokens", subject.input_tokens), _answer_tokens(source.ir, subject, options), load,
        to_make(options.get("weights", subject.weights), source.ir),
        options.get("kv_cache_dtype") or subject.kv_cache_dtype or "auto", source.as_stored, longest, subject.refused,
        subject.refused_in, (cards.count or 1) > 1 and "gpus" not in options,
    )  # fmt: skip
    return question, notes


def _answer_tokens(model: ModelIR, subject: Subject, options: Options) -> int | None:
    """Tokens of an answer as they are asked; the one step that reads the prompt, of a model that embeds it."""
    return options.get("output_tokens", subject.output_tokens) if purpose(model).writes else 1


def _load(below: Load, options: Options, at_once: int | None) -> Load:
    """How requests come by the options: a new load where one of them says so, of requests that are as they were."""
    load = below
    if _OF_A_LOAD & options.keys() or options.get("burstiness", 1.0) != 1.0:
        rate, ramp_up = _rate(options)
        load = replace(
            load, requests=options.get("num_prompts"), rate=rate, burstiness=options.get("burstiness", 1.0), at_once=at_once,
            ramp_up=ramp_up, ramp_s=options.get("concurrency_ramp_duration", 0.0), limits=limits_named(options.get("goodput", ())),
            trace=None,
        )  # fmt: skip
    if "input_tokens" in options:
        load = replace(load, input_p95=None, trace=None)
    if "output_tokens" in options:
        load = replace(load, output_p95=None, trace=None)
    return replace(load, pictures=0, picture_tokens=0) if "model" in options else load


def _rate(options: Options) -> tuple[float | None, RampUp | None]:
    """The requests a second, and how they grow to that, as `vllm bench serve` is told so. Raises InputError where a part is left out or
    said twice.
    """
    told = [options.get(name) for name in _RAMP_UP]
    if not any(each is not None for each in told):
        return options.get("request_rate"), None
    strategy, start, end = told
    if "request_rate" in options:
        message = "--request-rate and --ramp-up-… both say how many requests come a second"
        raise InputError(message, remedy="leave one of them out: a ramp ends at --ramp-up-end-rps")
    if strategy is None or start is None or end is None:
        message = "a ramp takes --ramp-up-strategy, --ramp-up-start-rps and --ramp-up-end-rps"
        raise InputError(message, remedy="add --ramp-up-strategy linear --ramp-up-start-rps 1 --ramp-up-end-rps 10")
    return float(end), RampUp(strategy, float(start))


def _alike(load: Load, subject: Subject, options: Options) -> Load:
    """A load with lengths that differ by `random_range_ratio` of their means to either side, as `vllm bench serve` draws random ones."""
    share = options.get("random_range_ratio")
    if share is None:
        return load
    asked, told = (options.get(name, getattr(subject, name)) for name in ("input_tokens", "output_tokens"))
    if asked is None or told is None or load.trace is not None:
        message = "--random-range-ratio is of lengths that are told by their means"
        raise InputError(message, remedy="add --input-tokens 1024 --output-tokens 128")
    p95 = 1 + _TO_P95 * share
    return replace(load, input_p95=round(asked * p95), output_p95=round(told * p95))


def _settings(subject: Subject, options: Options, cards: Cards) -> tuple[Settings, tuple[str, ...]]:
    """The settings with the options laid over them, and what is to be said of the cards."""
    own = subject.settings
    parallel = own.parallel
    given = options.get("gpus") or (cards.count if cards.count and cards.count > 1 else None) or subject.cards
    pp, dp = options.get("pp", parallel.pp), options.get("dp", parallel.dp)
    spread = parallel != Parallel() or (
        bool(subject.engine) and not subject.as_given
    )  # a command's degrees are all that it has
    tp = options.get("tp") or (parallel.tp if spread and "gpus" not in options else max(1, (given or 1) // (pp * dp)))
    used = tp * pp * dp
    if given and used > given:
        raise InputError(f"tp {tp} × pp {pp} × dp {dp} need {used} cards, not {given}", remedy="make them agree")
    if used > MOST_CARDS:
        message = f"{used:,} cards are more than are counted with ({MOST_CARDS:,}): tp {tp:,} × pp {pp:,} × dp {dp:,}"
        raise InputError(message, remedy="ask about one of the servers that share the load: --gpus 8, for instance")
    changes = {_SETTINGS[name]: value for name, value in options.items() if name in _SETTINGS}
    idle = (given or 0) - used
    notes = (f"{idle} of the {given} cards stay idle: tp × pp × dp is {used}",) if idle > 0 else ()
    spread_so = parallel.spread(tp, pp, dp)
    return replace(own, parallel=replace(spread_so, ep=options.get("ep", spread_so.ep)), **changes), notes


def _goals(options: Options, below: Goals | None) -> Goals | None:
    """The goals that options set, over those of a spec."""
    times = {name: with_unit(options[name], unit) for name, unit in _GOALS.items() if name in options}
    quality = {name: options[name] for name in ("max_perplexity_increase", "max_kl") if name in options}
    if not times and not quality:
        return below
    from pydantic import ValidationError

    from planner.spec.parts.goals import Goals

    if "max_perplexity_increase" in quality:
        quality["max_perplexity_increase"] = with_unit(quality["max_perplexity_increase"], "%")
    try:
        asked = Goals.model_validate({**times, **({"quality": quality} if quality else {})})
    except ValidationError as error:
        first = error.errors()[0]
        option = str(first["loc"][-1 if first["loc"][0] == "quality" else 0]).replace("_", "-")
        raise InputError(
            f"--{option}: {first['msg'].removeprefix('Value error, ')}",
            remedy="write times like 800ms, rates like 20 tok/s, shares like 3%",
        ) from None
    return (
        asked
        if below is None
        else below.model_copy(update={name: getattr(asked, name) for name in asked.model_fields_set})
    )
