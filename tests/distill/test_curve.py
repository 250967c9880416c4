"""What a curve says of its end."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from passes.distill.curve import USUAL, Point, Slopes, expected_loss, tokens_for
from passes.distill.trainer import Curve


def power(slope: float, count: int, every: int = 1000) -> list[Point]:
    return [Point(0, 9.0), *(Point(n * every, 2.0 * (n * every) ** -slope) for n in range(1, count + 1))]


def test_a_power_law_is_found_again_and_more_points_are_surer() -> None:
    surely = Slopes(0.3, 10.0, 0.01)
    expected = expected_loss(power(0.5, 10), 50_000, surely)
    assert expected is not None and expected.value == pytest.approx(2.0 * 50_000**-0.5, rel=0.01)
    widths = []
    for count in (4, 8, 16, 32):
        found = expected_loss(power(0.25, count), 50_000)
        assert found is not None and found.low < 2.0 * 50_000**-0.25 < found.high
        widths.append(math.log(found.high / found.low))
    assert widths == sorted(widths, reverse=True)


def test_few_points_take_the_usual_slope() -> None:
    expected = expected_loss([Point(1000, 1.0), Point(1010, 1.0)], 10_000)
    assert expected is not None
    assert expected.value == pytest.approx(10**-USUAL.mean, rel=0.05)
    assert expected_loss([Point(0, 1.0), Point(1000, 1.0)], 10_000) is None


def test_at_the_end_what_was_measured_is_what_is_expected() -> None:
    expected = expected_loss(power(0.5, 10), 10_000)
    assert expected is not None and expected.low == expected.high == pytest.approx(2.0 * 10_000**-0.5)


def test_what_reaches_a_loss_is_read_off_the_curve_as_far_as_it_can_be_carried() -> None:
    surely = Slopes(0.3, 10.0, 0.01)
    goal = 2.0 * 40_000**-0.5
    assert tokens_for(power(0.5, 10), goal, surely) == pytest.approx(40_000, rel=0.03)
    assert tokens_for(power(0.5, 10), 1.0, surely) == 10_000
    assert tokens_for(power(0.5, 10), 1e-6, surely) is None
    assert tokens_for([Point(0, 1.0)], 0.5) is None


def test_a_loss_above_the_first_is_told(tmp_path: Path) -> None:
    """SmolLM2 a fifth narrower and compensated, by steps of 128 tokens: what little is left to recover is lost first."""
    curve = Curve(tmp_path)
    for tokens, loss in ((0, 0.1603), (384, 0.1555)):
        curve.add(Point(tokens, loss))
    assert curve.said(8192) == "loss 0.155"
    curve.add(Point(768, 0.1755))
    assert curve.said(8192).startswith("loss 0.175, more than the 0.16 that it began with, in the end ")
