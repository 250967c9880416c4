"""Runs the command line. Exit codes: 0 yes, 1 internal error, 2 bad input, 3 nothing fits, 4 the result misses its
goals, 5 stale plan, 130 interrupted."""

from __future__ import annotations

import gc
import os
import sys
from copy import copy
from typing import TYPE_CHECKING

from passes.errors import InputError, TightfitError
from planner.cli.encoding import print_what_can_be_printed
from planner.cli.interruption import Interrupted, interruptible

if TYPE_CHECKING:
    import typer


def main() -> None:
    """Run the command line. Errors that a user can mend are one message; a defect of ours is said shortly."""
    interruptible()
    print_what_can_be_printed()
    # A plan is made in half a second, and loading what makes it leaves nothing to collect: so before that is loaded. What works for minutes
    # collects again (`passes.run.execute.calm_libraries`). What there is at the end goes with the process, unseen: looking through it takes
    # a tenth of a plan.
    gc.disable()
    try:
        _run()
    except (TightfitError, Interrupted) as error:
        _report(error)
        sys.exit(error.exit_code)
    except (OSError, ModuleNotFoundError) as error:
        from planner.setup.mistakes import as_told

        command = next((word for word in sys.argv[1:] if not word.startswith("-")), "this")
        if (told := as_told(error, f"`optimize {command}`")) is None:
            raise
        _report(told)
        sys.exit(told.exit_code)
    except Exception as error:
        if os.environ.get("TIGHTFIT_DEBUG"):
            raise
        sys.stderr.write(f"internal error: {type(error).__name__}: {error}\n")
        sys.stderr.write("  set TIGHTFIT_DEBUG=1 for the traceback, and report it\n")
        sys.exit(1)
    finally:
        gc.freeze()


def application() -> typer.Typer:
    """Return the command line with all of its commands."""
    from planner.cli import checking, commands, listings, reports, starting  # noqa: F401 (each adds its commands)
    from planner.cli.app import app

    return app


def _run() -> None:
    """Run the command; with --json, a mistake in how it is called is an error like every other."""
    asked = _asked(sys.argv[1:])
    if "--json" not in sys.argv:
        asked(prog_name="optimize")
        return
    try:
        code = asked(prog_name="optimize", standalone_mode=False)
    except _usage_errors() as error:
        message = error.format_message().rstrip(".")
        raise InputError(message, remedy=f"optimize {' '.join(sys.argv[1:2])} --help lists the options") from None
    sys.exit(code if isinstance(code, int) else 0)


def _asked(words: list[str]) -> typer.Typer:
    """The application with the one command that is asked for: reading the options of all takes a tenth of a `check`."""
    app = application()
    named = [each for each in app.registered_commands if each.callback and [each.callback.__name__] == words[:1]]
    only = copy(app)
    only.registered_commands = named or app.registered_commands
    return only


def _usage_errors() -> type[typer.BadParameter]:
    """What typer raises for mistakes in a command line: the class above BadParameter in whatever click it runs on."""
    import typer

    found: type[typer.BadParameter] = next(
        kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
    )
    return found


def _report(error: TightfitError | Interrupted) -> None:
    if "--json" in sys.argv:
        from planner.cli.app import emit
        from planner.documents.failure import Failure, FailureDocument
        from planner.plan.codec import to_json

        place = error.location if isinstance(error, TightfitError) else None
        emit(to_json(FailureDocument(Failure(error.message, error.remedy, place))))
    from rich.console import Console

    from planner.cli.tables.page import Page, filled

    sys.stderr.write(filled(f"error: {error}", Page(Console(stderr=True)).width) + "\n")
