"""The page of the command line: every command with its arguments and options, as its parser has them."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from inspect import signature
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from typer.main import get_command

from planner.cli.main import application
from reference.tables import table

_HEAD = """# The command line

Made from the code: what `optimize COMMAND --help` prints.

Exit codes: 0 yes · 1 internal error · 2 bad input · 3 nothing fits or meets the goals · 4 the result misses its goals · 5 stale plan ·
6 not known (a card that is not modelled) · 130 interrupted. With `--json` one JSON document is on stdout ([documents](documents.md)),
everything else on stderr; an error is a document too. `TIGHTFIT_DEBUG=1` shows the traceback of an internal error.
"""


def page() -> str:
    """Write the page."""
    commands: dict[str, Any] = get_command(application()).commands  # type: ignore[attr-defined]
    return "\n".join((_HEAD, *(part for name in commands for part in _command(name, commands[name]))))


def _command(name: str, command: Any) -> Iterator[str]:
    given = [each for each in command.params if each.param_type_name == "argument"]
    options = [each for each in command.params if each.param_type_name == "option"]
    kinds = {each.name: each.annotation for each in signature(command.callback, eval_str=True).parameters.values()}
    yield f"## optimize {name}\n"
    yield f"```text\noptimize {' '.join((name, '[OPTIONS]', *map(_word, given)))}\n```\n"
    yield f"{inspect.cleandoc(command.help or '')}\n"
    if given:
        yield table(
            ("argument", "what it is", "default"), ((f"`{each.name}`", _said(each), _default(each)) for each in given)
        )
    if options:
        rows = (_option(each, kinds[each.name]) for each in options)
        yield table(("option", "takes", "what it does", "default"), rows)


def _word(argument: Any) -> str:
    """An argument in the line of a command; typer writes it one way to 0.28 and another from 0.29 on."""
    if argument.metavar not in (None, argument.name):
        return str(argument.metavar)
    word = argument.name.upper()
    return (word if argument.required else f"[{word}]") + ("..." if argument.nargs != 1 else "")


#: What an option takes, in words; a flag takes nothing.
_TAKES: Mapping[Any, str] = {str: "text", int: "whole number", float: "number", Path: "path", bool: ""}


def _option(option: Any, annotation: Any) -> tuple[str, ...]:
    spelled = ", ".join(f"`{each}`" for each in (*option.opts, *option.secondary_opts))
    return spelled, option.metavar or _takes(annotation), _said(option), _default(option)


def _takes(annotation: Any) -> str:
    """What a parameter's annotation says: the names that it may be, or a kind of value."""
    if isinstance(annotation, type):
        if issubclass(annotation, Enum):
            return _either(str(each.value) for each in annotation)
        return _TAKES.get(annotation, annotation.__name__)
    inner = [each for each in get_args(annotation) if each is not type(None)]
    return _either(inner) if get_origin(annotation) is Literal else _takes(inner[0])


def _either(names: Iterable[str]) -> str:
    return " or ".join(f"`{each}`" for each in names)


def _said(parameter: Any) -> str:
    return str(vars(parameter).get("help") or "")


def _default(parameter: Any) -> str:
    value = parameter.default
    plain = value is not None and not callable(value) and value is not False and str(value) not in ("", "()")
    return f"`{value}`" if plain and "Sentinel" not in str(value) else ""
