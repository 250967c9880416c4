"""Robust least squares over a handful of unknowns: what a short load of requests is fitted with, without an optimizer of a library."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

_Vector: TypeAlias = npt.NDArray[np.float64]

#: Step of a difference quotient; the damping that a fit begins with, by which it rises and falls, and at which nothing better is near.
_STEP, _DAMPING, _FACTOR, _STUCK = 1e-3, 1e-3, 10.0, 1e12
#: Steps of a fit at most, and the share of the loss that the last one gains.
_MOST, _GAIN = 100, 1e-9


def least_robust(residuals: Callable[[Sequence[float]], Sequence[float]], unknowns: int) -> list[float]:
    """Find the unknowns, from zero on, that make Σ 2 (√(1 + r²) − 1) over the residuals least: squares where they are small, their size
    where they are large, so that one odd timing moves little. Levenberg and Marquardt's damped steps, with the loss's own bend.
    """
    x, damping = np.zeros(unknowns), _DAMPING
    seen = _seen(residuals, x)
    for _ in range(_MOST):
        jacobian = np.column_stack([(_seen(residuals, x + each) - seen) / _STEP for each in _STEP * np.eye(unknowns)])
        slopes, bends = seen / np.sqrt(1 + seen**2), (1 + seen**2) ** -1.5
        normal, downhill = (jacobian.T * bends) @ jacobian, -jacobian.T @ slopes
        scale = np.diag(np.maximum(np.diag(normal), np.finfo(float).tiny))
        before = _loss(seen)
        while damping < _STUCK:
            tried = x + np.linalg.solve(normal + damping * scale, downhill)
            there = _seen(residuals, tried)
            if _loss(there) < before:
                break
            damping *= _FACTOR
        else:
            break
        x, seen, damping = tried, there, damping / _FACTOR
        if before - _loss(seen) <= _GAIN * before:
            break
    return [float(each) for each in x]


def _seen(residuals: Callable[[Sequence[float]], Sequence[float]], x: _Vector) -> _Vector:
    return np.asarray(residuals([float(each) for each in x]), dtype=np.float64)


def _loss(residuals: _Vector) -> float:
    return float(2 * np.sum(np.sqrt(1 + residuals**2) - 1))
