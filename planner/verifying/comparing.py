"""Measured figures beside predicted ones, as comparisons that people read."""

from __future__ import annotations

from planner.certificate import Comparison
from targets.quantity import Quantity


def within(
    name: str, predicted: Quantity, value: float | None, form: str, *, binding: bool, slack: float = 0.0
) -> Comparison:
    """Hold a measured figure against its interval; an exact prediction must be met exactly (`slack`: as printed)."""
    expected = form.format(predicted.value)
    if value is None:
        return Comparison(name, expected, "not printed", False, binding)
    if predicted.low != predicted.high:
        expected += f" ({form.format(predicted.low)} … {form.format(predicted.high)})"
    holds = predicted.low - slack <= value <= predicted.high + slack
    return Comparison(name, expected, form.format(value), holds, binding)


def shown(name: str, value: float, form: str) -> Comparison:
    """Tell a measured figure of which nothing was predicted."""
    return Comparison(name, "", form.format(value), True, binding=False)
