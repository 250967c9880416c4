"""Defines the commands on models, plans and results: each parses, calls, and prints."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from passes.errors import InputError
from passes.ir.fields import LARGEST
from passes.steps.drawing import Drawing, drawn
from planner.cli.app import (
    CarriedOut,
    Carrier,
    Device,
    Json,
    app,
    bounded,
    emit,
    grouped,
    say_unused_cards,
    screen,
    sparing,
)

if TYPE_CHECKING:
    from planner.fleet import Order
    from targets.launch.request import LaunchFile


@app.command()
def plan(
    spec: Annotated[Path, typer.Argument(help="The spec (YAML); default: tightfit.yaml, as `init` writes it.")] = Path(
        "tightfit.yaml"
    ),
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Where to save the plan.")] = None,
    launch: Annotated[bool, typer.Option("--launch", help="Print the launch files that apply will write.")] = False,
    measure: Annotated[
        bool, typer.Option("--measure", help="Try the leading candidates on a little text; needs the weights.")
    ] = False,
    work: Annotated[Path | None, typer.Option(help="Folder for measurements, kept for the next time.")] = None,
    device: Device = "auto",
    executor: CarriedOut = Carrier.LOCAL,
    as_json: Json = False,
) -> None:
    """Choose the best chain of passes for a spec, and say why every other lost. Exit 3 when none meets the goals."""
    from planner.cli.progress import shown
    from planner.machine import Computing
    from planner.plan.codec import to_json
    from planner.plan.make import plan as run
    from planner.plan.saved import save

    path = sparing(spec, output or Path(f"{spec.stem}.plan.json"))
    folder = (work or Path(f".{spec.stem}.measured")) if measure else None
    if measure:
        say_unused_cards(device)
    with shown(screen(True)) as progress, ExitStack() as stack:
        on = Computing(device)
        if executor is not Carrier.LOCAL:
            from planner.fleet import carrying

            on = Computing(device, stack.enter_context(carrying([spec], executor, device)))
        made = run(spec, measure=folder, progress=progress, on=on)
    if made.feasible:
        save(made.document, path)
    if as_json:
        emit(to_json(made.document))
    else:
        from shutil import disk_usage

        from passes.host_memory import memory_total_bytes
        from planner.cli.tables.plan import Room, print_plan

        saved, room = str(path) if made.feasible else None, Room(memory_total_bytes(), disk_usage(Path()).free)
        print_plan(screen(), made.document, made.result.gpu.name, saved, room)
    if launch and made.result.chosen is not None:
        from planner.plan.launch import launch as launch_of

        name = made.document.model.rsplit("/", 1)[-1]
        for file in launch_of(made.document, made.result.chosen.ir, name).files:
            screen(as_json).print(f"\n  launch/{file.path}", style="bold")
            screen(as_json).print(file.text)
    raise typer.Exit(0 if made.feasible else 3)


#: Where a plan's model and texts lie now, in place of where they were.
_ELSEWHERE = {
    "model": Annotated[
        Path | None, typer.Option(help="Where the model lies now; its headers and config must be the plan's.")
    ],
    "calibration": Annotated[Path | None, typer.Option(help="Where the calibration text lies now.")],
    "evaluation": Annotated[Path | None, typer.Option(help="Where the evaluation text lies now.")],
}


@app.command()
@grouped("moved", _ELSEWHERE)
def apply(
    what: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Plans or specs, each made in a folder of its own; default: the plan last saved in this folder."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="The result's folder; of several results, the one that holds theirs."),
    ] = None,
    work: Annotated[Path | None, typer.Option(help="Folder for unfinished work, kept for resuming.")] = None,
    overwrite: Annotated[
        bool, typer.Option("--replace", help="Let go of another plan's finished result in that folder.")
    ] = False,
    device: Device = "auto",
    executor: CarriedOut = Carrier.LOCAL,
    as_json: Json = False,
    *,
    moved: Mapping[str, Path],
) -> None:
    """Run plans exactly; a second run resumes or does nothing. Exit 4 when a result misses a goal."""
    from rich.markup import escape

    from planner.apply import apply as run
    from planner.apply import default_folder, find_plan, next_step
    from planner.cli.progress import shown
    from planner.cli.tables.certificate import print_certificate
    from planner.fleet import carrying, orders
    from planner.machine import Computing
    from planner.plan.codec import to_json
    from planner.plan.document import moved_plan
    from planner.plan.saved import load_plan
    from targets.launch.write import FOLDER

    console = screen(as_json)
    say_unused_cards(device)
    if what is not None and len(what) > 1:
        if moved:
            raise InputError(
                "several specs have no model in common", remedy="leave out --model, --calibration, --evaluation"
            )
        _apply_fleet(
            [replace(each, replace=overwrite, device=device) for each in orders(what, output, work)], executor, as_json
        )
    plan = what[0] if what else find_plan(Path())
    if moved:
        output = output or default_folder(plan)
    with shown(console) as progress, carrying([plan], executor, device) as carries:
        result = run(
            moved_plan(load_plan(plan), moved) if moved else plan, output, work=work, replace=overwrite, progress=progress,
            on=Computing(device, carries),
        )  # fmt: skip
    if as_json:
        emit(to_json(result.certificate or result.plan))
    else:
        if result.certificate is not None:
            print_certificate(console, result.certificate)
        else:
            console.print(f"  {result.plan.model} is served as it is: nothing of it is copied, {FOLDER}/ names it")
        console.print(f"  [bold]Done: {escape(str(result.out))}[/]  Next: {escape(next_step(result))}", markup=True)
    raise typer.Exit(0 if result.holds else 4)


def _apply_fleet(asked: Sequence[Order], executor: Carrier, as_json: bool) -> NoReturn:
    """Apply several, say of each what became of it, and exit."""
    from planner.cli.progress import shown
    from planner.cli.tables.fleet import print_fleet, print_member
    from planner.fleet import Fleet, apply_all, carrying
    from planner.plan.codec import to_json

    console, ended = screen(as_json), {}
    with shown(console) as progress, carrying([each.what for each in asked], executor, asked[0].device) as carries:
        for member in apply_all(asked, carries, progress):
            print_member(console, member)
            ended[member.what] = member
    fleet = Fleet(tuple(ended[str(each.what)] for each in asked))
    if as_json:
        emit(to_json(fleet) | {"exit_code": fleet.exit_code})
    else:
        print_fleet(console, fleet)
    raise typer.Exit(fleet.exit_code)


@app.command()
def show(
    what: Annotated[Path, typer.Argument(help="A plan, or a result's folder.")],
    graph: Annotated[
        Drawing | None, typer.Option("--graph", help="Draw the graph of its steps; --json passes this over.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Read a plan or a result."""
    from planner.certificate import NAME, read_certificate, result_folder
    from planner.cli.tables.certificate import print_certificate, print_origin, print_soaked, print_whole
    from planner.cli.tables.page import Page
    from planner.cli.tables.plan import print_plan
    from planner.job_graph import plan_needs_text, planned_graph, result_graph
    from planner.plan.codec import to_json
    from planner.plan.lock import staleness
    from planner.plan.saved import PLAN, load_plan
    from planner.verifying.report import read_report
    from planner.verifying.result import origin, verify_files

    if result_folder(what) or what.name == NAME:
        folder = what if what.is_dir() else what.parent
        files, certificate = verify_files(folder, quick=True), read_certificate(folder / NAME)
        made_for = origin(folder, certificate)
        if as_json:
            emit(to_json(certificate) | {"origin": to_json(made_for), "files": to_json(files)})
        elif graph is not None:
            sys.stdout.write(drawn(result_graph(certificate, folder), graph))
        else:
            print_certificate(screen(), certificate)
            if made_for is not None:
                print_origin(screen(), made_for)
            if certificate.soak is not None:
                print_soaked(screen(), certificate.soak)
            print_whole(screen(), files)
        raise typer.Exit(0 if files.holds else 4)
    document = load_plan(what / PLAN if what.is_dir() else what)
    if as_json:
        emit(to_json(document))
    elif graph is not None:
        sys.stdout.write(drawn(planned_graph(document, needs_text=plan_needs_text(document)), graph))
    else:
        print_plan(screen(), document, document.lock.gpu.name, str(what))
    for moved in staleness(document):
        Page(screen(True)).line("  stale: ", str(moved), style="yellow")
    if what.is_dir():  # served as it is: launch files, and what verify found
        files, verified = verify_files(what, quick=True), read_report(what)
        if verified is not None and verified.soak is not None:
            print_soaked(screen(True), verified.soak)
        print_whole(screen(True), files)
        raise typer.Exit(0 if files.holds else 4)


