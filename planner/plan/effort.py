"""What making a plan's checkpoint takes, as documents say it; `planner.apply_cost` forecasts it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field

from passes.record import dataclass
from targets.quantity import Quantity


@dataclass(frozen=True, slots=True)
class Effort:
    """Seconds of work, peak memory and disk in bytes; `steps`: expected seconds of each.

    `device`: what computes, by its name (plans of older versions do not say). `memory_bytes` are its own: of a card, which then has
    `host_memory_bytes` beside it, or resident ones of the process.
    """

    seconds: Quantity
    memory_bytes: Quantity
    disk_bytes: int
    steps: Mapping[str, float] = field(default_factory=dict)
    device: str = ""
    host_memory_bytes: Quantity | None = None
