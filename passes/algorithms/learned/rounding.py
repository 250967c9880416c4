"""Tunes a matrix on its grid: codes and scales by gradients, the rounding passed straight through.

A latent weight, in units of its group's scale, rounds to the code (straight-through estimator, as EfficientQAT's first
phase, Chen et al. 2024).
It begins as near to the unrounded weight as rounds to the code that the algorithm chose, so that tuning begins with just that result and
codes whose rounding was a close call change first. Zero points and the group of each input stay.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from passes.formats.format import Grid, Quantized
from passes.record import dataclass

if TYPE_CHECKING:
    import torch

#: How far from its code a latent weight may begin, in steps of the grid: half a step rounds to the next.
_NEAR = 0.45


@dataclass(frozen=True)
class Tuning:
    """How a block is tuned: on `tokens` tokens, `batch_tokens` a step; AdamW's rate for latent weights in steps of their grid, for factors
    of scales and for plain parameters as a share of their size. All fall to a tenth as a cosine.
    """

    tokens: int
    batch_tokens: int = 512
    latent_rate: float = 1e-2
    scale_rate: float = 2e-3
    plain_rate: float = 1e-3
    seed: int = 0


def tunable(grid: Grid | None, quantized: Quantized | None) -> bool:
    """Return whether a stored matrix can be tuned on its grid: integers, with one scale for each row and group."""
    return quantized is not None and grid is not None and grid.kind == "int" and quantized.scale.dim() == 2


class TunedMatrix:
    """A stored matrix `[N, K]` whose codes and scales follow gradients. `weight`: unrounded; `quantized`: as it was stored, on `grid`."""

    def __init__(self, weight: torch.Tensor, quantized: Quantized, grid: Grid) -> None:
        import torch

        self._quantized, self._bounds = quantized, grid.bounds
        groups = quantized.scale.shape[1]
        order = quantized.group_of_input
        if order is None:
            order = torch.arange(weight.shape[1], device=weight.device) // -(-weight.shape[1] // groups)
        self._group = order.long()
        scale = quantized.scale.float()
        zero = torch.zeros_like(scale) if quantized.zero_point is None else quantized.zero_point.float()
        self._scale, self._zero = scale, zero[:, self._group]
        codes = quantized.codes.float()
        exact = weight.float() / scale.clamp(min=1e-12)[:, self._group] + self._zero
        self.latent = torch.nn.Parameter(codes + (exact - codes).clamp(-_NEAR, _NEAR))
        self.factor = torch.nn.Parameter(torch.ones_like(scale))

    def weight(self) -> torch.Tensor:
        """Return the weight that an engine computes from codes and scales, fp32, through which gradients flow."""
        codes = self.latent.clamp(*self._bounds)
        codes = codes + (codes.round() - codes).detach()
        return (codes - self._zero) * (self._scale * self.factor)[:, self._group]

    def stored(self) -> Quantized:
        """Return codes and scales as they are now."""
        codes = self.latent.detach().clamp(*self._bounds).round().to(self._quantized.codes.dtype)
        scale = (self._scale * self.factor.detach()).to(self._quantized.scale.dtype)
        return replace(self._quantized, codes=codes, scale=scale)
