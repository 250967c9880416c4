"""Defines the commands of the first minute: what this machine can do, a spec from a few answers, completion of the shell."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from passes.errors import InputError
from planner.cli.app import Json, app, emit, grouped, screen

if TYPE_CHECKING:
    from planner.setup.wizard import Question


@app.command()
def doctor(as_json: Json = False) -> None:
    """Say what this machine can do: Python, torch, cards, memory, disk, engines, which commands work, what to install."""
    from planner.setup.doctor import examine

    machine = examine(Path())
    if as_json:
        emit(machine.as_json())
        return
    from planner.cli.tables.doctor import print_machine

    print_machine(screen(), machine)


#: Goals of a spec, by the flags that set them.
_GOALS = {
    "ttft": Annotated[str | None, typer.Option(help="Goal: time to the first token at most, such as 800ms, or none.")],
    "tpot": Annotated[str | None, typer.Option(help="Goal: time per output token at most, such as 50ms.")],
    "decode": Annotated[
        str | None, typer.Option(help="Goal: tokens a second of one request at least: '20 tok/s', or none.")
    ],
    "throughput": Annotated[str | None, typer.Option(help="Goal: tokens a second of all at least: '900 tok/s'.")],
    "max_perplexity_increase": Annotated[str | None, typer.Option(help="Goal on quality, such as 3%, or none.")],
    "prefer": Annotated[str | None, typer.Option(help="What is preferred among plans that meet the goals.")],
}


#: What the wizard asks for where no flag says it.
_ANSWERS = {
    "model": Annotated[str | None, typer.Option(help="Hub id, catalog name, folder or .gguf file.")],
    "gpu": Annotated[
        str | None, typer.Option(help="Card: catalog name, 24GB, cpu, or auto for what is here; several: 2 x L40S.")
    ],
    "use": Annotated[str | None, typer.Option(help="What it is used for: chat, documents, batch or agents.")],
    "context": Annotated[str | None, typer.Option(help="Longest conversation, in tokens: 8192, 32k.")],
    "concurrency": Annotated[str | None, typer.Option(help="Requests at once, or auto.")],
}


@app.command()
@grouped("named", {**_ANSWERS, **_GOALS})
def init(
    named: Mapping[str, str],
    path: Annotated[Path | None, typer.Argument(help="Where to write the spec; default: tightfit.yaml.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The same, as other commands take it.")] = None,
) -> None:
    """Write a commented spec to start from. On a terminal it asks for what is not named."""
    from passes.files.atomic import write_text
    from planner.cli.tables.page import Page, filled
    from planner.setup.wizard import BACK, Answers, ask_all, doubt, spec_text, usual_card

    page = Page(screen())
    if path and output and path != output:
        raise InputError(f"one spec is written, to {path} or to {output}", remedy="name one of them")
    path = path or output or Path("tightfit.yaml")
    if path.exists():
        raise InputError(f"{path} exists already", remedy="name another file, or remove it")
    answers = Answers(
        **{name: value for name, value in named.items() if name in _ANSWERS},
        goals={name: value for name, value in named.items() if name in _GOALS},
    )
    if sys.stdin.isatty() and sys.stdout.isatty():
        page.line("  ", f"Enter takes what stands in brackets, {BACK} goes back one question.", style="dim")
        answers = ask_all(answers, _ask, lambda said: screen().print(filled(f"  {said}", page.width), style="yellow"))
    write_text(path, spec_text(answers))
    if (doubted := doubt(answers.model)) is not None:
        page.line("  ", doubted, style="yellow")
    if answers.gpu is None:
        page.line("  ", f"No card was named: it is written for {usual_card()} (target: gpu:)")
    page.line("  ", f"Wrote {path}. Next: optimize plan {path}")


def _ask(question: Question) -> str:
    """Ask on the terminal; Tab completes."""
    _complete_with(question.choices)
    answered = False
    try:
        said = input(f"  {question.words} [{question.usual}]: ")
        answered = True
        return said
    except EOFError:
        raise InputError(
            "the questions were ended", remedy="answer with Enter what is usual, or name it all by flags"
        ) from None
    finally:
        if not answered:
            print()  # Ctrl-C, Ctrl-D: what is said of them does not go on behind the question


def _complete_with(choices: tuple[str, ...]) -> None:
    try:
        import readline
    except ImportError:  # a Python that was built without it
        return

    def complete(text: str, state: int) -> str | None:
        found = [each for each in choices if text.lower() in each.lower()]
        return found[state] if state < len(found) else None

    readline.set_completer(complete)
    readline.set_completer_delims("")
    readline.parse_and_bind("tab: complete")


@app.command()
def completion(shell: Annotated[Literal["bash", "zsh", "fish"], typer.Argument(help="Your shell.")]) -> None:
    """Print what completes commands, options, models and cards in a shell: eval "$(optimize completion bash)"."""
    from planner.cli.completion import script

    sys.stdout.write(script(shell))
