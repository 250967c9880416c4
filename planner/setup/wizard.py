"""A spec from a few answers: the model, the card, and what it is used for. Who asks is the caller's matter."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import field, replace
from functools import partial
from typing import Any

import yaml

from passes.errors import InputError, nearest
from passes.ir import catalog
from passes.ir.names import find, unknown_model, writes_nothing
from passes.ir.purpose import purpose_told
from passes.ir.readers.paths import path_named
from passes.ir.yaml_places import read_yaml
from passes.record import dataclass
from planner.spec.parse import parse_spec
from planner.spec.parts.goals import DECODED, PREFERENCES, Goals
from planner.spec.template import TEMPLATE
from planner.spec.units import as_typed_tokens, with_unit
from targets.cards import find_cards
from targets.gpu import all_gpus, find_gpu
from targets.machine.devices import installed_gpus


@dataclass(frozen=True, slots=True)
class Use:
    """What a served model is used for: a workload, and what people then expect of it, as a spec says it. The figures are assumptions of
    usual loads, to be changed.
    """

    said: str
    context: str
    concurrency: str
    input_tokens: str
    output_tokens: str
    goals: Mapping[str, str]
    shared_prefix: str = "0"
    why: str = "What people usually expect of this use: change it to what yours do."
    """Of the goals, for who reads the spec."""
    alone: str | None = None
    """Requests at once on a card that is one person's own."""


_QUALITY = "max_perplexity_increase"
USES: Mapping[str, Use] = {
    "chat": Use(
        "people who talk to it", "8192", "4", "2000", "400",
        {"ttft": "10 s", "decode": "8 tok/s", _QUALITY: "10%", "prefer": "quality"},
        why="The least that a first try should keep: text as fast as it is read (5 to 8 tok/s), at most what 4 bits lose; as quality is\n"
        "# preferred, a plan keeps more where there is room. A service asks for more, such as ttft: 2 s and decode: 20 tok/s.",
        alone="2",
    ),
    "documents": Use(
        "long texts, read one or two at a time", "32768", "2", "16000", "600",
        {"ttft": "20 s", "decode": "15 tok/s", _QUALITY: "5%", "prefer": "quality"},
    ),
    "batch": Use(
        "many requests that nobody waits for", "8192", "auto", "2000", "400",
        {_QUALITY: "5%", "prefer": "throughput"},
    ),
    "agents": Use(
        "programs that call it in long turns with the same beginning", "32768", "4", "8000", "400",
        {"ttft": "4 s", "decode": "25 tok/s", _QUALITY: "3%", "prefer": "quality"}, "50%",
    ),
}  # fmt: skip
#: The same of a model that embeds or ranks, of which no speed of decoding is asked.
_EMBEDS = (
    "It writes no text: the time to the first token is that of the whole answer. Change the goals to what yours do."
)
#: Memory of all cards together up to which they are taken for one person's own, in bytes: a desktop card of 16 GB.
_OWN_CARD = 16 << 30
#: Units of goals that are typed as bare numbers; `check` takes them so, too.
_UNITS = {"ttft": " ms", "tpot": " ms", "decode": " tok/s", "throughput": " tok/s", _QUALITY: "%"}
#: What a spec is written for where nothing is named.
USUAL = "chat"
_MODEL, _GPU = "Qwen/Qwen2.5-7B-Instruct", "rtx-4090"


@dataclass(frozen=True, slots=True)
class Answers:
    """What was answered, as it was typed; None: not yet."""

    model: str | None = None
    gpu: str | None = None
    """A card, or several: `2 x L40S`."""
    use: str | None = None
    context: str | None = None
    concurrency: str | None = None
    goals: Mapping[str, str] = field(default_factory=dict)
    """In place of the usual ones: `ttft`, `tpot`, `decode`, `throughput`, `max_perplexity_increase`, `prefer`; `none` leaves one out."""

    def said(self, name: str) -> str | None:
        """Return the answer to a question; None: not yet."""
        said: str | None = self.goals.get(name) if name in _GOALS else getattr(self, name)
        return said

    def with_answer(self, name: str, said: str | None) -> Answers:
        """Return these with another answer; None takes one back."""
        if name not in _GOALS:
            answer: dict[str, Any] = {name: said}
            return replace(self, **answer)
        others = {goal: value for goal, value in self.goals.items() if goal != name}
        return replace(self, goals=others if said is None else {**others, name: said})


