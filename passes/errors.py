"""Reasons and errors as data: why something is illegal, does not fit, or was refused, and what to do.

A `Reason` explains a verdict (a rejected candidate, a card that is too small); an `InputError` ends a command
because what the user gave cannot be used. Both say what is wrong and what would mend it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import field
from enum import Enum
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from passes.record import dataclass


class ReasonKind(Enum):
    """What sort of thing is against a candidate. All but ILLEGAL are figures, which another degree of something would mend."""

    ILLEGAL = "illegal"
    """A pass, a format or an engine refuses it."""
    NOT_MODELLED = "not modelled"
    """What would come of it is not known."""
    TOO_LARGE = "too large"
    """It exceeds the card's memory."""
    GOAL_MISSED = "goal missed"
    """It misses a goal of the spec."""
    DOMINATED = "dominated"
    """It meets all goals, and another one is better."""


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a candidate or a setting is out.

    `code` is a stable identifier for programs (`does_not_fit`, `group_size_does_not_divide`), `message` a sentence for
    people with the figures in it, `remedy` the smallest change that would flip the verdict, `data` the figures themselves.
    `kind` is for tightfit alone and stands in no document, as are `options`: those of `check`, with values, that would mend it.
    """

    code: str
    message: str
    remedy: str | None = None
    data: Mapping[str, Any] = field(default_factory=dict, compare=False)
    kind: ReasonKind = ReasonKind.ILLEGAL
    options: Mapping[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class Location:
    """Where in a user's file something stands; line and column count from 1."""

    file: str
    line: int | None = None
    column: int | None = None

    def __str__(self) -> str:
        return ":".join(str(part) for part in (self.file, self.line, self.column) if part is not None)


class TightfitError(Exception):
    """Base of every error that is the user's to mend: printed as one message, never as a traceback.

    `exit_code` follows the command line's contract: 2 bad input, 3 nothing fits, 4 result misses its goals, 5 stale plan, 6 not modelled.
    """

    exit_code = 2

    def __init__(self, message: str, *, remedy: str | None = None, location: Location | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.location = location

    def __str__(self) -> str:
        where = f"{self.location}: " if self.location else ""
        return f"{where}{self.message}" + (f"\n  {self.remedy}" if self.remedy else "")


class InputError(TightfitError):
    """The spec, an argument or the model cannot be used as given (exit code 2)."""


class DoesNotFitError(TightfitError):
    """Nothing legal meets the goals, or the machine lacks room for the work (exit code 3)."""

    exit_code = 3


class GoalMissedError(TightfitError):
    """The finished result misses a goal or differs from its prediction (exit code 4)."""

    exit_code = 4


class NotModelledError(TightfitError):
    """Nothing is known of what was asked about: a card of a maker whose engines are not modelled (exit code 6)."""

    exit_code = 6


class StalePlanError(TightfitError):
    """What a plan locks has moved since it was made (exit code 5)."""

    exit_code = 5


#: What is shown and compared of a name; no name that anything has is longer.
_NAME = 200
#: No words that stand for others.
NOT_MEANT: Mapping[str, Sequence[str]] = MappingProxyType({})


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Return the known names closest to a misspelt one, best first; case, spaces and dashes ignored."""

    def fold(text: str) -> str:
        return "".join(ch for ch in text.lower() if ch.isalnum())

    folded: dict[str, str] = {}
    for candidate in known:
        folded.setdefault(fold(candidate), candidate)
    return [folded[match] for match in difflib.get_close_matches(fold(name[:_NAME]), list(folded), n=count, cutoff=0.5)]


def unknown_name(
    kind: str,
    name: str,
    known: Iterable[str],
    *,
    remedy: str,
    location: Location | None = None,
    meant: Mapping[str, Sequence[str]] = NOT_MEANT,
) -> InputError:
    """Return the error for a name that is not known: it says the nearest known names, then what to do.

    `meant`: what people write for known names by their meaning, which no spelling tells.
    """
    close = meant.get(name.lower()) or nearest(name, known)
    hint = f" Did you mean {' or '.join(repr(match) for match in close)}?" if close else ""
    return InputError(f"unknown {kind} {name!r:.{_NAME}}.{hint}", remedy=remedy, location=location)


def misused(called: Callable[..., Any], by_place: Sequence[Any], by_name: Mapping[str, Any]) -> InputError | None:
    """Return the error for arguments that a public function or class does not take, with the nearest names; None where it takes them."""
    import inspect

    signature, name = inspect.signature(called), called.__name__
    try:
        signature.bind(*by_place, **by_name)
    except TypeError as error:
        taken = list(signature.parameters)
        remedy = f"{name} takes {', '.join(taken)}"
        if unknown := [each for each in by_name if each not in taken]:
            return unknown_name(f"argument of {name}", unknown[0], taken, remedy=remedy)
        return InputError(f"{name}: {error}", remedy=remedy)
    return None


if TYPE_CHECKING:

    class Told(type):
        """`type`, to who reads types."""

else:

    class Told(type):
        """Of records that Python callers make: arguments that one does not take are an InputError with the nearest names."""

        def __call__(cls, *by_place: Any, **by_name: Any) -> Any:
            """Make an instance."""
            try:
                return super().__call__(*by_place, **by_name)
            except TypeError:
                if (error := misused(cls, by_place, by_name)) is not None:
                    raise error from None
                raise
