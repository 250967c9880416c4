"""Reads a spec from YAML. Every error names file, line and column, what was expected, and a remedy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import AliasChoices, BaseModel, ValidationError
from pydantic.fields import FieldInfo

from passes.errors import InputError, Location, nearest
from passes.ir.fields import shown
from passes.ir.purpose import purpose_told
from passes.ir.readers.paths import path_named
from passes.ir.yaml_places import locate, read_yaml
from passes.text.source import refuse_missing_text
from planner.spec.arguments import file_named, public
from planner.spec.parts.choices import DistillChoice, PassesChoice
from planner.spec.parts.goals import DECODED
from planner.spec.parts.target import Target
from planner.spec.parts.values import Strict
from planner.spec.spec import Spec
from planner.spec.trace import read_trace
from targets.gpu import find_gpu
from targets.machine.devices import installed_gpus

#: No spec is longer, in characters.
_LONGEST = 1 << 16

#: What was expected, in the words of YAML; pydantic's are those of Python.
_WORDS = {
    "tuple_type": "should be a list, such as [a, b]", "list_type": "should be a list, such as [a, b]", "string_type": "should be text",
    "dict_type": "should be a mapping of keys to values", "model_type": "should be a mapping of keys to values",
    "model_attributes_type": "should be a mapping of keys to values", "int_type": "should be a whole number",
    "int_parsing": "should be a whole number", "int_from_float": "should be a whole number", "float_type": "should be a number",
    "float_parsing": "should be a number", "finite_number": "should be a finite number", "bool_type": "should be true or false",
    "bool_parsing": "should be true or false", "greater_than_equal": "should be {ge} or more", "greater_than": "should be more than {gt}",
    "less_than_equal": "should be {le} or less", "less_than": "should be less than {lt}", "literal_error": "should be one of {expected}",
}  # fmt: skip


@public
def load_spec(what: str | Path) -> Spec:
    """Read and check a spec. Raises InputError for anything that is wrong, naming the place."""
    file = file_named("the spec", what, "a file of YAML")
    try:
        with file.open(encoding="utf-8") as opened:
            text = opened.read(_LONGEST + 1)
    except FileNotFoundError:
        raise InputError(f"no spec at {file}", remedy="`optimize init` writes one to start from") from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read the spec {file}: {error}", remedy="name a readable YAML file") from None
    if len(text) > _LONGEST:
        raise InputError(f"{file} is longer than any spec", remedy="name the YAML file that `optimize init` began")
    node, value = read_yaml(text, str(file))
    return _whole(node, value, str(file), file.parent)


def as_spec(what: Spec | str | Path | Mapping[str, Any]) -> Spec:
    """Return the spec that a Python caller names: one, its file, or a mapping with the keys of one; paths in a mapping are relative to
    the current folder. Raises InputError for anything that is wrong.
    """
    if isinstance(what, Spec):
        return what
    if not isinstance(what, Mapping):
        return load_spec(file_named("the spec", what, "a file, a mapping with the keys of a spec, or a tightfit.Spec"))
    return _whole(None, dict(what), "the spec", Path())


def _whole(node: yaml.Node | None, value: Any, name: str, folder: Path) -> Spec:
    """The spec of plain values, paths relative to a folder. Raises InputError that tells all at once: keys and values that cannot be, and
    names that stand for nothing.
    """
    _refuse_no_mapping(value, name)
    try:
        spec = _resolve(Spec.model_validate(value), folder)
    except ValidationError as error:
        raise _together(
            [*_told(error, node, value, name, Spec), *_also_unknown(error, node, value, name, folder)]
        ) from None
    if wrong := _unknown(spec, node, name):
        raise _together(wrong)
    return _as_answered(spec)


#: What a spec cannot do without, as it stands in for what is missing or wrong while the names of the others are looked up.
_NEEDED: Mapping[str, Any] = {"model": "any", "target": {"gpu": "auto"}}
#: Keys whose values name something that there is a list of; the others only have to agree with each other.
_NAMING = ("model", "target", "engine", "passes", "launch")


def _also_unknown(
    error: ValidationError, node: yaml.Node | None, value: Mapping[str, Any], name: str, folder: Path
) -> list[InputError]:
    """What stands for nothing in the rest of a spec that is none yet."""
    rest = _without_wrong(value, error)
    try:
        return [] if rest is None else _unknown(_resolve(rest, folder), node, name)
    except InputError as unusable:  # a path that cannot be looked for
        return [unusable]


def _without_wrong(value: Mapping[str, Any], error: ValidationError) -> Spec | None:
    """The spec without what is wrong in it, for the names in the rest of it; None where nothing is left to look at."""
    rest = deepcopy(dict(value))
    for problem in _closest(error.errors(), value):
        place = _place(problem, value)
        _remove(rest, place[:-1] if problem["type"] == "missing" else place)
    naming = {key: rest[key] for key in _NAMING if key in rest}
    for left in ({**_NEEDED, **rest}, {**_NEEDED, **naming}):  # keys that are right may disagree when others are gone
        with suppress(ValidationError):
            return Spec.model_validate(left)
    return None


def _remove(value: Any, path: Sequence[Any]) -> None:
    """Remove what a path of keys leads to, if it is there; of a list the whole list, whose numbers would move."""
    for depth, key in enumerate(path, start=1):
        if not isinstance(value, dict) or key not in value:
            return
        if depth == len(path) or not isinstance(value[key], dict):
            del value[key]
            return
        value = value[key]


def _as_answered(spec: Spec) -> Spec:
    """The spec of a model that only reads (it embeds, ranks or rewards) with requests that end with their prompt."""
    if purpose_told(spec.model).writes or spec.workload.trace is not None:
        return spec
    return spec.model_copy(update={"workload": spec.workload.model_copy(update={"output_tokens": 1})})


def parse_spec(text: str, name: str = "spec") -> Spec:
    """Read a spec from its text; `name` is the file shown in errors. Paths stay as written."""
    return validated(*read_yaml(text, name), name)


def validated(node: yaml.Node | None, value: Any, name: str) -> Spec:
    """Make a spec from plain values; `node`, where they came from YAML, tells the places in errors. Raises InputError."""
    _refuse_no_mapping(value, name)
    try:
        return Spec.model_validate(value)
    except ValidationError as error:
        raise explained(error, node, value, name) from None


def _refuse_no_mapping(value: Any, name: str) -> None:
    if not isinstance(value, dict):
        message = "a spec is a mapping with `model:` and `target:`"
        raise InputError(message, remedy="see `optimize init`", location=Location(name, 1, 1))


def _refuse_long_trace(path: str, context: int) -> None:
    longest = max(prompt + answer for _, prompt, answer in read_trace(path))
    if longest > context:
        message = f"the trace {path} has a request of {longest:,} tokens, more than the context of {context:,}"
        raise InputError(message, remedy=f"workload: {{context: {longest}}}")


def _unknown(spec: Spec, node: yaml.Node | None, name: str) -> list[InputError]:
    """What is wrong with a spec whose kinds are right: names that stand for nothing (a card, an engine, a tool, a file), goals that a model
    cannot have. Each error says where in the spec it stands.
    """
    checks: list[tuple[list[Any], Callable[[], object]]] = [
        (["model"], lambda: _refuse_missing_model(spec.model)),
        (["calibration", "dataset"], lambda: refuse_missing_text(spec.calibration.dataset)),
        (["evaluation", "dataset"], lambda: refuse_missing_text(spec.evaluation.dataset)),
    ]
    if spec.workload.trace is not None:
        checks.append((["workload", "trace"], partial(_refuse_long_trace, spec.workload.trace, spec.workload.context)))
    parts: tuple[tuple[list[Any], Any], ...] = (
        (["target"], spec.target), ([], spec), (["engine"], spec.engine), (["passes", "quantize"], spec.passes.quantize)
    )  # fmt: skip
    for path, part in parts:
        if isinstance(part, Strict):
            checks += [([*path, key], look) for key, look in part.names()]
    card = spec.target.gpu
    if isinstance(card, str) and card != "auto":
        checks.append((["target", "reserve"], partial(_refuse_reserve, card, spec.target.reserve)))
    distill = spec.passes.distill
    if isinstance(distill, DistillChoice):
        checks.append((["passes", "distill"], partial(_refuse_missing_prompts, distill)))
    checks += [
        (["goals", goal], partial(_refuse_decoded, spec.model, goal)) for goal in DECODED if spec.goals.asked(goal)
    ]
    wrong: dict[str, InputError] = {}
    for path, check in checks:
        try:
            check()
        except InputError as error:
            known = type(error)(error.message, remedy=error.remedy, location=locate(node, path, name))
            wrong.setdefault(error.message, known)  # the reserve of a card that is unknown
    return list(wrong.values())


def _refuse_decoded(model: str, goal: str) -> None:
    if not (ends := purpose_told(model)).writes:
        raise InputError(
            f"goals.{goal}: {model} writes no text, it answers with a {ends}, so that it decodes nothing",
            remedy="leave it out; ttft bounds how long an answer takes, workload.rate how many come a second",
        )


def _refuse_missing_model(model: str) -> None:
    if (model.endswith(".gguf") or model.startswith(("./", "../", "/", "~"))) and not path_named(model).exists():
        raise InputError(f"no model at {model}", remedy="name a folder, a .gguf file, a catalog name or a Hub id")


def _refuse_reserve(card: str, reserve: int) -> None:
    gpu = find_gpu(card)
    memory = gpu.memory_bytes.value
    if reserve >= memory:
        raise InputError(
            f"the reserve of {reserve / 2**30:.1f} GiB is all of the {memory / 2**30:.1f} GiB that {gpu.name} has",
            remedy="name what other programs on the card take, often 0.5 to 2 GiB",
        )


def _resolve(spec: Spec, folder: Path) -> Spec:
    """Paths of models and texts, relative to the spec's folder, made usable from anywhere."""

    def place(text: str) -> str:
        candidate = path_named(text, folder)
        return (
            str(candidate) if candidate.exists() or text.endswith(".gguf") or text.startswith(("./", "../")) else text
        )

    return spec.model_copy(
        update={
            "model": place(spec.model),
            "target": _here(spec.target),
            "calibration": spec.calibration.model_copy(update={"dataset": place(spec.calibration.dataset)}),
            "workload": spec.workload.model_copy(
                update={"trace": None if spec.workload.trace is None else place(spec.workload.trace)}
            ),
            "evaluation": spec.evaluation.model_copy(update={"dataset": place(spec.evaluation.dataset)}),
            "passes": _found_texts(spec.passes, place),
        }
    )


