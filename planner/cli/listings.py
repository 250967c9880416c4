"""Defines the commands that list what is known."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Annotated

import typer

from passes.errors import unknown_name
from planner.cli.app import Json, app, emit, screen

if TYPE_CHECKING:
    from targets.gpu import Gpu

#: What a list is narrowed to.
Words = Annotated[list[str] | None, typer.Argument(help="Only those whose name has all of these words: gpt-oss, 4090.")]


def _having(words: list[str] | None, names: Iterable[str], kind: str, command: str) -> list[str]:
    """The names that have all words, case, spaces and dashes ignored. Raises InputError, with the nearest names, where none has."""
    known = list(names)
    found = [name for name in known if all(_folded(word) in _folded(name) for word in words or ())]
    if not found:
        raise unknown_name(kind, " ".join(words or ()), known, remedy=f"`optimize {command}` without a word lists all")
    return found


def _folded(text: str) -> str:
    return "".join(letter for letter in text.lower() if letter.isalnum())


@app.command()
def targets(words: Words = None, as_json: Json = False) -> None:
    """List the cards that are known."""
    from targets.gpu import all_gpus

    known = {card.name: card for card in all_gpus()}
    cards = [known[name] for name in _having(words, known, "card", "targets")]
    if as_json:
        emit(
            [
                {"name": g.name, "memory_gib": round(g.memory_bytes.value / 2**30, 2), "generation": g.generation}
                for g in cards
            ]
        )
        return
    _list_cards(cards)


def _list_cards(cards: list[Gpu]) -> None:
    """A line a card, its figures in columns where the widest line has room."""
    from planner.cli.tables.page import Page

    page = Page(screen())
    rows = [
        (g.name, f"{g.memory_bytes.value / 2**30:.2f} GiB", f"{g.bandwidth_bytes_per_s / 1e9:.0f} GB/s", g.generation)
        for g in cards
    ]
    names, sizes, speeds, kinds = (max(map(len, column)) for column in zip(*rows, strict=True))
    fits = page.width is None or 8 + names + sizes + speeds + kinds <= page.width
    for name, memory, bandwidth, generation in rows:
        if fits:
            page.line(f"  {name:{names}s}  {memory:>{sizes}s}  {bandwidth:>{speeds}s}  {generation}")
        else:
            page.line(f"  {name}")
            page.line("    ", f"{memory}, {bandwidth}, {generation}")


@app.command()
def models(words: Words = None, as_json: Json = False) -> None:
    """List the models whose description is bundled."""
    from passes.ir import catalog

    names = _having(words, sorted(catalog.ids()), "model", "models")
    if as_json:
        emit(names)
    else:
        sys.stdout.write("\n".join(names) + "\n")


@app.command()
def schema(
    what: Annotated[
        str, typer.Argument(help="The spec, or a document: plan, check, certificate, verified, files, answer, …")
    ] = "spec",
) -> None:
    """Print the JSON Schema of the spec, for editors, or of a document that commands write."""
    if what == "spec":
        from planner.spec.schema import schema as of_spec

        emit(of_spec())
        return
    from planner.documents.listed import DOCUMENTS
    from planner.documents.schema import schema as of_document

    if what not in DOCUMENTS:
        raise unknown_name("document", what, DOCUMENTS, remedy=f"spec, or one of {', '.join(DOCUMENTS)}")
    emit(of_document(what))
