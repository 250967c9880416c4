"""GPTQ: rounding column after column, each error compensated by the columns that follow (Frantar et al. 2022, alg. 1).

The loop is `column_loop.py`'s, the orders of the columns `inverse_factor.py`'s. Where an order leaves groups whole, their scales are found
when their turn comes, on the weights compensated so far; else all before.

With a mask the same loop is SparseGPT: a column's dropped weights are rounded to zero, and their loss is made up for like a
rounding error. Without a grid nothing but the zeros is rounded. What stays grows by what it makes up for, so scales fixed
beforehand are found on the weights as zeros alone leave them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
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
from passes.record import dataclass

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class GptqOptions:
    """Options of the algorithm; `damping` is the share of mean(diag H) added to the diagonal, `mask` the zeros chosen in the same pass."""

    order: str = "static"
    damping: float = DAMPING
    search: ScaleSearch = FULL_RANGE
    mask: Mask | None = None


def gptq(
    weight: torch.Tensor, hessian: torch.Tensor, grid: Grid, scale_dtype: torch.dtype, options: GptqOptions, where: str
) -> tuple[Quantized, float]:
    """Return codes of `weight` `[N, K]` under H `[K, K]`, and the loss Σ (error / U_kk)² that the reference code reports."""
    import torch

    mask = options.mask
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
    groups = _Groups(work, group_of_position, grid, fixed, _finder(grid, scale_dtype, options.search, factor))
    codes, loss = _round_columns(factor, groups, zeros)
    unpermuted = torch.empty_like(codes)
    unpermuted[order] = codes
    group_of_input = None
    if options.order == "full":
        group_of_input = torch.empty_like(order)
        group_of_input[order] = group_of_position
    return as_quantized(unpermuted.T.contiguous(), groups.levels(), grid, group_of_input), loss


def sparse(weight: torch.Tensor, hessian: torch.Tensor, options: GptqOptions, where: str) -> tuple[torch.Tensor, float]:
    """Return `weight` `[N, K]` with the zeros of `options.mask`, the other weights making up for them; no rounding."""
    import torch

    mask = options.mask
    assert mask is not None, where
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


#: Finds the levels of one group on its weights `[g, N]` as compensated so far; the first of its positions.
_Find = Callable[["torch.Tensor", int], Levels]


def _finder(grid: Grid, scale_dtype: torch.dtype, search: ScaleSearch, factor: Factor) -> _Find:
    importance, alone = factor.importance, replace(grid, group_size=-1)

    def find(weights: torch.Tensor, start: int) -> Levels:
        return find_levels(weights.T, alone, scale_dtype, search, importance[start : start + len(weights)])

    return find


class _Groups:
    """Levels of the groups of `work` `[K, N]`: fixed beforehand, or found when a group's turn comes. Positions are asked for in order."""

    def __init__(
        self, work: torch.Tensor, group_of_position: torch.Tensor, grid: Grid, fixed: Levels | None, find: _Find
    ) -> None:
        import torch

        columns, rows = work.shape
        self.work, self.grid, self.fixed = work, grid, fixed
        self.size = grid.group_size if grid.group_size > 0 else columns
        self._find, self._group_of_position = find, group_of_position
        self._group = group_of_position.tolist()
        if fixed is None:
            self._scale = torch.empty(columns // self.size, rows, device=work.device)
        else:
            self._scale = fixed.scale.T.contiguous()
        self._zero: torch.Tensor | None = None
        if not grid.symmetric:
            known = None if fixed is None else fixed.zero
            self._zero = torch.empty_like(self._scale) if known is None else known.T.contiguous()

    def at(self, position: int) -> Levels:
        """Return the levels `[N]` of the column at a position."""
        self._begin(position)
        group = self._group[position]
        return Levels(self._scale[group], None if self._zero is None else self._zero[group])

    def of_block(self, start: int) -> BlockLevels:
        """Return what a kernel's block of columns is rounded to, which begins at `start`."""
        self._begin(start)
        low, high = self.grid.bounds
        numbers = self._group_of_position[start:].int()
        return BlockLevels(self.grid.kind, low, high, self._scale, self._zero, numbers)

    def levels(self) -> Levels:
        """Return the levels of all groups, `[N, G]`."""
        zero = None if self._zero is None else self._zero.T.contiguous()
        return Levels(self._scale.T.contiguous(), zero, None if self.fixed is None else self.fixed.total)

    def _begin(self, position: int) -> None:
        """Find the levels of the group that begins here, where they are not fixed."""
        if self.fixed is not None or position % self.size:
            return
        found = self._find(self.work[position : position + self.size], position)
        group = self._group[position]
        self._scale[group] = found.scale[:, 0]
        if self._zero is not None and found.zero is not None:
            self._zero[group] = found.zero[:, 0]


def _round_columns(factor: Factor, groups: _Groups, zeros: Zeros | None) -> tuple[torch.Tensor, float]:
    """Rounds every column of the groups' weights `[K, N]` (consumed). Returns codes `[K, N]` and the loss."""
    import torch

    work, fixed, size = groups.work, groups.fixed is not None, groups.size
    codes = torch.empty_like(work)

    def rounded(position: int, column: torch.Tensor) -> torch.Tensor:
        levels = groups.at(position)
        code = round_codes(column, levels, groups.grid)
        if zeros is not None:
            keep = zeros.keep(position)
            code = code * keep if levels.zero is None else code.where(keep, levels.zero)
        codes[position] = code
        return decode_codes(code, levels)

    if in_kernel(work, zeros):
        steps = card_steps(CARD_COLUMNS if fixed else size, zeros)
        return codes, compensated(work, factor, steps, KernelRounding(codes, zeros, groups.of_block))
    step = BLOCK_COLUMNS if fixed else min(size, BLOCK_COLUMNS)
    while not fixed and size % step:
        step -= 1
    return codes, compensated(work, factor, (step, step), ColumnByColumn(rounded))
