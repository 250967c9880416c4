"""Reasons and estimates as documents state them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace
from typing import Any

from passes.errors import Reason
from passes.record import dataclass
from planner.plan.codec import to_json
from targets.engines.engine import Memory, SpeedEstimate
from targets.quantity import Quantity


@dataclass(frozen=True, slots=True)
class StatedReason:
    """A reason as documents state it."""

    code: str
    message: str
    remedy: str | None
    data: Mapping[str, Any] = field(default_factory=dict)


def stated(reason: Reason) -> StatedReason:
    """Return a reason as documents state it."""
    return StatedReason(reason.code, reason.message, reason.remedy, to_json(reason.data))


def unmended(reason: Reason) -> StatedReason:
    """Return a reason without what would mend it: engines say that in words of `check`, and of a plan only what was tried is said."""
    return replace(stated(reason), remedy=None)


def whole_bytes(memory: Memory) -> Memory:
    """Return a memory estimate as documents state it: no parts of bytes."""
    return Memory(
        _rounded(memory.weights), _rounded(memory.kv_cache), _rounded(memory.activations), _rounded(memory.non_torch),
        _rounded(memory.cuda_graphs), _rounded(memory.total), _rounded(memory.budget), memory.per_rank,
    )  # fmt: skip


def _rounded(quantity: Quantity) -> Quantity:
    return Quantity(round(quantity.value), round(quantity.low), round(quantity.high), quantity.basis)


def figures_alone(speed: SpeedEstimate) -> SpeedEstimate:
    """Return a speed estimate as documents state it: its notes stand with the document's own."""
    return replace(speed, notes=())
