"""Scales and zero points of an integer or float grid: from the extremes, or by a search for the least weighted error.

Shapes: a group's weights are `[N, G, g]` (N rows, G groups of g inputs), scales `[N, G]`. Everything in fp32; the scale is
rounded to the dtype it will be stored in *before* any weight is rounded with it, so that codes are chosen for the scale
that the engine will use.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from passes.formats.format import E4M3_MAX, Grid
from passes.record import dataclass

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Levels:
    """Scale and zero point of every group: `scale` `[N, G]` fp32; `zero` `[N, G]` fp32 integers, None when symmetric.

    `total`: fp32 `[1]`, what the scales are multiplied by before they are stored, where they have two levels (NVFP4).
    """

    scale: torch.Tensor
    zero: torch.Tensor | None
    total: torch.Tensor | None = None


@dataclass(frozen=True)
class ScaleSearch:
    """How the clipping range of each group is chosen.

    `steps` factors from 1 down to `shrink` times the full range are tried; the one with the least Σ w·|error|^`norm` wins
    (w: a weight per input). `steps = 0` takes the full range. Grid and norm as in GPTQ's reference code (`mse` option).
    """

    steps: int = 0
    shrink: float = 0.5
    norm: float = 2.0


#: The least maximum of a matrix that NVFP4's total scale follows; its inverse is finite in fp32.
_TINY = 1e-30

#: The extremes of each group are the extremes of its grid.
FULL_RANGE = ScaleSearch()


def grouped(weight: torch.Tensor, group_size: int) -> torch.Tensor:
    """View `[N, K]` as `[N, G, g]`; the whole row is one group for -1. K must be a multiple of the group size."""
    rows, columns = weight.shape
    return weight.reshape(rows, -1, columns if group_size <= 0 else group_size)


def round_codes(values: torch.Tensor, levels: Levels, grid: Grid) -> torch.Tensor:
    """Return the codes (fp32 integers, or a float grid's values) of `values`, whose last axis is broadcast against the levels."""
    low, high = grid.bounds
    scaled = values / levels.scale
    if grid.kind == "e4m3":
        import torch

        return scaled.clamp(low, high).to(torch.float8_e4m3fn).float()
    if grid.kind == "e2m1":
        return _to_e2m1(scaled.clamp(low, high))
    if levels.zero is not None:
        scaled = scaled + levels.zero
    return scaled.round().clamp(low, high)


def _to_e2m1(values: torch.Tensor) -> torch.Tensor:
    """The nearest of 0, ½, 1, 1½, 2, 3, 4, 6 and their negatives; ties to the even code."""
    import torch

    size = values.abs()
    step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))
    return (values / step).round_().mul_(step)


def decode_codes(codes: torch.Tensor, levels: Levels) -> torch.Tensor:
    """Return the values of codes."""
    return (codes if levels.zero is None else codes - levels.zero) * levels.scale


def wide(levels: Levels) -> Levels:
    """Return levels `[N, G, 1]`, to be broadcast over the weights of their groups."""
    return Levels(levels.scale.unsqueeze(-1), None if levels.zero is None else levels.zero.unsqueeze(-1))


def find_levels(
    weight: torch.Tensor,
    grid: Grid,
    scale_dtype: torch.dtype,
    search: ScaleSearch,
    importance: torch.Tensor | None = None,
) -> Levels:
    """Find scales and zero points for `[N, K]` weights in their original order; `importance` `[K]` weighs the squared error."""
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
            best.total,
        )
    return best


def _whole_matrix(
    weight: torch.Tensor, grid: Grid, scale_dtype: torch.dtype, search: ScaleSearch, importance: torch.Tensor | None
) -> Levels:
    flat = weight.reshape(1, -1)
    spread = None if importance is None else importance.repeat(weight.shape[0])
    row = replace(grid, group_size=-1)
    return find_levels(flat, row, scale_dtype, search, spread)


def _range_levels(groups: torch.Tensor, grid: Grid, scale_dtype: torch.dtype, factor: float) -> Levels:
    """Levels that spread the grid over `factor` times each group's range."""
    import torch

    low, high = grid.bounds
    if grid.symmetric:
        # (high - low) / 2 levels on each side: 7.5 for 4 bits, as compressed-tensors' minmax observer has it.
        peak = groups.abs().amax(-1)
        if scale_dtype == torch.float8_e8m0fnu:
            return Levels(_power_of_two(peak * factor), None)
        full = peak * (2 / (high - low))
        total = None
        if scale_dtype == torch.float8_e4m3fn:
            # Two levels: the largest group's full range gets the largest e4m3 value. All zeros: any number does.
            total = (E4M3_MAX / full.max().clamp(min=_TINY)).reshape(1)
        return Levels(_storable(full * factor, scale_dtype, total), None, total)
    top = groups.amax(-1).clamp(min=0) * factor
    bottom = groups.amin(-1).clamp(max=0) * factor
    scale = _storable((top - bottom) / (high - low), scale_dtype)
    zero = torch.round(-bottom / scale)
    if grid.least_zero:
        # Where the zero point has to move up, what is left above it must still reach the top.
        scale = torch.where(zero < grid.least_zero, _storable(top / (high - grid.least_zero), scale_dtype), scale)
    return Levels(scale, zero.clamp(max(low, grid.least_zero), high))


def _power_of_two(peak: torch.Tensor) -> torch.Tensor:
    """The scale of e2m1 values whose largest is `peak`, as microscaling has it (OCP MX 1.0, section 6.3; compressed-tensors'
    `generate_mx_scales`): the power of two of the peak, rounded up from 1¾ times a power, over that of the largest value, 4.
    """
    import torch

    mantissa, exponent = torch.frexp(peak)  # peak = mantissa · 2^exponent, mantissa in [½, 1)
    raised = exponent - 1 + (mantissa >= 0.875).to(exponent.dtype)
    scale = torch.ldexp(torch.ones_like(peak), (raised - 2).clamp(-126, 127))
    return scale.where(peak > 0, 1.0)


def _storable(scale: torch.Tensor, dtype: torch.dtype, total: torch.Tensor | None = None) -> torch.Tensor:
    """Rounded to the stored dtype (times `total`, where there is one); where that is 0, as in a group of zeros, 1 is stored."""
    import torch

    stored = scale if total is None else scale * total
    stored = torch.where(stored > 0, stored, 1.0).to(dtype).float()
    stored = torch.where(stored > 0, stored, 1.0)
    return stored if total is None else stored / total


def _error(groups: torch.Tensor, levels: Levels, grid: Grid, norm: float, weights: torch.Tensor | None) -> torch.Tensor:
    each = wide(levels)
    error = (decode_codes(round_codes(groups, each, grid), each) - groups).abs()
    error = error * error if norm == 2.0 else error.pow(norm)
    return (error if weights is None else error * weights).sum(-1)
