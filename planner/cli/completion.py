"""Completion in shells: a script that holds every command, its options, and the names that these take, so that Tab starts no Python."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from typer.main import get_command

from passes.record import dataclass
from planner.cli.app import app


@dataclass(frozen=True, slots=True)
class Option:
    """An option by its spellings, what it is for, and the values it may take; none: a path, a number, a text."""

    spellings: tuple[str, ...]
    said: str
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Command:
    """A command, what it does, and its options."""

    name: str
    said: str
    options: tuple[Option, ...]


def script(shell: str) -> str:
    """Return what a shell (`bash`, `zsh`, `fish`) reads to complete `optimize`."""
    found = tuple(commands())
    if shell == "fish":
        return "".join(f"{line}\n" for line in _fish(found))
    head = "autoload -U +X compinit bashcompinit && compinit && bashcompinit\n" if shell == "zsh" else ""
    return head + "".join(f"{line}\n" for line in _bash(found))


def commands() -> Iterator[Command]:
    """Give every command as the command line has it."""
    whole = get_command(app)
    for name, command in whole.commands.items():  # type: ignore[attr-defined]
        options = (
            Option(tuple(each.opts), (each.help or "").split(". ")[0], _values(name, each.name))
            for each in command.params
            if each.param_type_name == "option"
        )
        yield Command(name, (command.help or "").split(". ")[0].strip(), tuple(options))


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


#: What an option may be set to, by the name of its parameter, behind that of its command where others mean something else by it.
_VALUES: Mapping[str, Callable[[], Sequence[str]]] = {
    "model": _models, "gpu": _cards, "check engine": _engines, "use": _uses, "device": lambda: ("auto", "cpu", "cuda"),
}  # fmt: skip


def _values(command: str, name: str) -> tuple[str, ...]:
    values = _VALUES.get(f"{command} {name}") or _VALUES.get(name)
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
    yield "  esac; fi"
    yield '  COMPREPLY=($(compgen -W "$words" -- "$typed"))'
    yield "}"
    yield "complete -o default -F _optimize optimize"


def _fish(found: Sequence[Command]) -> Iterator[str]:
    for command in found:
        yield f"complete -c optimize -n __fish_use_subcommand -a {command.name} -d {_quoted(command.said)}"
        for option in command.options:
            long = " ".join(
                f"-l {s[2:]}" if s.startswith("--") else f"-s {s[1:]}" if len(s) == 2 else f"-o {s[1:]}"
                for s in option.spellings
            )
            values = f" -x -a {_quoted(' '.join(option.values))}" if option.values else ""
            seen = _quoted(f"__fish_seen_subcommand_from {command.name}")
            yield f"complete -c optimize -n {seen} {long} -d {_quoted(option.said)}{values}"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
