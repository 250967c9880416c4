"""Writes documents as JSON and reads them back: the fields of a dataclass are the keys, in their order.

A field that holds its default is left out; one that may be null is read as null where it is not there, as older states wrote it.
Of a `Quantity` whole numbers are integers and infinities (a model without a cache) null. What is read is written again as it was, to the
digit: numbers stay the integers or floats that they are.
"""

from __future__ import annotations

import math
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from functools import cache
from typing import Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from passes.errors import InputError
from passes.ir.fields import shown
from targets.quantity import Basis, Quantity

FORMAT_VERSION = "1"
#: What makes of a document of a version one of the next. Version 1 is the first; keys that came since have defaults, so that every document
#: of it is read.
UPGRADES: Mapping[str, Callable[[Mapping[str, Any]], Mapping[str, Any]]] = {}
T = TypeVar("T")


def upgraded(document: Mapping[str, Any], what: str) -> Mapping[str, Any]:
    """Return a document as the version that is written here has it. Raises InputError for a version that nothing here reads."""
    said = document.get("format_version")
    now = document
    while (version := str(now.get("format_version"))) in UPGRADES:
        now = UPGRADES[version](now)
    if now.get("format_version") == FORMAT_VERSION:
        return now
    newer = isinstance(said, str) and said.isdigit() and int(said) > int(FORMAT_VERSION)
    remedy = "a newer tightfit wrote it: bring this one up to date" if newer else "make it again with this version"
    known = " and ".join((*UPGRADES, FORMAT_VERSION))
    raise InputError(f"{what} has format {shown(said)}, this tightfit reads {known}", remedy=remedy)


def to_json(value: Any) -> Any:
    """Return a document, or a part of one, as JSON values."""
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Quantity):
        ends = {"value": value.value, "low": value.low, "high": value.high}
        return {name: number(end) for name, end in ends.items()} | {"basis": str(value.basis)}
    if isinstance(value, Mapping):
        return {key: to_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(inner) for inner in value]
    if is_dataclass(value):
        kind: Any = type(value)
        held = ((name, getattr(value, name), default) for name, default in _defaults(kind))
        return {name: to_json(inner) for name, inner, default in held if default is MISSING or inner != default}
    return value


def number(value: float) -> float | int | None:
    """Return a figure of a quantity as JSON has it."""
    if not math.isfinite(value):
        return None
    return int(value) if float(value).is_integer() else value


@cache
def _defaults(kind: Any) -> tuple[tuple[str, Any], ...]:
    """The fields of a dataclass with their defaults, MISSING where there is none."""
    factories = ((field, field.default_factory) for field in fields(kind))
    return tuple((field.name, field.default if make is MISSING else make()) for field, make in factories)


def from_json(kind: type[T], value: Any, what: str) -> T:
    """Read what `to_json` wrote of a `kind`. Raises InputError that names the first key which is missing, unknown or of another type;
    `what` names the document for people.
    """
    try:
        document: T = _reader(cast(Any, kind))(value)
    except _UnreadableError as error:
        raise InputError(f"{what}: {error}", remedy="make it again with this version") from None
    return document


class _UnreadableError(Exception):
    """A value that is not what it should be; `path` leads to it from outside in."""

    def __init__(self, problem: str, path: tuple[str, ...] = ()) -> None:
        super().__init__(problem)
        self.problem, self.path = problem, path

    def __str__(self) -> str:
        return f"{'.'.join(self.path) or 'the document'} {self.problem}"


def _read(reader: Callable[[Any], Any], value: Any, key: str) -> Any:
    """A value inside another; an error says at which key."""
    try:
        return reader(value)
    except _UnreadableError as error:
        raise _UnreadableError(error.problem, (key, *error.path)) from None


@cache
def _reader(kind: Any) -> Callable[[Any], Any]:
    """What reads values of a type: a dataclass, an enum, a tuple of one type, a mapping, a union, a plain value."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return lambda value: value
    if kind is Quantity:
        return _quantity
    if is_dataclass(kind):
        return _dataclass_reader(kind)
    if origin in (types.UnionType, Union):
        return _union_reader(arguments)
    if origin is tuple:
        element = _reader(arguments[0])
        return lambda value: tuple(_read(element, inner, str(n)) for n, inner in enumerate(_checked(list, value)))
    if isinstance(kind, type) and issubclass(kind, Enum):
        known = {str(member.value): member for member in kind}
        return lambda value: known.get(_checked(str, value)) or _refuse(value, " or ".join(known))
    plain = dict if origin is not None else (int, float) if kind is float else kind
    return lambda value: _checked(plain, value)


def _dataclass_reader(kind: Any) -> Callable[[Any], Any]:
    hints = get_type_hints(kind)
    readers = {field.name: _reader(hints[field.name]) for field in fields(kind)}
    without = {name for name, default in _defaults(kind) if default is MISSING}
    absent = {name: None for name in without if types.NoneType in get_args(hints[name])}

    def read(value: Any) -> Any:
        keys = _checked(dict, value).keys()
        if needed := without - keys - absent.keys():
            raise _UnreadableError("is missing", (min(needed),))
        if keys - readers.keys():
            raise _UnreadableError("is not known", (min(keys - readers.keys()),))
        return kind(**absent | {name: _read(readers[name], inner, name) for name, inner in value.items()})

    return read


def _union_reader(kinds: tuple[Any, ...]) -> Callable[[Any], Any]:
    """Of several types the one that fits; where one type may be absent, an error is that of the type."""
    *firsts, last = (_reader(kind) for kind in kinds if kind is not types.NoneType)

    def read(value: Any) -> Any:
        if value is None and types.NoneType in kinds:
            return None
        for reader in firsts:
            try:
                return reader(value)
            except _UnreadableError:
                continue
        return last(value)

    return read


def _quantity(value: Any) -> Quantity:
    parts = _checked(dict, value)
    if parts.keys() != {"value", "low", "high", "basis"}:
        _refuse(value, "an object with value, low, high and basis")
    middle, low, high = (_read(_reader(float | None), parts[end], end) for end in ("value", "low", "high"))
    low = low if low is not None else math.inf if middle is None else -math.inf
    basis = _read(_reader(Basis), parts["basis"], "basis")
    return Quantity(math.inf if middle is None else middle, low, math.inf if high is None else high, basis)


#: No float holds a whole number beyond.
_FAR = int(sys.float_info.max)
_NAMES = {dict: "an object", list: "a list", str: "a text", int: "a whole number", bool: "true or false"}


def _checked(kind: Any, value: Any) -> Any:
    """A value of a JSON type; truth is no number."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        _refuse(value, _NAMES.get(kind, "a number"))
    if isinstance(value, int) and abs(value) > _FAR:
        _refuse(value, "a number that anything here has")
    return value


def _refuse(value: Any, wanted: str) -> Any:
    raise _UnreadableError(f"is {shown(value)}, not {wanted}")
