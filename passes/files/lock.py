"""One run at a time: two in one work folder would write each other's blocks, two into one result would publish each other's files."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from passes.errors import InputError
from passes.files.os_errors import clear_disk_errors


@contextmanager
def only_one(path: Path, at_work_in: Path) -> Iterator[None]:
    """Hold the lock file `path`; the system lets go of it whenever the process ends. Raises InputError where another process has it.

    The file stays: one that is removed could be held by one process while the next makes another of its name.
    """
    with clear_disk_errors(at_work_in):
        handle = path.open("a")
    with handle:
        try:
            with clear_disk_errors(at_work_in):
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except InputError as error:
            if not isinstance(error.__cause__, BlockingIOError):
                raise
            raise InputError(
                f"another apply is at work in {at_work_in}", remedy="wait for it to end, or name another folder"
            ) from None
        yield
