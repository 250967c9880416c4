"""Progress of `apply` on a terminal: one bar a step, with an estimate from the blocks already done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from passes.execute import Progress


@contextmanager
def bars(console: Console) -> Iterator[Callable[[Progress], None]]:
    """Yields the callback that `passes.execute` reports to."""
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("  {task.description:20s}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}"),
    )  # fmt: skip
    with Bars(*columns, console=console) as shown:
        tasks: dict[str, int] = {}

        def report(event: Progress) -> None:
            if event.step not in tasks:
                tasks[event.step] = shown.add_task(event.step, total=event.total, detail="")
            shown.update(tasks[event.step], total=event.total, completed=event.done, detail=event.detail)  # type: ignore[arg-type]

        yield report
