"""Makes, saves, reads and locks the plan document. `plan` makes one; it is imported when it is first asked for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from planner.plan.make import plan

__all__ = ["plan"]


def __getattr__(name: str) -> Any:
    """Import `plan` when it is first used: documents are read without what makes them."""
    if name != "plan":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from planner.plan.make import plan

    return plan
