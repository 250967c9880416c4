"""What a machine refuses (room on the disk, permissions, memory), as one clear message each."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from passes.errors import DoesNotFitError, InputError, TightfitError

#: What the words of torch and of the kernel for a lack of memory have in them.
_NO_MEMORY = ("out of memory", "can't allocate memory", "Cannot allocate memory", "ALLOC_FAILED")
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
#: How safetensors, which is no OSError, says what the system said.
_OS_ERROR = re.compile(r"os error (\d+)")


@contextmanager
def clear_disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk, a missing permission or an impossible place into one clear message. What was finished is resumed."""
    try:
        yield
    except TightfitError:
        raise
    except Exception as error:
        number = _number(error)
        if number is None:
            raise
        if number == errno.ENOMEM:
            raise MemoryError from error
        if number in _FULL:
            raise DoesNotFitError(
                f"the disk is full: could not write {path}",
                remedy="free some space and run the same command again; it resumes",
            ) from error
        if number in _FORBIDDEN:
            raise InputError(
                f"no permission to write {path}",
                remedy="choose another output folder or mend its permissions; a second run resumes",
            ) from error
        said = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"cannot write {path}: {said or error}", remedy="name another place to write to") from error


def _number(error: Exception) -> int | None:
    """The system's number for what went wrong; None where it was nothing of the system's."""
    if isinstance(error, OSError):
        return error.errno or 0
    found = _OS_ERROR.search(str(error))
    return int(found[1]) if found else None


@contextmanager
def clear_memory_errors() -> Iterator[None]:
    """Turn a lack of memory, the processor's or a card's, into one clear message. What was finished is resumed."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error)
        if isinstance(error, MemoryError) or any(words in text for words in _NO_MEMORY):
            raise DoesNotFitError(
                "out of memory while working",
                remedy="use fewer calibration samples, or a machine with more memory; a second run resumes",
            ) from error
        raise
