"""The steps of a run: each under the key of what it depends on, not done twice, its cost kept whatever ends it.

    <work>/cost-<key>.json    {"seconds", "peak_bytes", "threads"}: all attempts at the step together

Sums of floats depend on how many threads share them, so a step that was cut off goes on with the threads it began with: its
bytes are those of a run that nothing cut off.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from passes.errors import TightfitError
from passes.files.atomic import read_json, readable, write_json
from passes.steps.meter import Meter
from passes.steps.progress import Progress, Step

#: Seconds between two notes of what a step has cost so far.
_NOTED_EVERY = 1.0


class Report(Protocol):
    """Told by a step as it goes on."""

    def __call__(self, done: int, total: int, detail: str = "") -> None:
        """`done` of `total` units; `detail` for people."""


def once(path: Path, make: Callable[[Path], Mapping[str, Any]]) -> dict[str, Any]:
    """Return the JSON object `path`, made where it is missing or damaged.

    `make` is given a folder beside it for what it keeps on the way.
    """
    if not readable(path):
        write_json(path, make(path.with_suffix("")))
    return _result(path)


def _result(path: Path) -> dict[str, Any]:
    """A result that is there. What was kept on the way to it goes."""
    shutil.rmtree(path.with_suffix(""), ignore_errors=True)
    return read_json(path, "measurement")


def part_of(report: Report, before: int, whole: int) -> Report:
    """Return a report for one part of a step, which tells its count as the step's, of whose `whole` so many units came `before`."""

    def part(done: int, total: int, detail: str = "") -> None:
        report(min(before + done, whole), whole)

    return part


class Steps:
    """Runs steps in a work folder and remembers what each took: `finished`, in their order. `elsewhere`: keys of what other processes made
    for this run, which is no earlier run's.
    """

    def __init__(
        self,
        work: Path,
        progress: Callable[[Progress], None] = lambda event: None,
        elsewhere: Collection[str] = (),
    ) -> None:
        self.work, self._elsewhere = work, elsewhere
        self.finished: list[Step] = []
        self._progress = progress

    def run(self, name: str, key: str, done: bool, make: Callable[[Report], None]) -> None:
        """Run `make` unless its result is there. What keeps its parts under `key` goes on where an earlier attempt ended."""
        record = self.work / f"cost-{key}.json"
        before = _saved(record)
        if not done:
            with _threads(before.get("threads")) as threads:
                self._attempt(name, record, before, threads, make)
        cost = _saved(record)
        reused, seconds = done and key not in self._elsewhere, float(cost.get("seconds", 0))
        if reused:
            self._progress(Progress(name, 1, 1, "", seconds, kept=True))
        self.finished.append(Step(name, key, seconds, int(cost.get("peak_bytes", 0)), reused))

    def once(
        self, name: str, key: str, path: Path, make: Callable[[Path, Report], Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Return a JSON object as the function `once` does, as a step."""
        parts = path.with_suffix("")
        self.run(name, key, readable(path), lambda report: write_json(path, make(parts, report)))
        return _result(path)

    def _attempt(
        self, name: str, record: Path, before: dict[str, Any], threads: int, make: Callable[[Report], None]
    ) -> None:
        meter, noted = Meter(), time.monotonic()

        def note() -> None:
            cost = {
                "seconds": round(before.get("seconds", 0) + meter.seconds, 3),
                "peak_bytes": max(before.get("peak_bytes", 0), meter.peak_bytes), "threads": threads,
            }  # fmt: skip
            write_json(record, cost)

        def report(done: int, total: int, detail: str = "") -> None:
            nonlocal noted
            if time.monotonic() - noted > _NOTED_EVERY:
                note()
                noted = time.monotonic()
            self._progress(Progress(name, done, total, detail, meter.seconds))

        note()
        self._progress(Progress(name, 0, 1, "", 0.0))
        try:
            make(report)
        except BaseException:
            with suppress(TightfitError):  # a full disk is said once
                note()
            raise
        note()


def _saved(record: Path) -> dict[str, Any]:
    """What earlier attempts took; nothing where the record is missing or damaged."""
    try:
        return read_json(record, "record of costs")
    except TightfitError:
        return {}


@contextmanager
def _threads(count: int | None) -> Iterator[int]:
    """Compute with so many threads, as many as there are where `count` is None."""
    import torch

    usual = torch.get_num_threads()
    torch.set_num_threads(count or usual)
    try:
        yield count or usual
    finally:
        torch.set_num_threads(usual)
