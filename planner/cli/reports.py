"""Defines the commands for a browser: a plan or a result as a page, a page whose sliders move a spec."""

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


@app.command("serve-ui")
def serve_ui(
    what: Annotated[Path, typer.Argument(help="A spec, or a saved plan; default: tightfit.yaml.")] = Path(
        "tightfit.yaml"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="The port; 0: any that is free.")] = 0,
) -> None:
    """Serve a page on this machine whose sliders move card, context, clients, KV cache and quality, until Ctrl-C."""
    from planner.cli.interruption import Interrupted
    from planner.plan.document import asked_spec
    from planner.plan.saved import load_plan
    from planner.spec.parse import load_spec
    from planner.whatif.server import Server

    spec = asked_spec(load_plan(what)) if what.suffix == ".json" else load_spec(what)
    server = Server(spec, port)
    screen().print(f"  {server.url} holds the page, for this machine alone, until Ctrl-C.")
    try:
        server.serve()
    except Interrupted:
        screen().print("  Ended.")