def _found_texts(passes: PassesChoice, place: Callable[[str], str]) -> PassesChoice:
    """The passes with the files that distillation reads, where it is asked for."""
    if not isinstance(passes.distill, DistillChoice):
        return passes
    found = {
        "dataset": place(passes.distill.dataset),
        "prompts": passes.distill.prompts and place(passes.distill.prompts),
    }
    return passes.model_copy(update={"distill": passes.distill.model_copy(update=found)})


def _refuse_missing_prompts(choice: DistillChoice) -> None:
    """Refuse prompts that cannot be read, and a text of a student that is not there."""
    from passes.distill.endpoint import read_prompts  # a client of servers, which most specs have none of

    if choice.prompts:
        read_prompts(Path(choice.prompts))
    if not choice.dataset.startswith(("http://", "https://")):
        refuse_missing_text(choice.dataset)


def _here(target: Target) -> Target:
    """A target whose number of cards is to be chosen, where it is this machine: no more than are here."""
    if not target.fewest or target.max is not None or target.gpu not in ("auto", "cpu"):
        return target
    cards = len(installed_gpus()) if target.gpu == "auto" else 1
    return target.model_copy(update={"max": max(cards, 1)})


def explained(
    error: ValidationError, node: yaml.Node | None, value: Mapping[str, Any], name: str, part: type[BaseModel] = Spec
) -> InputError:
    """Return all of a validation's errors as one message, each with its place, the most helpful first. `part`: of the spec, which `value`
    was to become.
    """
    return _together(_told(error, node, value, name, part))


