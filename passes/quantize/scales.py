"""Scales and zero points of an integer or e4m3 grid: from the extremes, or by a search for the least weighted error.

Shapes: a group's weights are `[N, G, g]` (N rows, G groups of g inputs), scales `[N, G]`. Everything in fp32; the scale is
rounded to the dtype it will be stored in *before* any weight is rounded with it, so that codes are chosen for the scale
that the engine will use.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from passes.formats.format import Grid

if TYPE_CHECKING:
    import torch

#: Largest finite value of float8 e4m3fn (OCP 8-bit floating point specification 1.0, table 1).
E4M3_MAX = 448.0


@dataclass(frozen=True)
class Levels:
    """Scale and zero point of every group: `scale` `[N, G]` fp32; `zero` `[N, G]` fp32 integers, None when symmetric."""

    scale: torch.Tensor
    zero: torch.Tensor | None


@dataclass(frozen=True)
class ScaleSearch:
    """How the clipping range of each group is chosen.

    `steps` factors from 1 down to `shrink` times the full range are tried; the one with the least Σ w·|error|^`norm` wins
    (w: a weight per input). `steps = 0` takes the full range. Grid and norm as in GPTQ's reference code (`mse` option).
    """

    steps: int = 0
    shrink: float = 0.5
    norm: float = 2.0


#: The extremes of each group are the extremes of its grid.
FULL_RANGE = ScaleSearch()


def bounds(grid: Grid) -> tuple[float, float]:
    """Least and greatest code of a grid."""
    if grid.kind == "float":
        return -E4M3_MAX, E4M3_MAX
    if grid.symmetric:
        return -(2.0 ** (grid.bits - 1)), 2.0 ** (grid.bits - 1) - 1
    return 0.0, 2.0**grid.bits - 1


def grouped(weight: torch.Tensor, group_size: int) -> torch.Tensor:
    """`[N, K]` as `[N, G, g]`; the whole row is one group for -1. K must be a multiple of the group size."""
    rows, columns = weight.shape
    return weight.reshape(rows, -1, columns if group_size <= 0 else group_size)


def round_codes(values: torch.Tensor, levels: Levels, grid: Grid) -> torch.Tensor:
    """The codes (fp32 integers, or e4m3 values) of `values`, whose last axis is broadcast against the levels."""
    low, high = bounds(grid)
    scaled = values / levels.scale
    if grid.kind == "float":
        import torch

        return scaled.clamp(low, high).to(torch.float8_e4m3fn).float()
    if levels.zero is not None:
        scaled = scaled + levels.zero
    return scaled.round().clamp(low, high)


def decode_codes(codes: torch.Tensor, levels: Levels) -> torch.Tensor:
    """The values of codes."""
    return (codes if levels.zero is None else codes - levels.zero) * levels.scale


def wide(levels: Levels) -> Levels:
    """Levels `[N, G, 1]`, to be broadcast over the weights of their groups."""
    return Levels(levels.scale.unsqueeze(-1), None if levels.zero is None else levels.zero.unsqueeze(-1))


def find_levels(
    weight: torch.Tensor,
    grid: Grid,
    scale_dtype: torch.dtype,
    search: ScaleSearch,
    importance: torch.Tensor | None = None,
) -> Levels:
    """Scales and zero points for `[N, K]` weights in their original order; `importance` `[K]` weighs the squared error."""
    if grid.group_size == 0:
        return _whole_matrix(weight, grid, scale_dtype, search, importance)
    groups = grouped(weight.float(), grid.group_size)
    weights = None if importance is None else importance.float().reshape(1, groups.shape[1], groups.shape[2])
    best = _range_levels(groups, grid, scale_dtype, 1.0)
    if search.steps == 0:
        return best
    least = _error(groups, best, grid, search.norm, weights)
    for step in range(1, search.steps):
        factor = 1.0 - (1.0 - search.shrink) * step / (search.steps - 1)
        levels = _range_levels(groups, grid, scale_dtype, factor)
        error = _error(groups, levels, grid, search.norm, weights)
        better = error < least
        least = least.where(~better, error)
        best = Levels(
            levels.scale.where(better, best.scale),
            None if best.zero is None or levels.zero is None else levels.zero.where(better, best.zero),
        )
    return best


def _whole_matrix(
    weight: torch.Tensor, grid: Grid, scale_dtype: torch.dtype, search: ScaleSearch, importance: torch.Tensor | None
) -> Levels:
    flat = weight.reshape(1, -1)
    spread = None if importance is None else importance.repeat(weight.shape[0])
    row = Grid(grid.bits, -1, grid.symmetric, grid.kind)
    return find_levels(flat, row, scale_dtype, search, spread)


def _range_levels(groups: torch.Tensor, grid: Grid, scale_dtype: torch.dtype, factor: float) -> Levels:
    """Levels that spread the grid over `factor` times each group's range."""
    import torch

    low, high = bounds(grid)
    if grid.symmetric or grid.kind == "float":
        # (high - low) / 2 levels on each side: 7.5 for 4 bits, as compressed-tensors' minmax observer has it.
        scale = groups.abs().amax(-1) * (factor * 2 / (high - low))
        return Levels(_storable(scale, scale_dtype), None)
    top = groups.amax(-1).clamp(min=0) * factor
    bottom = groups.amin(-1).clamp(max=0) * factor
    scale = _storable((top - bottom) / (high - low), scale_dtype)
    return Levels(scale, torch.round(-bottom / scale).clamp(low, high))


def _storable(scale: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Rounded to the stored dtype; a group of zeros gets scale 1, never 0."""
    rounded = scale.to(dtype).float()
    return rounded.where(rounded > 0, rounded.new_ones(()))


def _error(groups: torch.Tensor, levels: Levels, grid: Grid, norm: float, weights: torch.Tensor | None) -> torch.Tensor:
    each = wide(levels)
    error = (decode_codes(round_codes(groups, each, grid), each) - groups).abs()
    error = error * error if norm == 2.0 else error.pow(norm)
    return (error if weights is None else error * weights).sum(-1)
