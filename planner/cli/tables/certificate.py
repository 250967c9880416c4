"""A finished result against its plan, and the running engine against both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from planner.cli.tables.parts import size, tick
from planner.figures import apart

if TYPE_CHECKING:
    from planner.certificate import Certificate, Comparison, SoakReport
    from planner.verifying.report import VerifyReport
    from planner.verifying.result import FilesReport, Origin


def print_certificate(console: Console, certificate: Certificate) -> None:
    """Print a finished result: what was promised and what was measured."""
    console.print(f"  [bold]{escape(certificate.model)}[/] → {escape(certificate.label)}", markup=True)
    table = _comparisons(certificate.checks)
    for goal in certificate.goals:
        wanted, measured = apart(goal.wanted, goal.measured, goal.name.unit)
        table.add_row(f"  goal: {goal.name}", f"≤ {wanted}", measured, Text.from_markup(tick(goal.met)))
    console.print(table)
    for note in certificate.notes:
        console.print(f"  note: {note}", style="yellow")
    for step in certificate.steps:
        reused = " (kept from an earlier run)" if step.reused else ""
        seconds = f"{step.seconds:8.1f} s" + (f" of {step.expected_seconds:.0f}" if step.expected_seconds else "")
        console.print(f"  {step.name:20s}{seconds:18s} peak {size(step.peak_bytes)}{reused}", style="dim")


def _comparisons(checks: Sequence[Comparison]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2))
    for title in ("", "predicted", "measured", ""):
        table.add_column(title)
    for check in checks:
        table.add_row("  " + check.name, check.predicted, check.measured, _mark(check))
    return table


def _mark(check: Comparison) -> Text:
    """A tick for what holds, a cross for a promise that is not kept; what is better than predicted, or only informs, is no failure."""
    if check.holds:
        return Text("✓", "green")
    if check.measured.startswith("not "):
        return Text("-", "dim")
    if check.better:
        return Text("better", "green")
    return Text("✗", "red") if check.binding else Text("outside", "yellow")


def print_verified(console: Console, report: VerifyReport) -> None:
    """Print what the running engine showed."""
    console.print(_comparisons(report.checks))
    for timing in report.loads:
        console.print(f"  {timing.described}: {timing.seconds:.0f} s, {timing.tok_s:,.1f} tok/s")
        spreads = {"TTFT": timing.ttft_ms, "TPOT": timing.tpot_ms}
        shown = (f"{name} median {each.median:,.1f}, p95 {each.p95:,.1f} ms" for name, each in spreads.items())
        console.print(
            f"    {'; '.join(shown)}" + (f"; first error: {timing.error}" if timing.error else ""), style="dim"
        )
    if report.soak is not None:
        print_soaked(console, report.soak)
    for note in report.notes:
        console.print(f"  note: {note}", style="dim")
    verdict = "[bold green]Verified[/]" if report.holds else "[bold red]A promise is not kept[/]"
    console.print(f"  {verdict}; started in {report.start_seconds:.0f} s", markup=True)


def print_soaked(console: Console, soak: SoakReport) -> None:
    """Print what held when every request filled its context, beside what the plan promised."""
    console.print(f"  Soaked: {soak.timing.described}, {soak.timing.seconds:.0f} s", style="bold")
    console.print(_comparisons(soak.checks))


def print_origin(console: Console, origin: Origin) -> None:
    """Print what a result was made for, of what, and what of it nobody measured."""
    version = f" {origin.engine_version}" if origin.engine_version else ""
    clients = f", {origin.concurrency} at once" if origin.concurrency else ""
    console.print(f"  made for      {origin.cards} × {origin.card}, {origin.engine}{version}")
    console.print(
        f"  workload      context {origin.context:,}, {origin.input_tokens:,} tokens in, {origin.output_tokens:,} out{clients}"
    )
    revision = f"revision {origin.revision}" if origin.revision else f"headers {origin.header_digest[:12]}"
    console.print(f"  source        {revision}; by tightfit {origin.tightfit}")
    console.print(f"  texts         calibration {origin.calibration}; evaluation {origin.evaluation}")
    if origin.unmeasured:
        console.print(f"  not measured  {', '.join(origin.unmeasured)} (optimize verify)", style="yellow")


def print_whole(console: Console, files: FilesReport) -> None:
    """Print whether a result's files are what was made, and which are not."""
    for each in files.damage:
        console.print(f"  [red]✗[/] {escape(each.message)}", markup=True)
    if files.digest is None and files.holds:
        console.print("  files         no list of them: made by an older version", style="dim")
    elif files.holds:
        how = "in their sizes; `optimize verify --offline` reads them" if files.quick else "every byte"
        console.print(f"  files         as they were made, {how}; digest {files.digest}", style="dim")
