"""What becomes of a plan under other versions of its engine: all that changes in one, or a line a version."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console

from planner.cli.tables.page import Page
from planner.figures import apart, show

if TYPE_CHECKING:
    from planner.explain.drift import Changed, DriftDocument, VersionDrift


def print_drift(console: Console, document: DriftDocument, *, every: bool) -> None:
    """Print the plan, then each version against the planned one."""
    page, planned = Page(console), document.planned
    page.line("  ", f"{document.model} on {document.gpu}, {document.label}", "bold")
    page.line("  ", f"planned for {document.engine} {planned.version}: {_tokens(planned)}")
    page.blank()
    if every:
        for before, version in zip((None, *document.versions), document.versions, strict=False):
            page.line(f"  {version.version:8s} ", _row(version, before), "" if version.fits else "red")
        return
    for version in document.versions:
        _whole(page, document.engine, version)


def _whole(page: Page, engine: str, version: VersionDrift) -> None:
    page.line("  ", f"{engine} {version.version}: {_verdict(version)}", _style(version))
    for reason in version.refused:
        page.line("    ", reason.message, "red")
        if reason.remedy:
            page.line("      ", reason.remedy, "dim")
    for change in version.changes:
        page.line(f"    {change.what:24s} ", _change(change))
    if not version.changes and version.known:
        page.line("    ", "nothing changes")
    for note in version.notes:
        page.line("    ", note, "dim")


def _row(version: VersionDrift, before: VersionDrift | None) -> str:
    """The cache against the planned one; what the version refuses, or what the engine does otherwise than in the version `before`."""
    brought = (
        ()
        if before is None
        else (f"{name} {value}" for name, value in version.by_itself.items() if before.by_itself.get(name) != value)
    )
    said = "; ".join(reason.message for reason in version.refused) or (
        "" if version.fits else "does not hold what was asked"
    )
    tokens = next((_share(change) for change in version.changes if change.what == "KV tokens"), "as planned")
    return f"{_tokens(version):20s} {tokens:11s} {f'refused: {said}' if said else '; '.join(brought)}".rstrip()


def _style(version: VersionDrift) -> str:
    if not version.known:
        return "bold yellow"
    return "bold" if version.fits else "bold red"


def _verdict(version: VersionDrift) -> str:
    if not version.known:
        return "not known"
    if version.refused:
        return "refused"
    return "the plan holds" if version.fits else "the plan does not hold"


def _tokens(version: VersionDrift) -> str:
    return show(version.figure("KV tokens").value.value, "tokens")


def _change(change: Changed) -> str:
    before, after = _ends(change)
    share = "" if change.share is None else f"  {_share(change)}"
    return f"{before} → {after}{share}"


def _share(change: Changed) -> str:
    return "" if change.share is None else show(change.share, "%")


def _ends(change: Changed) -> tuple[str, str]:
    """Both values, figures with the digits that tell them apart."""
    if isinstance(change.planned, str) or isinstance(change.there, str):
        return str(change.planned), str(change.there)
    return apart(float(change.planned), float(change.there), change.unit)
