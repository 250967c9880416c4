"""Progress of long work: on a terminal a bar a step, elsewhere (logs of jobs) a line now and then; both say what is left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import ProgressColumn, Task
    from rich.table import Column

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


class Course:
    """How a step came on since the first that was heard of it, by a clock in seconds, and when it will be through."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None
        self._last = (0.0, 0)
        self._total = 0

    def note(self, done: int, total: int, now: float) -> None:
        """Note where it is."""
        if self._first is None or total != self._total:
            self._first, self._last, self._total = (now, done), (now, done), total
        elif done > self._last[1]:
            self._last = (now, done)

    def left(self, now: float) -> float | None:
        """Return the seconds that are left, by the mean of what is done; None where nothing is known, or that has run out: it does
        something then that it does not count.
        """
        if self._first is None or self._last[1] == self._first[1] or self._last[1] >= self._total:
            return None
        (began, before), (then, done) = self._first, self._last
        ahead = (then - began) / (done - before) * (self._total - done) - (now - then)
        return ahead if ahead > 0 else None


#: Columns of a bar with its name, counts and times.
_WITHOUT_WORDS = 62


def _within(room: int, words: str) -> str:
    """Words in so many columns, with a sign of what is left out."""
    return words if len(words) <= room else f"{words[: room - 1]}…" if room > 1 else ""


def _ahead(task: Task) -> float | None:
    """The seconds that a step has left."""
    known: float | None = task.fields["course"].left(task.get_time())
    return known if task.stop_time is None else 0.0


def _clock(seconds: Callable[[Task], float | None], column: Column) -> ProgressColumn:
    """A column with a time of each step; a sign for what is not known."""
    from datetime import timedelta

    from rich.progress import ProgressColumn
    from rich.text import Text

    class Clock(ProgressColumn):
        max_refresh = 0.5

        def render(self, task: Task) -> Text:
            known = seconds(task)
            return Text("-:--:--" if known is None else str(timedelta(seconds=int(known))))

    return Clock(table_column=column)


@contextmanager
def _bars(console: Console) -> Iterator[Callable[[Progress], None]]:
    from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn
    from rich.progress import Progress as Bars
    from rich.table import Column

    # What is said beside them takes no room of the times: a narrow terminal shortens the bar, then the words.
    counted, past, ahead = (Column(no_wrap=True) for _ in range(3))
    columns = (
        TextColumn("  {task.description:20s}", markup=False), BarColumn(), MofNCompleteColumn(table_column=counted),
        _clock(lambda task: task.elapsed, past), _clock(_ahead, ahead),
        TextColumn("{task.fields[detail]}", markup=False),
    )  # fmt: skip
    room = max(0, console.width - _WITHOUT_WORDS)
    with Bars(*columns, console=console) as bars:
        tasks: dict[str, tuple[TaskID, Course]] = {}

        def finish() -> None:
            """End a step when the next begins: its bar is full and its clock, which goes on beside a full bar until then, stands."""
            for task in bars.tasks:
                if task.stop_time is None:
                    total = task.total or 1
                    bars.update(task.id, total=total, completed=total)
                    bars.stop_task(task.id)

        def report(event: Progress) -> None:
            """Show where a step is."""
            if event.kept:
                bars.console.print(_kept(event), style="dim", markup=False)
                return
            # A step that counts nothing has a bar that only moves.
            total = None if event.total == 1 and event.done == 0 else event.total
            if event.step not in tasks:
                finish()
                course = Course()
                tasks[event.step] = bars.add_task(event.step, total=total, detail="", course=course), course
            task, course = tasks[event.step]
            if total is not None:
                course.note(event.done, total, bars.get_time())
            bars.update(task, total=total, completed=event.done, detail=_within(room, event.detail))

        yield report
        finish()
