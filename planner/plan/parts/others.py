"""What was not chosen, as a plan states it: losers, the Pareto set, what is illegal, changes that would do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any

from passes.record import dataclass
from planner.plan.stated import StatedReason
from planner.quality.expected import Quality
from targets.engines.engine import KVEstimate, Memory, SpeedEstimate


@dataclass(frozen=True, slots=True)
class RejectedPlan:
    """A candidate that lost, and why; where it was judged, its figures. `weights`, `kv_cache_dtype`: as `check` takes them. `ranked`: the
    means of speed by the formula, of every candidate alike; in `speed` some were simulated.
    """

    candidate: str
    reasons: tuple[StatedReason, ...]
    memory: Memory | None = None
    speed: SpeedEstimate | None = None
    quality: Quality | None = None
    making: str = ""
    cards: int = 1
    weights: str | None = None
    kv_cache_dtype: str | None = None
    ranked: SpeedEstimate | None = None


@dataclass(frozen=True, slots=True)
class Alternative:
    """A change of the question that would meet the goals, and the candidate that it leads to."""

    change: str
    candidate: str
    message: str


@dataclass(frozen=True, slots=True)
class IllegalKind:
    """A kind of illegality, and how many candidates it ruled out."""

    code: str
    message: str
    remedy: str | None
    data: Mapping[str, Any] = field(default_factory=dict)
    candidates: int = field(kw_only=True)


@dataclass(frozen=True, slots=True)
class ParetoPlan:
    """A candidate that no other one beats in quality, speed, memory, work, cards and waiting at once. `making`: what is to be made;
    `ranked`: as of a RejectedPlan.
    """

    candidate: str
    memory: Memory
    kv_cache: KVEstimate
    speed: SpeedEstimate | None
    quality: Quality
    making: str = ""
    cards: int = 1
    weights: str | None = None
    kv_cache_dtype: str | None = None
    ranked: SpeedEstimate | None = None