def _told(
    error: ValidationError, node: yaml.Node | None, value: Mapping[str, Any], name: str, part: type[BaseModel]
) -> list[InputError]:
    """Each of a validation's errors, with its place, the most helpful first."""
    problems = sorted(_closest(error.errors(), value), key=lambda e: _rank(e["type"]))
    told: dict[tuple[Any, ...], InputError] = {}
    for problem in problems:  # of the branches of a union that fail at one place, the most helpful is told
        told.setdefault(_place(problem, value), _problem(problem, node, value, name, part))
    return list(told.values())


def _together(errors: Sequence[InputError]) -> InputError:
    """All errors as one message, the first with its exit code, each with its place."""
    first, *others = errors
    lines = "".join(f"\n  {other.location}: {other.message}{_means(other)}" for other in others)
    return type(first)(f"{first.message}{lines}", remedy=first.remedy, location=first.location)


def _means(error: InputError) -> str:
    """What the key means that is wrong; the keys that could stand in the place of an unknown one are left to the first error."""
    return f"\n    {error.remedy}" if error.remedy and not error.message.startswith("unknown key") else ""


def _place(problem: Any, value: Mapping[str, Any]) -> tuple[Any, ...]:
    """The keys and numbers that lead to what is wrong, without the branches of unions."""
    return tuple(step for step in problem["loc"] if not _is_branch(step, value, problem["loc"]))


#: Keys that people write for others by their meaning, which no spelling tells.
_MEANT = {
    "width": "intermediate", "channels": "intermediate", "mlp": "intermediate", "layers": "depth", "blocks": "depth", "heads": "kv_heads",
    "groups": "kv_heads", "sparsity": "sparse",
}  # fmt: skip


def _meaning_of(path: Sequence[str], part: type[BaseModel]) -> str | None:
    """What a key means, with an example, as the schema says it; it is read only where something is wrong."""
    from planner.spec.meanings import meaning

    return meaning(path, part)


