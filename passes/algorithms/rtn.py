"""Round to nearest: every weight to the nearest level of its group, without looking at inputs."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from passes.algorithms.scale_search import FULL_RANGE, Levels, ScaleSearch, find_levels, grouped, round_codes, wide
from passes.formats.format import Grid, Quantized

if TYPE_CHECKING:
    import torch


def round_to_nearest(
    weight: torch.Tensor,
    grid: Grid,
    scale_dtype: torch.dtype,
    search: ScaleSearch = FULL_RANGE,
    importance: torch.Tensor | None = None,
) -> Quantized:
    """Return codes of `weight` `[N, K]`; `importance` `[K]` weighs the scale search (the Hessian's diagonal)."""
    levels = find_levels(weight, grid, scale_dtype, search, importance)
    return as_quantized(nearest_codes(weight, levels, grid), levels, grid)


def nearest_codes(weight: torch.Tensor, levels: Levels, grid: Grid) -> torch.Tensor:
    """Return codes `[N, K]` (fp32) at given levels."""
    if grid.group_size == 0:
        return round_codes(weight.float(), levels, grid)
    return round_codes(grouped(weight.float(), grid.group_size), wide(levels), grid).reshape(weight.shape)


def as_quantized(
    codes: torch.Tensor, levels: Levels, grid: Grid, group_of_input: torch.Tensor | None = None
) -> Quantized:
    """Return what a format takes: integer codes as int32, e4m3 codes as float8, e2m1 codes as they are."""
    import torch

    dtype = {"int": torch.int32, "e4m3": torch.float8_e4m3fn, "e2m1": torch.float32}[grid.kind]
    zero = None if levels.zero is None else levels.zero.to(torch.int32)
    return Quantized(codes.to(dtype), levels.scale, zero, group_of_input, levels.total)


def round_blocks_to_nearest(
    weight: torch.Tensor, block: tuple[int, int], grid: Grid, scale_dtype: torch.dtype
) -> Quantized:
    """Return one scale a block of `block` = (rows, columns) weights; the last blocks may be short. Scale `[ceil N/r, ceil K/c]`."""
    import torch

    rows, columns = weight.shape
    down, right = -rows % block[0], -columns % block[1]
    padded = torch.nn.functional.pad(weight.float(), (0, right, 0, down))
    tiles = padded.reshape(padded.shape[0] // block[0], block[0], padded.shape[1] // block[1], block[1])
    flat = tiles.transpose(1, 2).reshape(-1, block[0] * block[1])
    levels = find_levels(flat, replace(grid, group_size=-1), scale_dtype, FULL_RANGE)
    codes = round_codes(flat, levels, grid).reshape(tiles.shape[0], tiles.shape[2], block[0], block[1])
    whole = codes.transpose(1, 2).reshape(padded.shape)[:rows, :columns].contiguous()
    return as_quantized(whole, Levels(levels.scale.reshape(tiles.shape[0], tiles.shape[2]), None), grid)
