"""The highest load that keeps a test which lower ones keep, too: the exact number of clients, or the rate to half a percent."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

from targets.engines.engine import MOST_CLIENTS

#: The lowest rate that is tried, and to which share the highest is found.
_LEAST_RATE, _NEAR = 1 / 64, 0.005


class _Scale(NamedTuple):
    """Loads that may be tried: from the least to the most; half of one; one between two, close to a guess, or None where those are close
    enough.
    """

    least: float
    most: float
    half: Callable[[float], float]
    between: Callable[[float, float, float], float | None]


def most_clients(asked: int, margin: Callable[[int], float], most: int = MOST_CLIENTS) -> int:
    """Return the most clients, no more than `most`, whose margin is not negative; 0 where there are none. It falls as they grow."""
    scale = _Scale(1, most, lambda count: count // 2, _whole_between)
    return int(_highest(asked, lambda count: margin(int(count)), scale))


def highest_rate(asked: float, margin: Callable[[float], float]) -> float:
    """Return the same of requests a second."""
    return round(_highest(asked, margin, _Scale(_LEAST_RATE, MOST_CLIENTS, lambda rate: rate / 2, _rate_between)), 3)


def _whole_between(low: float, high: float, guess: float) -> float | None:
    return min(max(round(guess), low + 1), high - 1) if high - low > 1 else None


def _rate_between(low: float, high: float, guess: float) -> float | None:
    if high <= (1 + _NEAR) * low:
        return None
    return min(max(guess, low * (1 + _NEAR / 2)), high / (1 + _NEAR / 2))


def _highest(asked: float, margin: Callable[[float], float], scale: _Scale) -> float:
    """The highest load whose margin is not negative, by regula falsi; an end that stays counts half (Illinois' way)."""
    low, high, below, above = _around(asked, margin, scale)
    while below >= 0 > above and (middle := scale.between(low, high, _guess(low, high, below, above))) is not None:
        found = margin(middle)
        low, high, below, above = (
            (middle, high, found, above / 2) if found >= 0 else (low, middle, below / 2, found)
        )  # fmt: skip
    return low if below >= 0 else 0.0


def _around(asked: float, margin: Callable[[float], float], scale: _Scale) -> tuple[float, float, float, float]:
    """From what is asked up or down by doubling: a load that keeps the test and one that does not, and their margins; the same twice
    where the ends do, or do not.
    """
    low = high = min(max(asked, scale.least), scale.most)
    below = above = margin(low)
    while above >= 0 and high < scale.most:
        low, below, high = high, above, min(2 * high, scale.most)
        above = margin(high)
    if above >= 0:
        return high, high, above, above
    while below < 0 and low > scale.least:
        high, above, low = low, below, max(scale.half(low), scale.least)
        below = margin(low)
    return low, high, below, above


def _guess(low: float, high: float, below: float, above: float) -> float:
    """Where the margin is likely to be nothing, in the logarithm of the load."""
    share = below / (below - above) if math.isfinite(below) and math.isfinite(above) else 0.5
    return float(low * (high / low) ** share)
