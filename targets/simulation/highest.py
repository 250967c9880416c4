"""The highest load that keeps a test which lower ones keep, too: the exact number of clients, or the rate to half a percent."""

from __future__ import annotations

import math
from collections.abc import Callable

from targets.engines.engine import MOST_CLIENTS

#: The lowest rate that is tried, and to which share the highest is found.
_LEAST_RATE, _NEAR = 1 / 64, 0.005


def most_clients(asked: int, margin: Callable[[int], float], most: int = MOST_CLIENTS) -> int:
    """Return the most clients, no more than `most`, whose margin is not negative; 0 where there are none. It falls as they grow."""
    low, high, below, above = _around(asked, lambda count: margin(int(count)), 1, most)
    low, high = int(low), int(high)
    while high - low > 1 and below >= 0:
        middle = min(max(round(_guess(low, high, below, above)), low + 1), high - 1)
        found = margin(middle)
        low, high, below, above = (
            (middle, high, found, above / 2) if found >= 0 else (low, middle, below / 2, found)
        )  # fmt: skip
    return low if below >= 0 else 0


def highest_rate(asked: float, margin: Callable[[float], float]) -> float:
    """Return the same of requests a second."""
    low, high, below, above = _around(asked, margin, _LEAST_RATE, MOST_CLIENTS)
    while high > (1 + _NEAR) * low and below >= 0:
        middle = min(max(_guess(low, high, below, above), low * (1 + _NEAR / 2)), high / (1 + _NEAR / 2))
        found = margin(middle)
        low, high, below, above = (
            (middle, high, found, above / 2) if found >= 0 else (low, middle, below / 2, found)
        )  # fmt: skip
    return round(low, 3) if below >= 0 else 0.0


def _around(
    asked: float, margin: Callable[[float], float], least: float, most: float
) -> tuple[float, float, float, float]:
    """From what is asked up or down by doubling: a load that keeps the test and one that does not, and their margins; the same twice
    where the ends do, or do not.
    """
    low = high = min(max(asked, least), most)
    below = above = margin(low)
    while above >= 0 and high < most:
        low, below, high = high, above, min(2 * high, most)
        above = margin(high)
    if above >= 0:
        return high, high, above, above
    while below < 0 and low > least:
        high, above, low = low, below, max(low // 2 if least >= 1 else low / 2, least)
        below = margin(low)
    return low, high, below, above


def _guess(low: float, high: float, below: float, above: float) -> float:
    """Where the margin is likely to be nothing, in the logarithm of the load (regula falsi; an end that stays counts half:
    Illinois' way).
    """
    share = below / (below - above) if math.isfinite(below) and math.isfinite(above) else 0.5
    return float(low * (high / low) ** share)