@app.command()
def explain(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PLAN|SPEC] [QUESTION...]",
            help="A plan or spec (default: the plan last saved in this folder), then a question, as it is: why not awq, why g64, "
            "what if 2 x 4090, what if context 64k, cheapest card that fits, fewest bits at 2 %.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Say why each candidate lost, or answer a question about the plan with the figures of both plans."""
    from passes.ir.sources import open_model
    from planner.apply import find_plan
    from planner.explain.answer import explain as run
    from planner.plan.document import asked_spec
    from planner.plan.saved import load_plan
    from planner.spec.parse import load_spec

    said = list(words or ())
    path = Path(said.pop(0)) if said and _names_a_file(said[0]) else find_plan(Path())
    spec = load_spec(path) if path.suffix in (".yaml", ".yml") else asked_spec(load_plan(path))
    answer = run(spec, open_model(spec.model, revision=spec.revision, assume=spec.assume), " ".join(said))
    if as_json:
        emit(answer.as_json())
        return
    from planner.cli.tables.explain import print_answer

    print_answer(screen(), answer)


def _names_a_file(word: str) -> bool:
    """Whether the first word is a plan or a spec, not the beginning of a question."""
    from planner.spec.arguments import is_file

    return Path(word).suffix in (".json", ".yaml", ".yml") or is_file(Path(word))


