"""Errors of Python that a user can mend, as ours: files that cannot be used, packages that are not installed."""

from __future__ import annotations

from passes.errors import InputError, TightfitError
from planner.setup.extras import extra_with, install


def as_told(error: Exception, asked: str) -> TightfitError | None:
    """Return an error as it is told to who gave a command or called a function (`asked`); None for a defect of ours."""
    if isinstance(error, TightfitError):
        return error
    if isinstance(error, ModuleNotFoundError):
        extra = None if error.name is None else extra_with(error.name)
        if extra is None:
            return None
        message = f"{asked} needs {error.name}, which is not installed here"
        return InputError(message, remedy=f"{install(extra)}; `optimize doctor` says what else this machine has")
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return InputError(f"{where}{error.strerror or error}", remedy="check the path, its permissions and the disk")
    return None
