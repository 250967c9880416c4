"""GPTQ: rounding column after column, each error compensated by the columns that follow (Frantar et al. 2022, alg. 1).

The loop is `column_loop.py`'s, the orders of the columns `inverse_factor.py`'s. Where an order leaves groups whole, their scales are found
when their turn comes, on the weights compensated so far; else all before.

With a mask the same loop is SparseGPT: a column's dropped weights are rounded to zero, and their loss is made up for like a
rounding error. Without a grid nothing but the zeros is rounded. What stays grows by what it makes up for, so scales fixed
beforehand are found on the weights as zeros alone leave them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from passes.algorithms.column_loop import (
    BLOCK_COLUMNS,
    CARD_COLUMNS,
    ColumnByColumn,
    KernelRounding,
    Zeros,
    card_steps,
    compensated,
    in_kernel,
    prepared,
)
from passes.algorithms.damping import DAMPING
from passes.algorithms.inverse_factor import Factor, column_order, factorize
from passes.algorithms.kernels.columns import BlockLevels
from passes.algorithms.rtn import as_quantized
from passes.algorithms.scale_search import FULL_RANGE, Levels, ScaleSearch, decode_codes, find_levels, round_codes
from passes.algorithms.sparsity import Mask
from passes.formats.format import Grid, Quantized

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class GptqOptions:
    """Options of the algorithm; `damping` is the share of mean(diag H) added to the diagonal."""

    order: str = "static"
    damping: float = DAMPING
    search: ScaleSearch = FULL_RANGE


def gptq(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    grid: Grid,
    scale_dtype: torch.dtype,
    options: GptqOptions,
    where: str,
    mask: Mask | None = None,
) -> tuple[Quantized, float]:
    """Return codes of `weight` `[N, K]` under H `[K, K]`, and the loss Σ (error / U_kk)² that the reference code reports."""
    import torch

    order = column_order(torch.diagonal(hessian), options.order, grid.group_size, mask.run if mask else 0)
    factor = factorize(hessian, options.damping, order, where)
    size = grid.group_size if grid.group_size > 0 else weight.shape[1]
    group_of_position = (
        torch.arange(weight.shape[1], device=weight.device) // size if options.order == "full" else factor.order // size
    )
    work, zeros = prepared(weight, hessian, factor, mask)
    fixed = None
    if options.order in ("none", "static") or grid.group_size <= 0:
        shape = weight if mask is None else _with_zeros(weight, hessian, factor, mask)[0]
        fixed = find_levels(shape, grid, scale_dtype, options.search, factor.by_input)
    codes, levels, loss = _round_columns(work, factor, group_of_position, grid, scale_dtype, options, fixed, zeros)
    unpermuted = torch.empty_like(codes)
    unpermuted[order] = codes
    group_of_input = None
    if options.order == "full":
        group_of_input = torch.empty_like(order)
        group_of_input[order] = group_of_position
    return as_quantized(unpermuted.T.contiguous(), levels, grid, group_of_input), loss


def sparse(
    weight: torch.Tensor, hessian: torch.Tensor, options: GptqOptions, where: str, mask: Mask
) -> tuple[torch.Tensor, float]:
    """Return `weight` `[N, K]` with zeros where `mask` has them, the other weights making up for it; no rounding."""
    import torch

    order = column_order(torch.diagonal(hessian), "static", -1, mask.run)
    return _with_zeros(weight, hessian, factorize(hessian, options.damping, order, where), mask)


def _with_zeros(weight: torch.Tensor, hessian: torch.Tensor, factor: Factor, mask: Mask) -> tuple[torch.Tensor, float]:
    import torch

    work, zeros = prepared(weight, hessian, factor, mask)
    assert zeros is not None
    out = torch.empty_like(work)
    if in_kernel(work, zeros):
        steps = card_steps(CARD_COLUMNS, zeros)
        loss = compensated(work, factor, steps, KernelRounding(out, zeros, lambda start: BlockLevels("none")))
    else:

        def kept(position: int, column: torch.Tensor) -> torch.Tensor:
            return torch.mul(column, zeros.keep(position), out=out[position])

        loss = compensated(work, factor, (BLOCK_COLUMNS, BLOCK_COLUMNS), ColumnByColumn(kept))
    values = torch.empty_like(out)
    values[factor.order] = out
    return values.T.contiguous(), loss


def _round_columns(
    work: torch.Tensor,
    factor: Factor,
    group_of_position: torch.Tensor,
    grid: Grid,
    scale_dtype: torch.dtype,
    options: GptqOptions,
    fixed: Levels | None,
    zeros: Zeros | None,
) -> tuple[torch.Tensor, Levels, float]:
    """Rounds every column of `work` `[K, N]` (consumed). Returns codes `[K, N]`, levels `[N, G]`, the loss."""
    import torch

    columns, rows = work.shape
    size = grid.group_size if grid.group_size > 0 else columns
    groups = group_of_position.tolist()
    scale = torch.empty(columns // size, rows, device=work.device) if fixed is None else fixed.scale.T.contiguous()
    zero = None
    if not grid.symmetric:
        zero = torch.empty_like(scale) if fixed is None or fixed.zero is None else fixed.zero.T.contiguous()
    codes = torch.empty_like(work)

    def find(position: int) -> None:
        """Find the levels of the group that begins here, where they are not fixed."""
        if fixed is None and position % size == 0:
            ahead = work[position : position + size]
            _set_levels(scale, zero, ahead, groups[position], grid, scale_dtype, options, factor, position)

    def rounded(position: int, column: torch.Tensor) -> torch.Tensor:
        find(position)
        group = groups[position]
        levels = Levels(scale[group], None if zero is None else zero[group])
        code = round_codes(column, levels, grid)
        if zeros is not None:
            keep = zeros.keep(position)
            code = code * keep if levels.zero is None else code.where(keep, levels.zero)
        codes[position] = code
        return decode_codes(code, levels)

    low, high = grid.bounds
    numbers = group_of_position.to(torch.int32)

    def levels(start: int) -> BlockLevels:
        find(start)
        return BlockLevels(grid.kind, low, high, scale, zero, numbers[start:])

    if in_kernel(work, zeros):
        steps = card_steps(size if fixed is None else CARD_COLUMNS, zeros)
        loss = compensated(work, factor, steps, KernelRounding(codes, zeros, levels))
    else:
        step = min(size, BLOCK_COLUMNS) if fixed is None else BLOCK_COLUMNS
        while fixed is None and size % step:
            step -= 1
        loss = compensated(work, factor, (step, step), ColumnByColumn(rounded))
    total = None if fixed is None else fixed.total
    return codes, Levels(scale.T.contiguous(), None if zero is None else zero.T.contiguous(), total), loss


def _set_levels(
    scale: torch.Tensor,
    zero: torch.Tensor | None,
    group_weights: torch.Tensor,
    group: int,
    grid: Grid,
    scale_dtype: torch.dtype,
    options: GptqOptions,
    factor: Factor,
    start: int,
) -> None:
    """Find one group's levels on its weights as compensated so far."""
    importance = factor.importance[start : start + group_weights.shape[0]]
    found = find_levels(group_weights.T, replace(grid, group_size=-1), scale_dtype, options.search, importance)
    scale[group] = found.scale[:, 0]
    if zero is not None and found.zero is not None:
        zero[group] = found.zero[:, 0]