def _problem(
    problem: Any, node: yaml.Node | None, value: Mapping[str, Any], name: str, part: type[BaseModel]
) -> InputError:
    """One of a validation's errors, with what its key means."""
    path = list(_place(problem, value))
    kind, dotted = problem["type"], ".".join(str(p) for p in path)
    location = locate(node, path, name)
    if kind == "extra_forbidden":
        known = _known_keys(path[:-1], part)
        meant = _MEANT.get(str(path[-1]))
        close = [meant] if meant in known else nearest(str(path[-1]), known)
        elsewhere = [place for place in _places(part) if place[-1] == path[-1]]
        misspelt = difflib.get_close_matches(str(path[-1]), {place[-1] for place in _places(part)}, 1, cutoff=0.8)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        if elsewhere and str(path[-1]) not in close:
            above = (repr(".".join(place[:-1])) if place[:-1] else "the top" for place in elsewhere)
            hint = f" It belongs under {' or '.join(above)}."
        elif misspelt and not close:
            places = (
                repr(".".join(place)) + (" at the top" if len(place) == 1 else "")
                for place in _places(part)
                if place[-1] == misspelt[0]
            )
            hint = f" Did you mean {' or '.join(places)}?"
        return InputError(f"unknown key {dotted!r}.{hint}", remedy=f"keys here: {', '.join(known)}", location=location)
    if kind == "missing":
        return InputError(f"{dotted!r} is missing", remedy="add it here", location=locate(node, path[:-1], name))
    bounds = problem.get("ctx", {})
    message = _WORDS[kind].format(**bounds) if kind in _WORDS else problem["msg"].removeprefix("Value error, ")
    if kind == "literal_error" and (
        close := nearest(str(problem["input"]), re.findall(r"'([^']*)'", bounds["expected"]))
    ):
        message += f"; did you mean {close[0]!r}?"
    where = f"{dotted}: " if dotted else ""
    found = "" if kind == "value_error" else f" (found {shown(problem['input'])})"
    meaning = _meaning_of([str(step) for step in path if isinstance(step, str)], part)
    remedy = meaning or "`optimize schema` prints every key with its type"
    return InputError(f"{where}{message}{found}", remedy=remedy, location=location)


def _closest(problems: Sequence[Any], value: Mapping[str, Any]) -> list[Any]:
    """Without the branches of a union that the value is not even the kind of, where another branch says more."""

    def beaten(problem: Any) -> bool:
        stem, kind = problem["loc"][:-1], problem["type"]
        if not problem["loc"] or not _is_branch(problem["loc"][-1], value, problem["loc"]):
            return False
        beside = [other for other in problems if other is not problem and other["loc"][: len(stem)] == stem]
        if isinstance(problem["input"], Mapping) and "function-before" in str(problem["loc"][-1:]):
            return bool(beside)  # text with a unit, where a part of a spec is allowed too
        wrong_kind = kind.endswith("_type") or (kind == "literal_error" and isinstance(problem["input"], Mapping))
        return wrong_kind and any(len(other["loc"]) > len(stem) + 1 for other in beside)

    return [problem for problem in problems if not beaten(problem)] or list(problems)


def _rank(kind: str) -> int:
    return {"extra_forbidden": 0, "value_error": 1, "missing": 3}.get(kind, 2)


def _is_branch(part: object, value: Mapping[str, Any], path: tuple[Any, ...]) -> bool:
    """Whether a part of pydantic's path names a union's branch, not a key of the user's file."""
    here: Any = value
    for step in path:
        inside = isinstance(here, Mapping) and step in here
        item = isinstance(here, list) and isinstance(step, int) and step < len(here)
        if step is part or step == part:
            return (
                not (inside or item)
                and isinstance(part, str)
                and (part[:1].isupper() or "[" in part or part in ("str", "dict", "int", "constrained-int"))
            )
        if inside or item:
            here = here[step]
    return False


def spellings(name: str, field: FieldInfo) -> tuple[str, ...]:
    """Return the keys that a field is read from."""
    alias = field.validation_alias
    return (name, *(map(str, alias.choices) if isinstance(alias, AliasChoices) else ()))


def _parts(field: FieldInfo) -> Iterator[type[BaseModel]]:
    """The parts of a spec that may stand in a field."""
    for kind in (field.annotation, *get_args(field.annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield kind


def _places(part: type[BaseModel], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Where each key of a spec stands, as the keys that lead to it."""
    for name, field in part.model_fields.items():
        yield from ((*above, spelling) for spelling in dict.fromkeys(spellings(name, field)))
        for inner in _parts(field):
            yield from _places(inner, (*above, name))


def _known_keys(path: list[Any], model: type[BaseModel]) -> list[str]:
    """The keys allowed under a path of a part of the spec."""
    for step in path:
        fields = model.model_fields.items()
        field = next((field for name, field in fields if str(step) in spellings(name, field)), None)
        inner = next(_parts(field), None) if field else None
        if inner is None:
            break
        model = inner
    return list(model.model_fields)
