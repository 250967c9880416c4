"""Where a result is made, and how it gets its name: beside its place, held by one run, nothing of the user's touched.

<out>.partial    made here, marked as ours from its first moment
.<out>.lock      held while a run works on it
.<out>.old       an older result, while the newer one takes its name
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from passes.errors import InputError
from passes.files.lock import only_one
from passes.files.os_errors import clear_disk_errors

#: Names the folder as ours, and the key of what is in it.
MARKER = "tightfit.json"


def partial_of(out: Path) -> Path:
    """Name the folder where a result is made before it gets its name."""
    return out.with_name(out.name + ".partial")


def aside_of(out: Path) -> Path:
    """Name the folder where an older result lies while a newer one takes its name."""
    return out.with_name(f".{out.name}.old")


def finished(folder: Path) -> bool:
    """Return whether a folder is a result of ours that was finished: its marker says what is in it."""
    marker = folder / MARKER
    return marker.is_file() and marker.stat().st_size > 0


def check_places(result: Path, work: Path, source: Path | None) -> None:
    """Refuse places that hold what is not ours, or that lie in each other. `source`: the model's folder, where it has one."""
    out, working = result.resolve(), work.resolve()
    if not out.name or os.path.ismount(out):
        raise InputError(f"{result} is no place for a result", remedy="name a folder that does not exist yet")
    for place in (out, partial_of(out), aside_of(out)):
        if source is not None and _overlap(place, source.resolve()):
            raise InputError(
                f"the output folder {result} overlaps the source {source}", remedy="choose another output folder"
            )
        if _overlap(place, working):
            raise InputError(
                f"the output folder {result} overlaps the work folder {work}", remedy="choose another output folder"
            )
        if place.exists() and not place.is_dir():
            raise InputError(f"{place} is a file", remedy="choose another output folder")
        if place.is_dir() and any(place.iterdir()) and not (place / MARKER).exists():
            raise InputError(
                f"{place} holds files that are not a result of tightfit",
                remedy="choose another output folder, or empty it",
            )
    if source is not None and (working == source.resolve() or source.resolve() in working.parents):
        raise InputError(
            f"the work folder {work} lies in the source {source}, which is only ever read",
            remedy="choose another work folder",
        )


def _overlap(folder: Path, other: Path) -> bool:
    return folder == other or other in folder.parents or folder in other.parents


@contextmanager
def holding(out: Path) -> Iterator[None]:
    """Hold the place of a result for this run. One that cannot be written to is said now, not after the walk."""
    partial = partial_of(out)
    with clear_disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    with only_one(out.with_name(f".{out.name}.lock"), out):
        with clear_disk_errors(partial):
            partial.mkdir(exist_ok=True)
            (partial / MARKER).touch()
        try:
            yield
        finally:
            _tidy(partial)


def _tidy(partial: Path) -> None:
    """A place that nothing was put into is not left behind."""
    if partial.is_dir() and [path.name for path in partial.iterdir()] in ([], [MARKER]):
        shutil.rmtree(partial, ignore_errors=True)


def claim(folder: Path) -> None:
    """Make a folder ours, and empty: its marker, which says nothing yet, is there before anything else and stays."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).write_text("")
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != MARKER:
            path.unlink()


def publish(folder: Path, out: Path) -> Path:
    """Give a finished folder its name. What had it goes aside first and away last: whenever this ends, a result is whole or not there."""
    aside = aside_of(out)
    with clear_disk_errors(out):
        _remove(aside)
        if out.exists():
            out.rename(aside)
        folder.rename(out)
        _remove(aside)
    return out


def _remove(folder: Path) -> None:
    """Remove a folder of ours, its marker last: however far this comes, the next run knows whose it is."""
    if folder.is_dir():
        claim(folder)
        (folder / MARKER).unlink()
        folder.rmdir()
