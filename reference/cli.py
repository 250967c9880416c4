"""The page of the command line: every command with its arguments and options, as its parser has them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

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
    words = [each.make_metavar(command.make_context(name, [], resilient_parsing=True)) for each in given]
    yield f"## optimize {name}\n"
    yield f"```text\noptimize {' '.join((name, '[OPTIONS]', *words))}\n```\n"
    yield f"{inspect.cleandoc(command.help or '')}\n"
    if given:
        yield table(
            ("argument", "what it is", "default"), ((f"`{each.name}`", _said(each), _default(each)) for each in given)
        )
    if options:
        yield table(("option", "takes", "what it does", "default"), map(_option, options))


def _option(option: Any) -> tuple[str, ...]:
    spelled = ", ".join(f"`{each}`" for each in (*option.opts, *option.secondary_opts))
    takes = "" if option.is_flag else option.metavar or option.type.name
    choices = tuple(option.type.choices) if "choices" in vars(option.type) else ()
    return spelled, " or ".join(f"`{each}`" for each in choices) or takes, _said(option), _default(option)


def _said(parameter: Any) -> str:
    return str(vars(parameter).get("help") or "")


def _default(parameter: Any) -> str:
    value = parameter.default
    plain = value is not None and not callable(value) and value is not False and str(value) not in ("", "()")
    return f"`{value}`" if plain and "Sentinel" not in str(value) else ""
