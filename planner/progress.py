"""Progress of `apply` on a terminal: one bar a step, with an estimate from the blocks already done."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from passes.job import Progress


@contextmanager
def bars(console: Console) -> Iterator[Callable[[Progress], None]]:
    """Yields the callback that `passes.execute` reports to."""
    from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("  {task.description:20s}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}"),
    )  # fmt: skip
    with Bars(*columns, console=console) as shown:
        tasks: dict[str, TaskID] = {}

        def finish() -> None:
            """One step ends when the next begins: its bar is full and its clock stands."""
            for task in shown.tasks:
                if not task.finished:
                    total = task.total or 1
                    shown.update(task.id, total=total, completed=total)
                    shown.stop_task(task.id)

        def report(event: Progress) -> None:
            # A step that counts nothing has a bar that only moves.
            total = None if event.total == 1 and event.done == 0 else event.total
            if event.step not in tasks:
                finish()
                tasks[event.step] = shown.add_task(event.step, total=total, detail="")
            shown.update(tasks[event.step], total=total, completed=event.done, detail=event.detail)

        yield report
        finish()