@dataclass(frozen=True, slots=True)
class Question:
    """A question: which answer it fills, its words, the answer that Enter gives, the answers that Tab completes, and what refuses one."""

    field: str
    words: str
    usual: str
    choices: tuple[str, ...]
    check: Callable[[str], object]


#: Answers to a question that are none: back to the one before, no such goal.
BACK, NONE = "<", "none"
#: Goals of a use in the order in which they are asked for, with their words.
_GOALS: Mapping[str, str] = {
    "ttft": "First token within, or none", "decode": "Tokens a second of each request, or none",
    _QUALITY: "Perplexity may rise by, or none", "prefer": "Among what meets these, prefer",
}  # fmt: skip


def questions(answers: Answers) -> tuple[Question, ...]:
    """Return all that may be asked: goals are those of the use that was answered, of a model that writes. `gpu` is taken from NVML where
    the machine has a card.
    """
    use = USES[answers.use or USUAL]
    asked = (
        Question("model", "Model (Tab completes)", _MODEL, models(), known_model),
        Question("gpu", "Card, or several: 2 x L40S", usual_card(), cards(), _cards),
        Question("use", f"Used for: {', '.join(USES)}", USUAL, tuple(USES), _use),
        Question("context", "Longest conversation, in tokens", use.context, (), _tokens),
        Question("concurrency", "Requests at once, or auto", _clients(use, answers.gpu), ("auto",), _clients_said),
    )
    writes = purpose_told(answers.model or _MODEL).writes
    goals = {name: usual for name, usual in use.goals.items() if writes or name not in DECODED}
    return (
        *asked,
        *(
            Question(name, _GOALS[name], goals[name], _choices(name), partial(_goal, name))
            for name in _GOALS
            if name in goals
        ),
    )


def _choices(goal: str) -> tuple[str, ...]:
    return PREFERENCES if goal == "prefer" else (NONE,)


def _clients_said(said: str) -> object:
    return said == "auto" or _count(said)


def _goal(name: str, said: str) -> object:
    """What a goal says. Raises InputError where it says none."""
    return said == NONE or Goals(**read_yaml(_written({name: said}), name)[1])


def ask_all(given: Answers, ask: Callable[[Question], str], say: Callable[[str], None]) -> Answers:
    """Ask what is not given, each until it is answered with something that can be; `<` goes back to the question before. Raises InputError
    for what is given and cannot be.
    """
    for asked in questions(Answers()):
        if (said := given.said(asked.field)) is not None:
            asked.check(said)
    answers = given
    gone: list[str] = []  # those that were asked, the last one last
    while (question := _next(answers)) is not None:
        said = ask(question).strip() or question.usual
        if said == BACK:
            if gone:
                answers = answers.with_answer(gone.pop(), None)
            else:
                say("this is the first question")
            continue
        try:
            question.check(said)
        except InputError as error:
            say("\n  ".join(filter(None, (error.message, error.remedy))))
            continue
        answers = answers.with_answer(question.field, said)
        gone.append(question.field)
    return answers


def _next(answers: Answers) -> Question | None:
    return next((each for each in questions(answers) if answers.said(each.field) is None), None)


def spec_text(answers: Answers) -> str:
    """Write the spec of some answers; what is not answered is usual. Raises InputError for an answer that no spec takes."""
    use = USES[_use(answers.use or USUAL)]
    model = known_model(answers.model or _MODEL)
    gpu, count = _cards(answers.gpu or usual_card())
    context = str(_tokens(answers.context or use.context))
    prefix = "" if use.shared_prefix == "0" else f", shared_prefix: {use.shared_prefix}"
    writes, goals = purpose_told(model).writes, _goals(use, answers.goals)
    if not writes and (named := next((name for name in DECODED if name in answers.goals), None)):
        raise InputError(
            f"a goal on {named}: {model} writes no text", remedy="leave it out; ttft bounds how long an answer takes"
        )
    text = TEMPLATE.format(
        model=_scalar(model), gpu=_scalar(gpu), count=count, context=context, prefix=prefix,
        concurrency=answers.concurrency or _clients(use, answers.gpu), why=use.why if writes else _EMBEDS,
        lengths=f"input_tokens: {use.input_tokens}" + (f", output_tokens: {use.output_tokens}" if writes else ""),
        goals=_written({name: value for name, value in goals.items() if writes or name not in DECODED}, "  ") or "  {}",
    )  # fmt: skip
    if answers.concurrency not in (None, "auto") and not str(answers.concurrency).isdigit():
        raise InputError(
            f"concurrency {answers.concurrency!r} is no number", remedy="a whole number of requests, or auto"
        )
    parse_spec(text, "the answers")
    return text


