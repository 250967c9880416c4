"""An axis of a chart: where figures lie on it, and which of them are written beside it."""

from __future__ import annotations

import math
from collections.abc import Iterable

from passes.record import dataclass
from planner.figures import all_apart

#: Marks of an axis, about.
_TICKS = 5


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark: its place, and what is written there."""

    at: float
    said: str


@dataclass(frozen=True, slots=True)
class Axis:
    """`low` … `high`, in `unit` (`planner.figures.show`), drawn from `start` to `end`; logarithmic where that is said."""

    title: str
    unit: str
    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """Return the position of a figure in the drawing; what lies beyond an end is drawn at it."""
        held = min(max(value, self.low), self.high)
        if self.logarithmic:
            share = math.log(held / self.low) / math.log(self.high / self.low)
        else:
            share = (held - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    @property
    def ticks(self) -> tuple[Tick, ...]:
        """Return round figures along it."""
        values = self._round()
        said = all_apart(values, self.unit)
        return tuple(Tick(self.at(value), text if value else "0") for value, text in zip(values, said, strict=True))

    def _round(self) -> list[float]:
        if self.logarithmic:
            powers = range(math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9) + 1)
            steps = (1,) if len(powers) >= _TICKS - 1 else (1, 2, 5) if len(powers) < 3 else (1, 3)
            values = [step * 10.0**power for power in range(powers.start - 1, powers.stop + 1) for step in steps]
            return [value for value in values if self.low <= value <= self.high * 1.0001]
        step = _round_step((self.high - self.low) / _TICKS, binary=self.unit == "B")
        first = math.ceil(self.low / step - 1e-9)
        return [number * step for number in range(first, math.floor(self.high / step + 1e-9) + 1)]


def linear(title: str, unit: str, values: Iterable[float], ends: tuple[float, float]) -> Axis:
    """Return an axis from nothing to a little beyond the largest of some figures."""
    most = max((value for value in values if math.isfinite(value)), default=0.0)
    return Axis(title, unit, 0.0, 1.06 * most if most > 0 else 1.0, *ends)


def logarithmic(
    title: str, unit: str, values: Iterable[float], ends: tuple[float, float], within: tuple[float, float]
) -> Axis:
    """Return a logarithmic axis around some figures, that shows nothing outside of `within`."""
    known = [min(max(value, within[0]), within[1]) for value in values if math.isfinite(value)]
    low, high = (min(known) / 1.4, max(known) * 1.4) if known else within
    return Axis(title, unit, low, high, *ends, logarithmic=True)


def _round_step(least: float, *, binary: bool) -> float:
    """The least of 1, 2, 5, 10, … that is no less; of bytes the least power of two."""
    if binary:
        return float(2 ** math.ceil(math.log2(least)))
    power = 10.0 ** math.floor(math.log10(least))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= least * 0.999)
