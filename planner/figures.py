"""Figures with their intervals as people read them; how single ones are written, `targets.figures` says."""

from __future__ import annotations

from targets.figures import all_apart, apart, show
from targets.quantity import Quantity

__all__ = ["ALIKE", "all_apart", "apart", "intervals_apart", "show", "show_interval"]

#: Figures that differ by no larger share are one to people.
ALIKE = 5e-4


def show_interval(quantity: Quantity, unit: str, shown: str | None = None) -> str:
    """Write a figure with its interval; `shown`: the figure as it stands elsewhere in the same line."""
    ends = f"({show(quantity.low, unit)} … {show(quantity.high, unit)})"
    return f"{shown or show(quantity.value, unit)} {ends}"


def intervals_apart(first: Quantity, second: Quantity, unit: str) -> tuple[str, str]:
    """Write two figures with their intervals, the figures themselves with as many digits as tell them apart where people would."""
    shown = all_apart((first.value, second.value), unit, ALIKE)
    return show_interval(first, unit, shown[0]), show_interval(second, unit, shown[1])
