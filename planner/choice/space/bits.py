"""The most, or the fewest, bits a weight that a format of any width may have under goals that are monotone in bits.

More bits take more memory, decode no faster and lose less. So the widths that fit are an interval from the narrowest on, those
that are good enough one up to the widest, and an end of each is found with a handful of trials instead of hundreds.
"""

from __future__ import annotations

from collections.abc import Callable

#: Widths are whole multiples of this.
STEP = 0.01
#: Trials that follow the slack's line before halving takes over.
_STRAIGHT = 4


def most_bits(slack: Callable[[float], float], low: float, high: float) -> float | None:
    """Return the largest multiple of 0.01 in [low, high] whose slack is not negative; None where even the smallest has none.

    `slack` falls with bits. Where it is nearly a straight line (bytes are), three or four trials do; otherwise halving.
    """
    first, last = round(low / STEP), round(high / STEP)
    room, short = slack(_bits(first)), slack(_bits(last))
    if room < 0:
        return None
    if short >= 0:
        return _bits(last)
    trials = 0
    while last - first > 1:
        middle = (first + last) // 2
        if trials < _STRAIGHT and room - short > 0:
            # One step below where the line crosses zero: the next trial then lies above, and the bracket closes from both ends.
            crossing = first + int(room / (room - short) * (last - first))
            middle = min(max(crossing + trials % 2, first + 1), last - 1)
        trials += 1
        found = slack(_bits(middle))
        if found >= 0:
            first, room = middle, found
        else:
            last, short = middle, found
    return _bits(first)


def fewest_bits(good: Callable[[float], bool], low: float, high: float) -> float | None:
    """Return the fewest bits a weight, a multiple of 0.01 in [low, high], that is good enough; None where not even the largest is."""
    first, last = round(low / STEP), round(high / STEP)
    if not good(_bits(last)):
        return None
    while first < last:
        middle = (first + last) // 2
        first, last = (first, middle) if good(_bits(middle)) else (middle + 1, last)
    return _bits(first)


def widths(low: float, high: float) -> int:
    """Return how many widths there are in [low, high]."""
    return round(high / STEP) - round(low / STEP) + 1


def _bits(steps: int) -> float:
    return round(steps * STEP, 2)