def _clients(use: Use, said: str | None) -> str:
    """How many requests come at once, where nobody says: fewer on a small card."""
    cards = find_cards(_named(said or usual_card()))
    memory = cards.gpu.memory_bytes.value * (cards.count or 1)
    return use.alone if use.alone is not None and memory <= _OWN_CARD and not cards.gpu.is_cpu else use.concurrency


def _goals(use: Use, given: Mapping[str, str]) -> dict[str, str]:
    """What a use expects, with what is given in its place; what is preferred stands last."""
    goals = {name: value for name, value in {**use.goals, **given}.items() if value != NONE}
    return {name: goals[name] for name in sorted(goals, key=lambda name: (name == "prefer", name == _QUALITY))}


def _written(goals: Mapping[str, str], before: str = "") -> str:
    """Goals as lines of a spec."""
    said = {name: with_unit(value, _UNITS[name]) if name in _UNITS else value for name, value in goals.items()}
    return "\n".join(
        f"{before}quality: {{ {name}: {value} }}" if name == _QUALITY else f"{before}{name}: {value}"
        for name, value in said.items()
    )


def _scalar(text: str) -> str:
    """A text as YAML reads it back as text: `4090` in quotes."""
    return text if yaml.safe_load(text) == text else json.dumps(text)


def models() -> tuple[str, ...]:
    """Return the models that complete an answer."""
    return tuple(sorted(catalog.ids()))


def cards() -> tuple[str, ...]:
    """Return the cards that complete an answer."""
    return tuple(card.name for card in all_gpus())


def known_model(name: str) -> str:
    """Return a model's name. Raises InputError where it is neither a catalog name, a file or folder, nor a Hub id."""
    if "/" in name or path_named(name).exists() or find(name) is not None:
        return name
    raise unknown_model(name)


def doubt(name: str | None) -> str | None:
    """Say, in one line, that a Hub id is not in the catalog and which ones there are nearest to it; None where nothing is close."""
    if name is None or "/" not in name or path_named(name).exists() or find(name) is not None:
        return None
    if writes_nothing(name):
        return unknown_model(name).message
    bare = {known.rsplit("/", 1)[-1]: known for known in models()}
    close = [bare[match] for match in nearest(name.rsplit("/", 1)[-1], bare)]
    return f"{name} is not in the catalog; close to it: {', '.join(close)}" if close else None


def _use(name: str) -> str:
    if name not in USES:
        said = "; ".join(f"{key}: {use.said}" for key, use in USES.items())
        raise InputError(f"unknown use {name!r}", remedy=said)
    return name


def usual_card() -> str:
    """Return the card that a spec is for where nobody names one: this machine's, else (none, or ones that a spec cannot name) one that many
    have.
    """
    found = _installed()
    try:
        return _GPU if found is None or not _cards(found) else found
    except InputError:
        return _GPU


def _installed() -> str | None:
    """This machine's cards; None where NVML and the driver list none."""
    here = installed_gpus()
    return " + ".join(here) or None


def _named(said: str) -> str:
    """What was said, `auto` as this machine's cards. Raises InputError where none is found."""
    if said != "auto":
        return said
    found = _installed()
    if found is None:
        raise InputError(
            "auto: no card is found here, NVML and the driver list none",
            remedy="name the card that it is for (--gpu rtx-4090, --gpu 24GB; `optimize targets` lists them), or --gpu cpu for this "
            "machine's processor",
        )
    return found


def _cards(said: str) -> tuple[str, int]:
    """A card and how many of it, of whatever `check --gpu` takes: `2 x L40S`, `L4:1`, `p4d.24xlarge`. Raises InputError for unlike cards,
    which a spec does not name.
    """
    named = _named(said.strip())
    found = find_cards(named)
    if found.count is None:
        return named, 1
    name = found.gpu.name
    if replace(find_gpu(name), note=None) != replace(found.gpu, note=None):
        raise InputError(
            f"{said!r} are unlike cards, and a spec names one",
            remedy=f"write {found.count} x {name}, the least of them",
        )
    return name, found.count


def _tokens(said: str) -> int:
    """A number of tokens: `8192`, `32k`, `1m`."""
    return _count(str(as_typed_tokens(said)).strip())


def _count(said: str) -> int:
    if not said.isdigit() or not int(said):
        raise InputError(f"{said!r} is no number", remedy="a whole number, 1 or more")
    return int(said)