@app.command()
def diff(
    old: Annotated[Path, typer.Argument(help="A plan, or a result's folder.")],
    new: Annotated[Path, typer.Argument(help="Another one.")],
    as_json: Json = False,
) -> None:
    """Compare two plans or results: which inputs moved, which choices follow, and what was measured."""
    from planner.explain.diff import diff_files
    from planner.plan.codec import to_json

    difference = diff_files(old, new)
    if as_json:
        emit(to_json(difference))
        return
    from planner.cli.tables.explain import print_diff

    print_diff(screen(), difference)


@app.command()
def drift(
    plan: Annotated[Path, typer.Argument(help="A plan, or a result's folder.")],
    engine_version: Annotated[
        list[str] | None, typer.Option(help="The version to come; may be given more than once.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Every version that is known to differ.")] = False,
    as_json: Json = False,
) -> None:
    """Say what becomes of a plan under another version of its engine. Exit 3 when it no longer starts or serves there, 6 when
    what comes of it there is not known.
    """
    from planner.explain.drift import drift as run
    from planner.plan.codec import to_json
    from planner.plan.opened import opened

    if every == bool(engine_version):
        raise InputError(
            "drift takes an --engine-version, or --all of them", remedy="for instance: --engine-version 0.33"
        )
    document = run(opened(plan), engine_version or ())
    if as_json:
        emit(to_json(document))
    else:
        from planner.cli.tables.drift import print_drift

        print_drift(screen(), document, every=every)
    raise typer.Exit(0 if every else document.exit_code)


#: The load that is put on, and for how long.
_LOAD = {
    "soak": Annotated[
        bool | None,
        typer.Option(
            "--soak", help="Fill the context to its promised length too, with all clients, and watch what holds."
        ),
    ],
    "rate": Annotated[
        float | None,
        bounded("Requests a second, arriving by chance; default: the workload's clients.", 0.001, 1e6),
    ],
    "seconds": Annotated[
        float | None,
        bounded(
            "How long the load may take, by the prediction (120), three answers a client at least; and the soak, by the clock (600).",
            1,
            1e6,
        ),
    ],
}


@app.command()
@grouped("load", _LOAD)
def verify(
    out: Annotated[Path, typer.Argument(help="A result's folder.")],
    engine: Annotated[
        Path | None, typer.Option(help="The Python that has the engine; default: TIGHTFIT_ENGINE.")
    ] = None,
    tabby: Annotated[
        Path | None, typer.Option(help="A checkout of TabbyAPI to drive too; default: TIGHTFIT_TABBY, TABBYAPI.")
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Start nothing: hold every file against the list that apply wrote.")
    ] = False,
    as_json: Json = False,
    *,
    load: Mapping[str, Any],
) -> None:
    """Start the engine on a result, put the workload's load on it, measure. Exit 4 when a promise is not kept."""
    from planner.cli.tables.certificate import print_verified, print_whole
    from planner.plan.codec import to_json
    from planner.verifying.result import verify_files
    from planner.verifying.verify import UnderLoad
    from planner.verifying.verify import verify as run

    console = screen(as_json)
    if offline:
        files = verify_files(out)
        if as_json:
            emit(to_json(files))
        else:
            print_whole(console, files)
        raise typer.Exit(0 if files.holds else 4)
    report = run(
        out,
        engine,
        checkout=tabby,
        load=UnderLoad(**load),
        say=lambda text: console.print(f"  {text}", style="dim"),
    )
    if as_json:
        emit(report.as_json())
    else:
        print_verified(console, report)
    raise typer.Exit(0 if report.holds else 4)


