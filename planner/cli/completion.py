"""Completion in shells: a script that holds every command, its options, and the names that these take, so that Tab starts no Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from enum import Enum
from typing import Any, Literal, get_args, get_origin

from typer.main import get_command

from passes.record import dataclass
from planner.cli.main import application


@dataclass(frozen=True, slots=True)
class Option:
    """An option by its spellings, what it is for, and the values it may take; none: a path, a number, a text."""

    spellings: tuple[str, ...]
    said: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Command:
    """A command, what it does, its options, and the values of its argument; none: a file, a text."""

    name: str
    said: str
    options: tuple[Option, ...]
    values: tuple[str, ...]


def script(shell: str) -> str:
    """Return what a shell (`bash`, `zsh`, `fish`) reads to complete `optimize`."""
    found = tuple(commands())
    if shell == "fish":
        return "".join(f"{line}\n" for line in _fish(found))
    head = "autoload -U +X compinit bashcompinit && compinit && bashcompinit\n" if shell == "zsh" else ""
    return head + "".join(f"{line}\n" for line in _bash(found))


def commands() -> Iterator[Command]:
    """Give every command as the command line has it."""
    whole = get_command(application())
    for name, command in whole.commands.items():  # type: ignore[attr-defined]
        options = (
            Option(tuple(each.opts), (each.help or "").split(". ")[0], _values(name, each))
            for each in command.params
            if each.param_type_name == "option"
        )
        given = (_values(name, each) for each in command.params if each.param_type_name == "argument")
        yield Command(name, (command.help or "").split(". ")[0].strip(), tuple(options), next(given, ()))


def _models() -> Sequence[str]:
    from planner.setup.wizard import models

    return [*models(), *(name.rsplit("/", 1)[-1] for name in models())]


def _cards() -> Sequence[str]:
    from planner.setup.wizard import cards

    return [card.replace(" ", "-") for card in cards() if "(" not in card]  # a card is found by this spelling too


def _engines() -> Sequence[str]:
    from targets.engines.engine import ENGINE_NAMES

    return ENGINE_NAMES


def _uses() -> Sequence[str]:
    from planner.setup.wizard import USES

    return tuple(USES)


def _formats() -> Sequence[str]:
    from passes.quantize.format_names import examples

    return examples()


def _caches() -> Sequence[str]:
    from targets.engines.engine import ENGINE_NAMES, find_engine

    return tuple(dict.fromkeys(dtype for name in ENGINE_NAMES for dtype in find_engine(name).kv_dtypes))


def _launch_targets() -> Sequence[str]:
    from targets.launch.target import LAUNCH_TARGETS

    return tuple(LAUNCH_TARGETS.names())


def _preferences() -> Sequence[str]:
    from planner.spec.parts.goals import PREFERENCES

    return PREFERENCES


def _documents() -> Sequence[str]:
    from planner.documents.listed import DOCUMENTS

    return ("spec", *DOCUMENTS)


#: What an option or an argument may be set to, by the name of its parameter, behind that of its command where others mean something else
#: by it.
_VALUES: Mapping[str, Callable[[], Sequence[str]]] = {
    "model": _models, "gpu": _cards, "check engine": _engines, "calibrate engine": _engines, "use": _uses, "weights": _formats,
    "kv_cache_dtype": _caches, "target": _launch_targets, "prefer": _preferences, "schema what": _documents,
    "device": lambda: ("auto", "cpu", "cuda"),
}  # fmt: skip


def _choices(parameter: Any) -> tuple[str, ...]:
    """The names that a parameter's type has: typer keeps it as `type` to 0.28, as a `type_descriptor` from 0.29 on."""
    kind = vars(parameter).get("type")
    if kind is not None:
        return tuple(vars(kind).get("choices", ()))
    asked = parameter.type_descriptor.annotation
    if get_origin(asked) is Literal:
        return tuple(map(str, get_args(asked)))
    return tuple(str(each.value) for each in asked) if isinstance(asked, type) and issubclass(asked, Enum) else ()


def _values(command: str, parameter: Any) -> tuple[str, ...]:
    """What a parameter may be set to: what its type has, else what is said of its name."""
    if choices := _choices(parameter):
        return choices
    values = _VALUES.get(f"{command} {parameter.name}") or _VALUES.get(parameter.name)
    return () if values is None else tuple(values())


def _bash(found: Sequence[Command]) -> Iterator[str]:
    """Values of an option after it, options after a dash, commands first; else files, which the shell completes itself."""
    yield "_optimize() {"
    yield '  local typed="${COMP_WORDS[COMP_CWORD]}" before="${COMP_WORDS[COMP_CWORD-1]}" words='
    yield '  case "${COMP_WORDS[1]} $before" in'
    for command in found:
        for option in command.options:
            if option.values:
                pattern = "|".join(f"'{command.name} {spelling}'" for spelling in option.spellings)
                yield f"    {pattern}) words='{' '.join(option.values)}';;"
    yield "  esac"
    yield '  if [ -z "$words" ]; then case "$COMP_CWORD ${COMP_WORDS[1]} $typed" in'
    yield f"    1*) words='{' '.join(command.name for command in found)} --help --version';;"
    for command in found:
        spellings = [spelling for option in command.options for spelling in option.spellings]
        yield f"    *' {command.name} -'*) words='{' '.join(spellings)} --help';;"
        if command.values:
            yield f"    '2 {command.name} '*) words='{' '.join(command.values)}';;"
    yield "  esac; fi"
    yield '  COMPREPLY=($(compgen -W "$words" -- "$typed"))'
    yield "}"
    yield "complete -o default -F _optimize optimize"


def _fish(found: Sequence[Command]) -> Iterator[str]:
    yield "complete -c optimize -s h -l help -d 'Show what a command takes'"
    yield "complete -c optimize -n __fish_use_subcommand -l version -d 'Print the version'"
    for command in found:
        seen = _quoted(f"__fish_seen_subcommand_from {command.name}")
        yield f"complete -c optimize -n __fish_use_subcommand -a {command.name} -d {_quoted(command.said)}"
        if command.values:
            yield f"complete -c optimize -n {seen} -f -a {_quoted(' '.join(command.values))}"
        for option in command.options:
            long = " ".join(
                f"-l {s[2:]}" if s.startswith("--") else f"-s {s[1:]}" if len(s) == 2 else f"-o {s[1:]}"
                for s in option.spellings
            )
            values = f" -x -a {_quoted(' '.join(option.values))}" if option.values else ""
            yield f"complete -c optimize -n {seen} {long} -d {_quoted(option.said)}{values}"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
