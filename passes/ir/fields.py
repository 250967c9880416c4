"""The gate for what others wrote: JSON comes in as an object or not at all, and each value is handed on by the type and range asked for.

What is not as expected ends the reading with an InputError that names the file, the key, what was found and what was expected.
"""

from __future__ import annotations

import errno
import json
import math
import reprlib
import stat
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from passes.errors import InputError

#: The largest whole number that a key may say: no size, count or length of a model comes near it.
LARGEST = 2**31 - 1
#: The largest number of layers and of experts: what is walked through one by one. Published: 126 layers, 896 experts.
MOST_LAYERS, MOST_EXPERTS = 1024, 16384

MEND = "Mend this key, or take the file as it was published."
_AGAIN = "Mend it, or take the file as it was published (`hf download` fetches what differs)."

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60
_SHORT.maxlist, _SHORT.maxdict, _SHORT.maxlevel = 4, 3, 2
_WORDS = {None: "null", True: "true", False: "false"}


def shown(value: object) -> str:
    """Write a value that was found as JSON names it, cut to a line."""
    return _WORDS[value] if value is None or isinstance(value, bool) else _SHORT.repr(value)


def json_value(
    raw: str | bytes, where: str, *, remedy: str = _AGAIN, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None
) -> Any:
    """Read a text that is JSON. Raises InputError naming `where` for anything else, however it is broken.

    `pairs`: what makes an object of its keys and values, `json`'s `object_pairs_hook`.
    """
    try:
        return json.loads(raw, object_pairs_hook=pairs)
    except RecursionError:
        raise InputError(f"{where}: nested too deeply to be read", remedy=remedy) from None
    except ValueError as error:
        raise InputError(f"{where}: not valid JSON ({error})", remedy=remedy) from None


def json_object(
    raw: str | bytes, where: str, *, remedy: str = _AGAIN, pairs: Callable[[list[tuple[str, Any]]], Any] | None = None
) -> dict[str, Any]:
    """Read a text that is a JSON object, as `json_value` does. Raises InputError for another value too."""
    value = json_value(raw, where, remedy=remedy, pairs=pairs)
    if not isinstance(value, dict):
        raise InputError(f"{where}: not a JSON object but {shown(value)}", remedy=remedy)
    return value


#: No file of JSON that describes a model, a plan or a result has more bytes: the index of 100,000 tensors takes some 10^7.
_MOST_BYTES = 1 << 28


def file_bytes(path: Path, *, pipes: bool = False) -> bytes:
    """Return what a file of JSON or of lines holds. Raises OSError for one that cannot be read, for what is none (a pipe is waited for, a
    device never ends; no file's name holds a NUL) and for one that is far too large. `pipes`: a pipe is read, where a person named it.
    """
    try:
        found = path.stat()
    except ValueError as error:
        raise OSError(errno.EINVAL, f"not a file's name: {error}", str(path)) from None
    if not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode) or (pipes and stat.S_ISFIFO(found.st_mode))):
        raise OSError(errno.EINVAL, "not a file", str(path))
    if found.st_size > _MOST_BYTES:
        raise OSError(errno.EFBIG, f"{found.st_size:,} bytes are more than any such file has", str(path))
    return path.read_bytes()


