"""A finished result against its plan, and the running engine against both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from planner.cli.tables.page import Page
from planner.cli.tables.parts import size, tick
from planner.figures import apart

if TYPE_CHECKING:
    from planner.certificate import Certificate, Comparison, SoakReport
    from planner.verifying.report import VerifyReport
    from planner.verifying.result import FilesReport, Origin

#: A name, what was predicted, what was measured, and a mark.
_Row = tuple[str, str, str, Text]
_WITHOUT_END = 1000


def print_certificate(console: Console, certificate: Certificate) -> None:
    """Print a finished result: what was promised and what was measured."""
    page = Page(console)
    page.line("  ", Text.from_markup(f"[bold]{escape(certificate.model)}[/] → {escape(certificate.label)}"))
    goals = [
        (f"goal: {goal.name}", *apart(goal.wanted, goal.measured, goal.name.unit), Text.from_markup(tick(goal.met)))
        for goal in certificate.goals
    ]
    _print_rows(
        page, [*_compared(certificate.checks), *((name, f"≤ {most}", found, mark) for name, most, found, mark in goals)]
    )
    for note in certificate.notes:
        page.line("  note: ", note, style="yellow")
    for step in certificate.steps:
        reused = " (kept from an earlier run)" if step.reused else ""
        seconds = f"{step.seconds:8.1f} s" + (f" of {step.expected_seconds:.0f}" if step.expected_seconds else "")
        console.print(f"  {step.name:20s}{seconds:18s} peak {size(step.peak_bytes)}{reused}", style="dim")


def _compared(checks: Sequence[Comparison]) -> list[_Row]:
    return [(check.name, check.predicted, check.measured, _mark(check)) for check in checks]


def _print_rows(page: Page, rows: Sequence[_Row]) -> None:
    """Print what was predicted beside what was measured; where no columns have room, below its name."""
    table = Table(box=None, pad_edge=False, padding=(0, 2))
    for title in ("", "predicted", "measured", ""):
        table.add_column(title)
    for name, predicted, measured, mark in rows:
        table.add_row(f"  {name}", predicted, measured, mark)
    whole = page.console.measure(table, options=page.console.options.update_width(_WITHOUT_END)).maximum
    if page.width is None or whole <= page.width:
        page.console.print(table)
        return
    for name, predicted, measured, mark in rows:
        page.line("  ", name)
        said = f"{'asked' if predicted.startswith('≤') else 'predicted'} {predicted}; " if predicted else ""
        page.line("    ", Text(f"{said}measured {measured} ") + mark)


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
    page = Page(console)
    _print_rows(page, _compared(report.checks))
    for timing in report.loads:
        page.line("  ", f"{timing.described}: {timing.seconds:.0f} s, {timing.tok_s:,.1f} tok/s")
        spreads = {"TTFT": timing.ttft_ms, "TPOT": timing.tpot_ms}
        shown = (f"{name} median {each.median:,.1f}, p95 {each.p95:,.1f} ms" for name, each in spreads.items())
        failed = f"; first error: {timing.error}" if timing.error else ""
        page.line("    ", "; ".join(shown) + failed, style="dim")
    if report.soak is not None:
        print_soaked(console, report.soak)
    for note in report.notes:
        page.line("  note: ", note, style="dim")
    verdict = "[bold green]Verified[/]" if report.holds else "[bold red]A promise is not kept[/]"
    page.line("  ", Text.from_markup(f"{verdict}; started in {report.start_seconds:.0f} s"))


def print_soaked(console: Console, soak: SoakReport) -> None:
    """Print what held when every request filled its context, beside what the plan promised."""
    page = Page(console)
    page.line("  ", f"Soaked: {soak.timing.described}, {soak.timing.seconds:.0f} s", style="bold")
    _print_rows(page, _compared(soak.checks))


def print_origin(console: Console, origin: Origin) -> None:
    """Print what a result was made for, of what, and what of it nobody measured."""
    page = Page(console)
    version = f" {origin.engine_version}" if origin.engine_version else ""
    clients = f", {origin.concurrency} at once" if origin.concurrency else ""
    page.line("  made for      ", f"{origin.cards} × {origin.card}, {origin.engine}{version}")
    load = f"context {origin.context:,}, {origin.input_tokens:,} tokens in, {origin.output_tokens:,} out{clients}"
    page.line("  workload      ", load)
    revision = f"revision {origin.revision}" if origin.revision else f"headers {origin.header_digest[:12]}"
    page.line("  source        ", f"{revision}; by tightfit {origin.tightfit}")
    page.line("  texts         ", f"calibration {origin.calibration}; evaluation {origin.evaluation}")
    if origin.unmeasured:
        page.line("  not measured  ", f"{', '.join(origin.unmeasured)} (optimize verify)", style="yellow")


def print_whole(console: Console, files: FilesReport) -> None:
    """Print whether a result's files are what was made, and which are not."""
    page = Page(console)
    for each in files.damage:
        page.line("  ✗ ", each.message, style="red")
    if files.digest is None and files.holds:
        page.line("  files         ", "no list of them: made by an older version", style="dim")
    elif files.holds:
        how = "in their sizes; `optimize verify --offline` reads them" if files.quick else "every byte"
        page.line("  files         ", f"as they were made, {how}; digest {files.digest}", style="dim")
