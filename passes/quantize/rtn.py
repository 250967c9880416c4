"""Round to nearest: every weight to the nearest level of its group, without looking at inputs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from passes.formats.format import Grid, Quantized
from passes.quantize.scales import FULL_RANGE, Levels, ScaleSearch, find_levels, grouped, round_codes

if TYPE_CHECKING:
    import torch


def round_to_nearest(
    weight: torch.Tensor,
    grid: Grid,
    scale_dtype: torch.dtype,
    search: ScaleSearch = FULL_RANGE,
    importance: torch.Tensor | None = None,
) -> Quantized:
    """Codes of `weight` `[N, K]`; `importance` `[K]` weighs the scale search (the Hessian's diagonal)."""
    levels = find_levels(weight, grid, scale_dtype, search, importance)
    return as_quantized(nearest_codes(weight, levels, grid), levels, grid)


def nearest_codes(weight: torch.Tensor, levels: Levels, grid: Grid) -> torch.Tensor:
    """Codes `[N, K]` (fp32) at given levels."""
    if grid.group_size == 0:
        return round_codes(weight.float(), levels, grid)
    wide = Levels(levels.scale.unsqueeze(-1), None if levels.zero is None else levels.zero.unsqueeze(-1))
    return round_codes(grouped(weight.float(), grid.group_size), wide, grid).reshape(weight.shape)


def as_quantized(
    codes: torch.Tensor, levels: Levels, grid: Grid, group_of_input: torch.Tensor | None = None
) -> Quantized:
    """What a format takes: integer codes as int32, e4m3 codes as float8."""
    import torch

    dtype = torch.float8_e4m3fn if grid.kind == "float" else torch.int32
    zero = None if levels.zero is None else levels.zero.to(torch.int32)
    return Quantized(codes.to(dtype), levels.scale, zero, group_of_input)
