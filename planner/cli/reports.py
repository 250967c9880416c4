"""Defines the command that writes a plan or a result as a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from planner.cli.app import app, screen, sparing


@app.command()
def report(
    what: Annotated[
        Path | None, typer.Argument(help="A plan, or a result's folder; default: the plan last saved in this folder.")
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The page; default: beside the plan.")] = None,
) -> None:
    """Write a plan or a result as one HTML page for people who decide; it needs no network."""
    from passes.files.atomic import write_text
    from planner.apply import find_plan
    from planner.report.facts import facts_of
    from planner.report.page import page
    from planner.report.view import view

    subject = what or find_plan(Path())
    named = subject if subject.name.strip(".") else subject.resolve()  # `.` and `..` have no name of their own
    path = sparing(subject, output or named.with_name(f"{named.name.removesuffix('.json')}.html"))
    written = page(view(facts_of(subject)))
    write_text(path, written)
    screen().print(f"  Wrote {path} ({len(written.encode()) / 1024:,.0f} KiB). Open it in a browser.")