@app.command()
def launch(
    what: Annotated[Path | None, typer.Argument(help="A result's folder, or a saved plan.")] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(help="What runs the server: compose, kubernetes, …, or all; may be given more than once."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The file, or the folder for more than one; default: print.")
    ] = None,
    listed: Annotated[bool, typer.Option("--list", help="List the targets.")] = False,
    as_json: Json = False,
) -> None:
    """Write what starts a result's engine on a launch target. The result's own `launch/run.sh` is there already."""
    from planner.plan.launch import ALL, deployed, every_target, target_files

    if listed:
        _list_targets(as_json)
        return
    if what is None or not target:
        raise InputError(
            "launch takes a result or a plan, and a --target", remedy="`optimize launch --list` names the targets"
        )
    server = deployed(what)
    files, refused = every_target(server) if ALL in target else (target_files(server, target), ())
    for each in refused:
        screen(True).print(f"  without {each.target}: {each.message}", style="dim")
    places = _written(files, what, output) if output is not None else (None,) * len(files)
    if as_json:
        from planner.documents.launched import File, LaunchDocument
        from planner.plan.codec import to_json

        told = tuple(
            File(file.path, file.text, file.executable, str(place) if place else None)
            for file, place in zip(files, places, strict=True)
        )
        emit(to_json(LaunchDocument(told, refused)))
    elif output is None:
        heads = (f"# {file.path}\n" if len(files) > 1 else "" for file in files)
        sys.stdout.writelines(f"{head}{file.text}" for head, file in zip(heads, files, strict=True))
    for place in places:
        if place is not None:
            screen(as_json).print(f"  Wrote {place}")


def _list_targets(as_json: bool) -> None:
    from planner.plan.launch import launch_targets

    if as_json:
        emit([{"name": name, "title": title} for name, title in launch_targets()])
        return
    from planner.cli.tables.page import Page

    for name, title in launch_targets():
        Page(screen()).line(f"  {name:18s} ", title)


def _written(files: Sequence[LaunchFile], read: Path, output: Path) -> tuple[Path, ...]:
    """Write launch files: one into the file that `output` names, or all into that folder. Returns where each is."""
    from targets.launch.write import write_files

    if len(files) == 1 and output.suffix and not output.is_dir():
        files, output = (replace(files[0], path=output.name),), output.parent
    places = tuple(sparing(read, output / file.path) for file in files)
    write_files(output, files)
    return places


#: A served model, as `planner.calibrate.Server` has it.
_SERVER = {
    "url": Annotated[str | None, typer.Option(help="A served model to put a short load on: http://host:port.")],
    "model": Annotated[str | None, typer.Option(help="With --url: what is served, a folder or a name.")],
    "served_name": Annotated[str | None, typer.Option(help="With --url: the name it is served by.")],
    "tp": Annotated[
        int | None, typer.Option(min=1, max=LARGEST, help="With --url: its tensor parallel degree; default: 1.")
    ],
}


@app.command()
@grouped("served", _SERVER)
def calibrate(
    gpu: Annotated[str | None, typer.Option(help="Card; default: this machine's first, else its processor.")] = None,
    engine: Annotated[
        Path | None, typer.Option(help="The Python that has the engine; default: TIGHTFIT_ENGINE.")
    ] = None,
    seconds: Annotated[float, bounded("How long it may measure.", 2, 60)] = 20.0,
    as_json: Json = False,
    *,
    served: Mapping[str, Any],
) -> None:
    """Measure this machine; predictions for it then say `measured`. With --url, the served engine as well."""
    from planner.calibrate import Server
    from planner.calibrate import calibrate as run

    console = screen(as_json)
    server = Server(**{"model": None, "served_name": None, **served}) if "url" in served else None
    profile = run(gpu, engine, server, seconds, say=lambda text: console.print(f"  {text}", style="dim"))
    if as_json:
        emit(profile.as_json())
        return
    for line in profile.lines():
        console.print(f"  {line}")
