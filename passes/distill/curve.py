"""The curve of a distillation as it goes: which loss to expect at its end, how sure that is, and whether its goal can still be reached.

Loss falls as a power of the tokens seen: from the last point of a curve, ln L(N) = ln L(n) − b ln(N / n).
The slope b is that of the curve so far (least squares in ln-ln over its later two thirds), drawn towards the usual one
(`USUAL`): few points know little. The interval is 90 %: the slope's uncertainty grows with ln(N / n), and
losses scatter besides. Pure arithmetic, so that plans can use it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from passes.record import dataclass

#: A 90 % interval in standard deviations.
_NINETY = 1.645
#: How many times its tokens a curve is carried on, where it is asked what reaches a loss.
_FARTHEST = 1000


@dataclass(frozen=True, slots=True)
class Point:
    """The held-out loss, in nats a token, after so many tokens of training."""

    tokens: int
    loss: float


@dataclass(frozen=True, slots=True)
class Slopes:
    """What is known of slopes before a curve is seen: mean and standard deviation of b, scatter of ln loss beside the power."""

    mean: float
    spread: float
    scatter: float


#: Recoveries fall by 0.165 in the fit of published and own ones (`planner/quality/recovery_fit.json`); five runs on a small random Llama,
#: each from its first fifth to its end, by 0.19 to 0.21 (docs/distillation.md). How far others lie from that is assumed.
USUAL = Slopes(0.21, 0.10, 0.05)


@dataclass(frozen=True, slots=True)
class Expected:
    """The loss to expect at the end, in nats a token, with its 90 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} ({self.low:.3g} … {self.high:.3g})"


def expected_loss(curve: Sequence[Point], tokens: int, slopes: Slopes = USUAL) -> Expected | None:
    """Return the loss to expect after `tokens`; None before there are two points with training behind them."""
    trained = _trained(curve)
    if len(trained) < 2:
        return None
    last = trained[-1]
    slope, spread = _slope(_later(trained), slopes)
    ahead = math.log(max(1.0, tokens / last.tokens))
    value = math.log(last.loss) - slope * ahead
    half = _NINETY * math.hypot(spread * ahead, slopes.scatter * min(1.0, ahead))
    return Expected(*(math.exp(value + shift) for shift in (0.0, -half, half)))


def tokens_for(curve: Sequence[Point], goal: float, slopes: Slopes = USUAL) -> int | None:
    """Return the tokens after which a loss of `goal` is expected; None where no curve of `_FARTHEST` times its tokens gets there."""
    trained = _trained(curve)
    if len(trained) < 2:
        return None
    last, slope = trained[-1], _slope(_later(trained), slopes)[0]
    decades = math.log(last.loss / goal)
    if decades <= 0:
        return last.tokens
    if slope <= 0 or decades / slope > math.log(_FARTHEST):
        return None
    return math.ceil(last.tokens * math.exp(decades / slope))


def _trained(curve: Sequence[Point]) -> list[Point]:
    return [point for point in curve if point.tokens > 0 and point.loss > 0]


def _later(points: list[Point]) -> list[Point]:
    """The part of a curve that tells its slope: the later two thirds."""
    return points[len(points) // 3 :] if len(points) > 3 else points


def _slope(points: Sequence[Point], slopes: Slopes) -> tuple[float, float]:
    """The slope of a curve and its standard deviation: least squares, weighed against what slopes usually are."""
    steps = [math.log(point.tokens) for point in points]
    losses = [math.log(point.loss) for point in points]
    centre = sum(steps) / len(steps)
    squares = sum((step - centre) ** 2 for step in steps)
    fitted = -sum((step - centre) * loss for step, loss in zip(steps, losses, strict=True)) / squares
    variance = slopes.scatter**2 / squares
    weight = slopes.spread**2 / (slopes.spread**2 + variance)
    return slopes.mean + weight * (fitted - slopes.mean), math.sqrt(weight * variance)