class Fields:
    """An object of a file, read key by key. `name` is what the file belongs to, `path` the file and where in it this object stands.

    Every reader takes the spellings of one key and reads the first that is present and not null; without any, `default`, and where
    that is None an error.
    """

    def __init__(self, values: Mapping[str, Any], name: str, path: str, *, remedy: str = MEND) -> None:
        self.values = values
        self.name = name
        self.path = path
        self.remedy = remedy

    def has(self, field: str) -> bool:
        """Tell whether the field is present and not null."""
        return self.values.get(field) is not None

    def get(self, *fields: str, default: Any = None) -> Any:
        """Find the first of the fields that is present and not null, as it is: only to be compared with what is known."""
        return next((value for field in fields if (value := self.values.get(field)) is not None), default)

    def wrong(self, field: str, wanted: str, found: object) -> InputError:
        """Make the error for a value of another type or range than is wanted, in words."""
        return self.refused(f"{field!r} should be {wanted}, found {shown(found)}")

    def refused(self, what: str) -> InputError:
        """Make an error about this object."""
        return InputError(f"{self.name}: {self.path}: {what}", remedy=self.remedy)

    def lacking(self, field: str) -> InputError:
        """Make the error for a key that must be there."""
        return InputError(f"{self.name}: {self.path} lacks {field!r}", remedy=self.remedy)

    def _needed(self, fields: tuple[str, ...], default: Any) -> Any:
        if (value := self.get(*fields, default=default)) is None:
            raise self.lacking(fields[0])
        return value

    def _named(self, fields: tuple[str, ...]) -> str:
        """The spelling that the file uses."""
        return next((field for field in fields if self.has(field)), fields[0])

    def integer(self, *fields: str, default: int | None = None, at_least: int = 0, at_most: int = LARGEST) -> int:
        """Read a whole number within limits."""
        value = self._needed(fields, default)
        if not is_whole(value) or not at_least <= value <= at_most:
            wanted = f"a whole number of at least {at_least} and at most {at_most:,}"
            raise self.wrong(self._named(fields), wanted, value)
        return int(value)

    def number(
        self, *fields: str, default: float | None = None, at_least: float = 0.0, at_most: float = float(LARGEST)
    ) -> float:
        """Read a finite number within limits."""
        value = self._needed(fields, default)
        if not is_number(value) or not at_least <= value <= at_most:
            raise self.wrong(self._named(fields), f"a number of at least {at_least:g} and at most {at_most:g}", value)
        return float(value)

    def flag(self, *fields: str, default: bool = False) -> bool:
        """Read true or false."""
        value = self.get(*fields, default=default)
        if not isinstance(value, bool):
            raise self.wrong(self._named(fields), "true or false", value)
        return value

    def text(self, field: str, default: str | None = None) -> str:
        """Read a string."""
        value = self._needed((field,), default)
        if not isinstance(value, str):
            raise self.wrong(field, "a string", value)
        return value

    def items(self, field: str, length: int | None = None, default: Sequence[Any] | None = None) -> list[Any]:
        """Read a list, of `length` entries where that is given."""
        value = self._needed((field,), default)
        wanted = "a list" if length is None else f"a list of {length}"
        if not isinstance(value, list | tuple):
            raise self.wrong(field, wanted, value)
        if length is not None and len(value) != length:
            raise self.refused(f"{field!r} should be {wanted}, found {len(value)} entries")
        return list(value)

    def names(self, field: str, length: int | None = None, default: Sequence[str] | None = None) -> list[str]:
        """Read a list of strings."""
        return self._each(field, self.items(field, length, default), "a string", lambda item: isinstance(item, str))

    def counts(
        self, field: str, length: int | None = None, default: Sequence[int] | None = None, *, at_least: int = 0,
        at_most: int = LARGEST,
    ) -> list[int]:  # fmt: skip
        """Read a list of whole numbers within limits."""
        wanted = f"a whole number of at least {at_least} and at most {at_most:,}"
        found = self.items(field, length, default)
        return self._each(field, found, wanted, lambda item: is_whole(item) and at_least <= item <= at_most)

    def flags(self, field: str, length: int | None = None, default: Sequence[int] | None = None) -> list[bool]:
        """Read a list of true and false, which some files write as 1 and 0."""
        found = self.items(field, length, default)
        right = self._each(field, found, "true or false", lambda item: isinstance(item, int) and item in (0, 1))
        return [bool(item) for item in right]

    def _each(self, field: str, found: list[Any], wanted: str, right: Callable[[Any], bool]) -> list[Any]:
        for number, item in enumerate(found):
            if not right(item):
                raise self.wrong(f"{field}[{number}]", wanted, item)
        return found

    def mapping(self, field: str, default: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
        """Read an object, as it is. Where one may be absent, some files write false for that."""
        value = self._needed((field,), default)
        if value is False and default is not None:
            return default
        if not isinstance(value, Mapping):
            raise self.wrong(field, "an object", value)
        return value

    def inside(self, field: str, default: Mapping[str, Any] | None = None) -> Fields:
        """Open an object, to be read key by key."""
        return Fields(self.mapping(field, default), self.name, f"{self.path}: {field}", remedy=self.remedy)

    def entries(self, field: str, length: int | None = None) -> list[Fields]:
        """Open a list of objects, to be read key by key."""
        found = self._each(field, self.items(field, length), "an object", lambda item: isinstance(item, Mapping))
        return [
            Fields(item, self.name, f"{self.path}: {field}[{n}]", remedy=self.remedy) for n, item in enumerate(found)
        ]


def is_whole(value: object) -> bool:
    """Tell whether a value is a whole number; true and false are none."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Tell whether a value is a finite number."""
    return is_whole(value) or (isinstance(value, float) and math.isfinite(value))
