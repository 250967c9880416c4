"""How likely a predicted figure keeps a bound: its 90 % interval read as two halves of a normal, joined at the value."""

from __future__ import annotations

import math

from targets.quantity import Quantity

#: Standard deviations between the value and an end of a 90 % interval.
_Z90 = 1.6448536269514722


def at_most(quantity: Quantity, bound: float) -> float:
    """Return the probability that the true figure is at most `bound`, both in one unit. A figure without width is certain."""
    apart = bound - quantity.value
    width = quantity.high - quantity.value if apart >= 0 else quantity.value - quantity.low
    if width <= 0 or math.isinf(bound) or math.isinf(quantity.value):
        return 1.0 if apart >= 0 else 0.0
    return 0.5 * (1 + math.erf(apart / width * _Z90 / math.sqrt(2)))


def at_least(quantity: Quantity, bound: float) -> float:
    """Return the probability that the true figure is at least `bound`, both in one unit."""
    return at_most(Quantity(-quantity.value, -quantity.high, -quantity.low, quantity.basis), -bound)
