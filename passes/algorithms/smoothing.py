"""Moving difficulty between inputs and weights: a scale s for every input of a group, W·diag(s) stored, x/s made by what comes before.

* AWQ (Lin et al. 2024, arXiv 2306.00978, section 3.2): s = mean|x|^a / mean|w|^(1-a), `a` from a grid, the one whose rounded
  weights err least on the calibration inputs. The error of a linear layer is tr(E H Eᵀ), so H stands for the inputs.
* SmoothQuant (Xiao et al. 2023, arXiv 2211.10438, eq. 4): s = max|x|^a / max|w|^(1-a), so that inputs can be quantized too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from passes.algorithms.kernels.precision import tensor_cores
from passes.algorithms.rtn import nearest_codes
from passes.algorithms.scale_search import FULL_RANGE, decode_codes, find_levels, grouped, wide
from passes.blocks.input_statistics import InputStatistics
from passes.formats.format import Grid
from passes.record import dataclass

if TYPE_CHECKING:
    import torch

_LEAST = 1e-5


class Smoothing(Protocol):
    """Chooses the scales of a group of matrices that read one input."""

    def scales(
        self, weights: Sequence[torch.Tensor], grids: Sequence[Grid], inputs: InputStatistics, hessian: torch.Tensor
    ) -> torch.Tensor:
        """Return s `[K]` for weights `[N, K]` to be rounded to `grids`."""
        ...


@dataclass(frozen=True)
class AwqSearch:
    """AWQ's search over `steps` exponents, with full-range rounding as in the reference code."""

    steps: int = 20

    def scales(
        self, weights: Sequence[torch.Tensor], grids: Sequence[Grid], inputs: InputStatistics, hessian: torch.Tensor
    ) -> torch.Tensor:
        """Return the scales of the exponent with the least error; ones where nothing beats them."""
        import torch

        activity = inputs.mean.clamp(min=_LEAST)
        relative = torch.cat([_relative_to_group(weight, grid) for weight, grid in zip(weights, grids, strict=True)])
        typical = relative.mean(0).clamp(min=_LEAST)
        best = torch.ones_like(activity)
        least = _error(weights, grids, hessian, best)
        for step in range(1, self.steps + 1):
            share = step / self.steps
            s = _balanced(activity.pow(share) / typical.pow(1 - share))
            error = _error(weights, grids, hessian, s)
            if error < least:
                least, best = error, s
        return best


@dataclass(frozen=True)
class SmoothQuant:
    """SmoothQuant's formula; `alpha`: how much of the inputs' spread the weights take over."""

    alpha: float = 0.5

    def scales(
        self, weights: Sequence[torch.Tensor], grids: Sequence[Grid], inputs: InputStatistics, hessian: torch.Tensor
    ) -> torch.Tensor:
        """Return the scales of eq. 4."""
        import torch

        largest = torch.stack([weight.abs().amax(0) for weight in weights]).amax(0).clamp(min=_LEAST)
        return _balanced(inputs.peak.clamp(min=_LEAST).pow(self.alpha) / largest.pow(1 - self.alpha))


def _balanced(s: torch.Tensor) -> torch.Tensor:
    """Scaled so that the largest and the smallest are as far from 1."""
    return s / (s.max() * s.min()).sqrt()


def _relative_to_group(weight: torch.Tensor, grid: Grid) -> torch.Tensor:
    """|w| relative to the largest of its group."""
    groups = grouped(weight.abs(), grid.group_size)
    return (groups / groups.amax(-1, keepdim=True).clamp(min=_LEAST)).reshape(weight.shape)


def _error(weights: Sequence[torch.Tensor], grids: Sequence[Grid], hessian: torch.Tensor, s: torch.Tensor) -> float:
    """Σ tr(E H Eᵀ) with E the rounding error of the scaled weights, scaled back."""
    import torch

    total = 0.0
    for weight, grid in zip(weights, grids, strict=True):
        scaled = weight * s
        levels = find_levels(scaled, grid, torch.float32, FULL_RANGE)
        codes = grouped(nearest_codes(scaled, levels, grid), grid.group_size)
        error = decode_codes(codes, wide(levels)).reshape(weight.shape) / s - weight
        with tensor_cores(error):
            total += float(((error @ hessian) * error).sum())
    return total
