"""Arguments of the Python facade, held against what is expected: a wrong one is an InputError that names it, as on the command line."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

from passes.errors import InputError
from passes.ir.fields import LARGEST, shown
from planner.spec.units import as_typed_tokens


def of_kind(name: str, value: Any, kinds: type | tuple[type, ...], expected: str) -> None:
    """Raise InputError where an argument is none of some kinds; `expected` says in words what it may be."""
    if not isinstance(value, kinds):
        raise InputError(f"{name} is {shown(value)}, a {type(value).__name__}", remedy=f"expected is {expected}")


def file_named(name: str, value: Any, expected: str) -> Path:
    """Return an argument as a path. Raises InputError where it is no text or path."""
    of_kind(name, value, (str, PathLike), expected)
    return Path(value)


def count(name: str, value: Any) -> int | None:
    """Return an argument that is a whole number from 1 on, `32k` (32,768), or left out. Raises InputError for anything else."""
    number = as_typed_tokens(value)
    if number is None:
        return None
    if not isinstance(number, int) or isinstance(number, bool) or not 1 <= number <= LARGEST:
        raise InputError(
            f"{name} is {shown(value)}", remedy="expected is a whole number from 1 on, such as 8192 or '32k'"
        )
    return number
