"""What a plan rests on, and where it lies on this machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any

from passes.record import dataclass
from planner.plan.parts.chosen import PlannedEngine


@dataclass(frozen=True, slots=True)
class LockedText:
    """A text, and the sha256 of its file; None where it is no file."""

    dataset: str
    samples: int
    length: int
    seed: int
    digest: str | None


@dataclass(frozen=True, slots=True)
class LockedGpu:
    """The card, its bytes, and how many there are."""

    name: str
    memory_bytes: int
    count: int


@dataclass(frozen=True, slots=True)
class Lock:
    """Every input that a plan rests on. `data`: sha256 of the tool's own tables by their file names; plans of older states do not say."""

    model: str
    revision: str | None
    header_digest: str
    config_digest: str
    calibration: LockedText
    evaluation: LockedText
    gpu: LockedGpu
    engine: PlannedEngine | None
    tightfit: str
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Places:
    """Where the plan's files are on this machine: absolute paths, and names of what is no file."""

    model: str
    calibration: str
    evaluation: str
    spec: str | None = None
    asked: str | None = None
    """The model that was asked for, where a published checkpoint of it is served."""
    moved: tuple[str, ...] = ()
    """What lies elsewhere now than it did when the plan was made, by the names above."""
