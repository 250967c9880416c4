"""Figures as people read them: one unit, three digits, and of two that stand beside each other as many as tell them apart."""

from __future__ import annotations

import math
from collections.abc import Sequence

#: Digits beyond the usual ones, at most, that tell two figures apart; those that are closer are equal to people.
_MORE_DIGITS = 9
#: Units of what people wait: where there is no bound, it grows as long as the load goes on.
_TIMES = frozenset({"ms", "s", "h"})
_GIB, _MIB = 1 << 30, 1 << 20


def show(value: float, unit: str, more: int = 0) -> str:
    """Write a figure as people read it, with so many `more` digits. `%`: the share by which something grows, with its sign; `odds`: a
    probability in percent; `B`: bytes, in GiB or MiB; `ms` and `h`: in what is readable of milliseconds, seconds, minutes and hours.
    """
    if not math.isfinite(value):
        return ("without end" if unit in _TIMES else "no limit") if value > 0 else "none"
    if unit == "%":
        percent = 100 * value
        places = 2 if abs(percent) < 9.995 else 1 if abs(percent) < 99.95 else 0
        return f"{percent:+,.{places + more}f} %"
    if unit == "odds":
        return _odds(value, more)
    if unit == "ms":
        places = more if value >= 9.95 else 1 + more
        return f"{value / 1000:.{2 + more}f} s" if value >= 1000 else f"{value:.{places}f} ms"
    if unit == "h":
        return _duration(3600 * value, more)
    if unit == "B":
        return f"{value / _GIB:,.{2 + more}f} GiB" if abs(value) >= _GIB / 2 else f"{value / _MIB:,.{1 + more}f} MiB"
    if unit == "GiB":
        return f"{value:,.{2 + more}f} GiB"
    shown = f"{value:,.{more}f}" if abs(value) >= 999.5 else f"{value:.{3 + more}g}"
    return f"{shown} {unit}".strip()


def _odds(value: float, more: int) -> str:
    """A probability in percent; what is not certain never reads as if it were."""
    shown = f"{value:.{more}%}"
    return f"{math.floor(1000 * value) / 10}%" if float(shown[:-1]) == 100 and value < 1 else shown


def apart(first: float, second: float, unit: str) -> tuple[str, str]:
    """Write two figures as people read them, with as many digits as tell them apart."""
    shown = all_apart((first, second), unit)
    return shown[0], shown[1]


def all_apart(values: Sequence[float], unit: str, alike: float = 0.0) -> tuple[str, ...]:
    """Write figures as people read them; those that would read alike and are not get as many digits as tell them apart. `alike`: the
    share by which figures may differ that are one to people.
    """
    usual = [show(value, unit) for value in values]
    shown = list(usual)
    for more in range(1, _MORE_DIGITS + 1):
        if not (confused := _confused(values, shown, alike)):
            return tuple(shown)
        for n in confused:
            shown[n] = show(values[n], unit, more)
    for n in _confused(values, shown, alike):
        shown[n] = usual[n]
    return tuple(shown)


def _confused(values: Sequence[float], shown: Sequence[str], alike: float) -> list[int]:
    """Where figures read like others that they are not."""
    pairs = list(zip(values, shown, strict=True))

    def differ(first: float, second: float) -> bool:
        return abs(first - second) > alike * max(abs(first), abs(second))

    return [n for n, (value, text) in enumerate(pairs) if any(text == t and differ(value, v) for v, t in pairs)]


def _duration(seconds: float, more: int) -> str:
    if seconds < 120:
        return f"{seconds:.{more}f} s"
    return f"{seconds / 60:.{more}f} min" if seconds < 7200 else f"{seconds / 3600:.{1 + more}f} h"
