"""The fit of a load finds what scipy's robust least squares finds, which it stands in for."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares

from targets.machine.robust_fit import least_robust


def curve(points: Sequence[float]) -> Callable[[Sequence[float]], list[float]]:
    """Residuals of a curve that bends in its unknowns, with two weak priors, as a load's are."""

    def residuals(x: Sequence[float]) -> list[float]:
        near = [each / 2.0 for each in x]
        return near + [20 * (2.718281828 ** x[0] * n + x[1] - seen) / (1 + n) for n, seen in enumerate(points)]

    return residuals


@given(st.floats(-1, 1), st.floats(-1, 1), st.lists(st.floats(-0.05, 0.05), min_size=6, max_size=6), st.floats(-3, 3))
@settings(max_examples=40, deadline=None)
def test_it_finds_what_scipy_finds(slope: float, start: float, noise: list[float], odd: float) -> None:
    points = [2.718281828**slope * n + start + (1 + n) * each for n, each in enumerate(noise)]
    points[3] += odd
    theirs = least_squares(curve(points), [0.0, 0.0], loss="soft_l1", xtol=1e-12, ftol=1e-12).x
    assert least_robust(curve(points), 2) == pytest.approx(theirs, abs=5e-3)


def test_one_odd_point_moves_little() -> None:
    straight = [1.0 * n + 0.5 for n in range(12)]
    odd = [*straight[:5], 40.0, *straight[6:]]
    assert least_robust(curve(odd), 2) == pytest.approx(least_robust(curve(straight), 2), abs=0.1)


def test_an_unknown_that_nothing_depends_on_stays() -> None:
    assert least_robust(lambda x: [3 * (x[0] - 1)], 2) == pytest.approx([1.0, 0.0], abs=1e-3)
