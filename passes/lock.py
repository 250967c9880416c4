"""One run at a time in a work folder: two would write each other's blocks."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from passes.machine_errors import clear_disk_errors
from passes.reason import InputError


@contextmanager
def only_one(folder: Path) -> Iterator[None]:
    """Hold a work folder for this process; the system lets go of it whenever the process ends. Raises InputError where another has it."""
    path = folder / "lock"
    with clear_disk_errors(path):
        handle = path.open("a")
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(
                f"another apply is at work in {folder}", remedy="wait for it to end, or name another folder with --work"
            ) from None
        yield
