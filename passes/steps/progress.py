"""Tells how far a step is, and what a finished one took."""

from __future__ import annotations

from passes.record import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """`done` of `total` units of a step (blocks of a walk); `detail` for people; `seconds` since the step began. `kept`: the whole step was
    there already, and those are its seconds of then.
    """

    step: str
    done: int
    total: int
    detail: str
    seconds: float
    kept: bool = False


@dataclass(frozen=True, slots=True)
class Step:
    """One finished step: what all attempts at it took together. `reused`: it was there already, and these are those of when it ran."""

    name: str
    key: str
    seconds: float
    peak_bytes: int
    reused: bool
