"""The command line's application, and what its commands have in common: options, the console, JSON."""

from __future__ import annotations

import inspect
import math
import sys
from collections.abc import Callable, Mapping
from enum import StrEnum
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.models import OptionInfo

from passes.errors import InputError
from planner.cli.encoding import json_line

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(
    name="optimize", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip
Device = Annotated[
    str,
    typer.Option(
        help="What computes: auto (every card, else the processor), cpu, cuda (every card), cuda:1 (that card)."
    ),
]


class Carrier(StrEnum):
    """Whose processes carry out work."""

    LOCAL = "local"
    RAY = "ray"


CarriedOut = Annotated[
    Carrier,
    typer.Option(
        "--executor",
        help="Whose processes work: this one's (local), or tasks of a Ray cluster, the one that runs here or else its own.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="One JSON document on stdout, everything else on stderr.")]


def _say_version(asked: bool) -> None:
    if asked:
        from planner.version import VERSION

        sys.stdout.write(f"tightfit {VERSION}\n")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", "-V", help="Print the version.", is_eager=True, callback=_say_version)
    ] = False,
) -> None:
    """Compiles a language model onto a card: plans, applies and proves chains of passes."""


def grouped(into: str, options: Mapping[str, Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Have a command take several options and get them as one mapping, in the place of the parameter `into`: those that were given.

    `options`: by name, as typer takes them.
    """

    def change(command: Callable[..., None]) -> Callable[..., None]:
        """Return the command as typer reads it: with each option a parameter."""
        own = inspect.signature(command, eval_str=True)
        taken = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
            for name, annotation in options.items()
        ]
        every: list[inspect.Parameter] = []
        for each in own.parameters.values():
            every += taken if each.name == into else [each.replace(kind=inspect.Parameter.KEYWORD_ONLY)]

        @wraps(command)
        def run(**given: Any) -> None:
            told = {name: value for name in options if (value := given.pop(name)) is not None}
            command(**given, **{into: told})

        run.__signature__ = own.replace(parameters=every)  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in every}
        return run

    return change


def _finite(value: float | None) -> float | None:
    """Return a number that is one: ranges let `nan` through. Raises typer.BadParameter."""
    if value is not None and not math.isfinite(value):
        raise typer.BadParameter(f"{value} is no finite number")
    return value


def bounded(said: str, least: float | None = None, most: float | None = None) -> OptionInfo:
    """Return an option that takes a finite number between two."""
    option: OptionInfo = typer.Option(min=least, max=most, callback=_finite, help=said)
    return option


def screen(as_json: bool = False) -> Console:
    """Return the console that people read: stderr where stdout is for JSON."""
    from rich.console import Console

    # What is printed comes from plans, configs and options that others wrote: none of it is markup, unless a call says so, or an emoji.
    return Console(stderr=as_json, highlight=False, soft_wrap=True, markup=False, emoji=False)


def emit(document: Any) -> None:
    """Print a document as one line of JSON."""
    sys.stdout.write(json_line(document, sys.stdout))


def sparing(read: Path, output: Path) -> Path:
    """Return where a command writes. Raises InputError where that is what it reads, which would be lost."""
    if output.resolve() == read.resolve():
        raise InputError(f"{output} is what is read, and would be lost", remedy="name another file with -o")
    return output


def say_unused_cards(device: str) -> None:
    """Say so where the processor computes on a machine that has cards."""
    from passes.blocks.devices import unused_cards

    if (note := unused_cards(device)) is not None:
        from planner.cli.tables.page import Page

        Page(screen(True)).line("  Note     ", note, style="yellow")
