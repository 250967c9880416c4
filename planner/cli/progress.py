"""Progress of long work: on a terminal a bar a step, elsewhere (logs of jobs) a line now and then; both say what is left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

    from passes.steps.progress import Progress

#: Seconds between two lines of a step at least; its first and its last are always said.
_LINE_EVERY = 5.0


@contextmanager
def shown(console: Console) -> Iterator[Callable[[Progress], None]]:
    """Yield the callback that long work reports to."""
    if not console.is_terminal:
        yield Lines(lambda text: console.print(text, markup=False)).report
        return
    with _bars(console) as report:
        yield report


class Lines:
    """Progress as lines of text, for `say`."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._first: dict[str, Progress] = {}
        self._said: dict[str, Progress] = {}

    def report(self, event: Progress) -> None:
        """Say an event, unless this step was heard of a moment ago."""
        if event.kept:
            self._say(_kept(event))
            return
        counts = event.done > 0 or event.total > 1
        first = self._first.setdefault(event.step, event) if counts else event
        said = self._said.get(event.step)
        if said is not None and (
            event.done == said.done or (event.done < event.total and event.seconds - said.seconds < _LINE_EVERY)
        ):
            return
        self._said[event.step] = event
        if not counts:
            self._say(f"  {event.step}")
            return
        parts = [
            f"  {event.step} {event.done}/{event.total}",
            f"{event.seconds:.0f} s{left(first, event)}",
            event.detail,
        ]
        self._say("  ".join(part for part in parts if part))


def _kept(event: Progress) -> str:
    """Write that a step need not be done again."""
    return f"  {event.step:20s} kept from before" + (f", {event.seconds:.0f} s saved" if event.seconds >= 1 else "")


def left(first: Progress, now: Progress) -> str:
    """Write `, 40 s left`, from how a step came on since the first that was heard of it; nothing where that says nothing."""
    done, seconds = now.done - first.done, now.seconds - first.seconds
    if done <= 0 or seconds <= 0 or now.done >= now.total:
        return ""
    return f", about {seconds / done * (now.total - now.done):.0f} s left"


#: Columns of a bar with its name, counts and times.
_WITHOUT_WORDS = 62


def _within(room: int, words: str) -> str:
    """Words in so many columns, with a sign of what is left out."""
    return words if len(words) <= room else f"{words[: room - 1]}…" if room > 1 else ""


@contextmanager
def _bars(console: Console) -> Iterator[Callable[[Progress], None]]:
    from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars
    from rich.table import Column

    # What is said beside them takes no room of the times: a narrow terminal shortens the bar, then the words.
    counted, past, ahead = (Column(no_wrap=True) for _ in range(3))
    columns = (
        TextColumn("  {task.description:20s}", markup=False), BarColumn(), MofNCompleteColumn(table_column=counted),
        TimeElapsedColumn(table_column=past), TimeRemainingColumn(table_column=ahead),
        TextColumn("{task.fields[detail]}", markup=False),
    )  # fmt: skip
    room = max(0, console.width - _WITHOUT_WORDS)
    with Bars(*columns, console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def finish() -> None:
            """End a step when the next begins: its bar is full and its clock stands."""
            for task in bars.tasks:
                if not task.finished:
                    total = task.total or 1
                    bars.update(task.id, total=total, completed=total)
                    bars.stop_task(task.id)

        def report(event: Progress) -> None:
            if event.kept:
                bars.console.print(_kept(event), style="dim", markup=False)
                return
            # A step that counts nothing has a bar that only moves.
            total = None if event.total == 1 and event.done == 0 else event.total
            if event.step not in tasks:
                finish()
                tasks[event.step] = bars.add_task(event.step, total=total, detail="")
            bars.update(tasks[event.step], total=total, completed=event.done, detail=_within(room, event.detail))

        yield report
        finish()
