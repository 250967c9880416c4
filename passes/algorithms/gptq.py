"""GPTQ: rounding column after column, each error compensated by the columns that follow (Frantar et al. 2022, alg. 1).

Works on Wᵀ `[K, N]`, so that a column of the weight is a contiguous row here. Order of the columns:

* `none`: as stored.
* `static`: by falling diag(H), with every group's scale fixed beforehand in the original order, so that the stored format
  needs no permutation (the reference code's `static_groups`, compressed-tensors' `actorder: weight`).
* `group`: groups by falling mean diag(H), columns inside a group likewise; each group's scale is found when its turn comes,
  on the weights compensated so far. Needs no permutation in the format either (group-aware reordering, arXiv 2505.14638).
* `full`: by falling diag(H), groups formed in that order; the format must store `g_idx` (GPTQ's `desc_act`).

With a mask the same loop is SparseGPT: a column's dropped weights are rounded to zero, and their loss is made up for like a
rounding error. Without a grid nothing but the zeros is rounded. What stays grows by what it makes up for, so scales fixed
beforehand are found on the weights as zeros alone leave them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from passes.algorithms.damping import DAMPING
from passes.algorithms.kernels import columns as columns_kernel
from passes.algorithms.kernels.columns import KERNEL_COLUMNS, BlockLevels, BlockZeros
from passes.algorithms.rtn import as_quantized
from passes.algorithms.scale_search import FULL_RANGE, Levels, ScaleSearch, decode_codes, find_levels, round_codes
from passes.algorithms.sparsity import MASK_COLUMNS, Mask
from passes.errors import TightfitError
from passes.formats.format import Grid, Quantized

if TYPE_CHECKING:
    import torch

#: Columns compensated inside a block before the rest of the matrix is updated by one product; on a card, of so many of them.
BLOCK_COLUMNS, _CARD_COLUMNS = 32, 128
#: Times the damping is multiplied by ten before a Hessian is given up.
DAMPING_ATTEMPTS = 4


@dataclass(frozen=True)
class GptqOptions:
    """Options of the algorithm; `damping` is the share of mean(diag H) added to the diagonal."""

    order: str = "static"
    damping: float = DAMPING
    search: ScaleSearch = FULL_RANGE


@dataclass(frozen=True)
class Factor:
    """What the columns' loop needs of a Hessian: the order and the upper Cholesky factor of the inverse, in that order."""

    order: torch.Tensor
    upper: torch.Tensor
    diagonal: torch.Tensor
    """diag(H) in the original order."""

    @property
    def importance(self) -> torch.Tensor:
        """Weight of each input's squared error, in that order: 1 / U_kk², what an error costs after compensation; 0 of dead inputs."""
        import torch

        return (1.0 / torch.diagonal(self.upper).square()).where(self.diagonal[self.order] > 0, 0.0)


def factorize(hessian: torch.Tensor, damping: float, order: torch.Tensor, where: str) -> Factor:
    """Damped inverse factor of H `[K, K]` under a column order. Raises TightfitError for a Hessian that no damping mends."""
    import torch

    diagonal = torch.diagonal(hessian).clone()
    backwards = order.flip(0)
    turned = hessian[backwards][:, backwards]
    dead = torch.diagonal(turned) <= 0
    torch.diagonal(turned)[dead] = 1.0
    step = damping * float(diagonal.mean()) or 1e-6
    for _ in range(DAMPING_ATTEMPTS):
        torch.diagonal(turned).add_(step)
        upper = _inverse_factor(turned)
        if upper is not None:
            return Factor(order, upper, diagonal)
        step *= 10
    raise TightfitError(
        f"the Hessian of {where} is not positive definite, even with damping {damping * 10 ** (DAMPING_ATTEMPTS - 1):g}",
        remedy="use more calibration text, or a larger `damping` under `passes: quantize:`",
    )


def _inverse_factor(turned: torch.Tensor) -> torch.Tensor | None:
    """Upper U with UᵀU = matrix⁻¹, given the matrix with rows and columns reversed; None where it is not positive definite.

    Without forming the inverse: Cholesky of the reversed matrix gives matrix = R Rᵀ with R upper, so U = R⁻¹.
    """
    import torch

    lower, failed = torch.linalg.cholesky_ex(turned)
    if int(failed) != 0:
        return None
    root = lower.flip(0, 1)
    del lower  # what is in memory at once is a few of these matrices
    upper = torch.eye(len(root), device=root.device).T  # by columns, as BLAS has it: solved in place
    torch.linalg.solve_triangular(root, upper, upper=True, out=upper)
    return upper if bool(torch.isfinite(upper.sum())) else None


def column_order(diagonal: torch.Tensor, order: str, group_size: int, run: int = 0) -> torch.Tensor:
    """The order in which columns are rounded (see the module's text). Ties keep their place; runs of `run` stay together."""
    import torch

    if order == "none":
        return torch.arange(diagonal.shape[0], device=diagonal.device)
    if run:
        runs = column_order(diagonal.reshape(-1, run).mean(1), order, group_size // run)
        return (runs[:, None] * run + torch.arange(run, device=diagonal.device)).reshape(-1)
    if order in ("static", "full") or group_size <= 0:
        return torch.argsort(diagonal, descending=True, stable=True)
    groups = diagonal.reshape(-1, group_size)
    by_group = torch.argsort(groups.mean(1), descending=True, stable=True)
    inside = torch.argsort(groups, dim=1, descending=True, stable=True)
    return (inside + torch.arange(len(groups), device=diagonal.device)[:, None] * group_size)[by_group].reshape(-1)


def gptq(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    grid: Grid,
    scale_dtype: torch.dtype,
    options: GptqOptions,
    where: str,
    mask: Mask | None = None,
) -> tuple[Quantized, float]:
    """Codes of `weight` `[N, K]` under H `[K, K]`, and the loss Σ (error / U_kk)² that the reference code reports."""
    import torch

    order = column_order(torch.diagonal(hessian), options.order, grid.group_size, mask.run if mask else 0)
    factor = factorize(hessian, options.damping, order, where)
    size = grid.group_size if grid.group_size > 0 else weight.shape[1]
    group_of_position = (
        torch.arange(weight.shape[1], device=weight.device) // size if options.order == "full" else factor.order // size
    )
    work, zeros = _prepared(weight, hessian, factor, mask)
    fixed = None
    if options.order in ("none", "static") or grid.group_size <= 0:
        shape = weight if mask is None else _with_zeros(weight, hessian, factor, mask)[0]
        fixed = find_levels(shape, grid, scale_dtype, options.search, _importance(factor))
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
    """`weight` `[N, K]` with zeros where `mask` has them, the other weights making up for it; no rounding."""
    import torch

    order = column_order(torch.diagonal(hessian), "static", -1, mask.run)
    return _with_zeros(weight, hessian, factorize(hessian, options.damping, order, where), mask)


def _with_zeros(weight: torch.Tensor, hessian: torch.Tensor, factor: Factor, mask: Mask) -> tuple[torch.Tensor, float]:
    import torch

    work, zeros = _prepared(weight, hessian, factor, mask)
    assert zeros is not None
    out = torch.empty_like(work)
    if _in_kernel(work, zeros):
        steps = _card_steps(_CARD_COLUMNS, zeros)
        loss = _compensated(work, factor, steps, _KernelRounding(out, zeros, lambda start: BlockLevels("none")))
    else:

        def kept(position: int, column: torch.Tensor) -> torch.Tensor:
            return torch.mul(column, zeros.keep(position), out=out[position])

        loss = _compensated(work, factor, (BLOCK_COLUMNS, BLOCK_COLUMNS), _ColumnByColumn(kept))
    values = torch.empty_like(out)
    values[factor.order] = out
    return values.T.contiguous(), loss


def _importance(factor: Factor) -> torch.Tensor:
    """The importance of each input in the original order."""
    import torch

    weights = torch.empty_like(factor.diagonal)
    weights[factor.order] = factor.importance
    return weights


class _Zeros:
    """The mask as the columns come: chosen on the weights as compensated so far (SparseGPT), or all before (Wanda)."""

    def __init__(self, mask: Mask, work: torch.Tensor, factor: Factor, chosen: torch.Tensor | None) -> None:
        import torch

        self._mask, self._work, self._chosen = mask, work, chosen
        self._span = mask.run or MASK_COLUMNS
        self._pivots = torch.diagonal(factor.upper)

    def keep(self, position: int) -> torch.Tensor:
        """What stays of the column at `position`, `[N]`. Positions must be asked for in order."""
        if self._chosen is not None:
            return self._chosen[position]
        place = position % self._span
        if place == 0:
            self._block = self._choice(slice(position, position + self._span))
        return self._block[place]

    def of_block(self, start: int, end: int) -> BlockZeros:
        """What stays of a kernel's block of columns: known before, or the runs that the kernel is to choose itself.

        A block is a choice of its own where there are no runs (`_card_steps`).
        """
        if self._chosen is not None:
            return BlockZeros(self._chosen[start:end])
        if self._mask.run:
            return BlockZeros(run=self._mask.run, drop=round(self._mask.run * self._mask.sparsity))
        return BlockZeros(self._choice(slice(start, end)))

    @property
    def for_kernel(self) -> bool:
        """Whether a kernel can keep to it: it holds only some runs whole."""
        return self._chosen is not None or not self._mask.run or KERNEL_COLUMNS % self._mask.run == 0

    @property
    def by_block(self) -> bool:
        """Whether what stays is chosen block by block, on what the blocks before have left."""
        return self._chosen is None and not self._mask.run

    def _choice(self, columns: slice) -> torch.Tensor:
        return self._mask.keep((self._work[columns] / self._pivots[columns, None]).square())


def _prepared(
    weight: torch.Tensor, hessian: torch.Tensor, factor: Factor, mask: Mask | None
) -> tuple[torch.Tensor, _Zeros | None]:
    """Wᵀ `[K, N]` in the factor's order, and what will be zero in it."""
    if mask is None:
        return weight.float()[:, factor.order].T.contiguous(), None
    if mask.method == "wanda":
        chosen = mask.wanda(weight, hessian)
        work = (weight.float() * chosen)[:, factor.order].T.contiguous()
        return work, _Zeros(mask, work, factor, chosen[:, factor.order].T.contiguous())
    work = weight.float()[:, factor.order].T.contiguous()
    return work, _Zeros(mask, work, factor, None)


#: Rounds a block of columns: its first position, its columns `[B, N]` and the block of the factor `[B, B]`; returns the errors `[B, N]`.
_RoundBlock = Callable[[int, "torch.Tensor", "torch.Tensor"], "torch.Tensor"]


def _compensated(work: torch.Tensor, factor: Factor, steps: tuple[int, int], rounded: _RoundBlock) -> float:
    """The loop of algorithm 1 over `work` `[K, N]` (consumed). Returns the loss.

    `steps`: columns after which the rest of the matrix makes up for their errors in one product, and columns that `rounded` takes at
    once, whose errors the rest of such a step makes up for first.
    """
    import torch

    columns, (outer, inner) = len(work), steps
    loss = torch.zeros((), device=work.device)
    for start in range(0, columns, outer):
        end = min(start + outer, columns)
        parts = []
        for first in range(start, end, inner):
            last = min(first + inner, end)
            parts.append(rounded(first, work[first:last], factor.upper[first:last, first:last]))
            if last < end:
                work[last:end].addmm_(factor.upper[first:last, last:end].T, parts[-1], alpha=-1.0)
        errors = parts[0] if len(parts) == 1 else torch.cat(parts)
        loss += errors.square().sum()
        if end < columns:
            work[end:].addmm_(factor.upper[start:end, end:].T, errors, alpha=-1.0)
    return float(loss)


@dataclass(frozen=True)
class _ColumnByColumn:
    """A block's loop in tensor operations: `rounded(position, column)` is what a column becomes."""

    rounded: Callable[[int, torch.Tensor], torch.Tensor]

    def __call__(self, start: int, block: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
        """Round a block (consumed)."""
        import torch

        errors = torch.empty_like(block)
        inverse_pivots = (1.0 / torch.diagonal(upper)).tolist()
        for i in range(len(block)):
            value = self.rounded(start + i, block[i])
            error = torch.sub(block[i], value, out=errors[i]).mul_(inverse_pivots[i])
            if i + 1 < len(block):
                block[i + 1 :].addr_(upper[i, i + 1 :], error, alpha=-1.0)
        return errors


@dataclass(frozen=True)
class _KernelRounding:
    """A block's loop in one launch. `codes` `[K, N]` is written; `levels(start)`: what the block there is rounded to."""

    codes: torch.Tensor
    zeros: _Zeros | None
    levels: Callable[[int], BlockLevels]

    def __call__(self, start: int, block: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
        """Round a block."""
        end = start + len(block)
        zeros = BlockZeros() if self.zeros is None else self.zeros.of_block(start, end)
        self.codes[start:end], errors = columns_kernel.round_block(block, upper, self.levels(start), zeros)
        return errors


def _round_columns(
    work: torch.Tensor,
    factor: Factor,
    group_of_position: torch.Tensor,
    grid: Grid,
    scale_dtype: torch.dtype,
    options: GptqOptions,
    fixed: Levels | None,
    zeros: _Zeros | None,
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

    if _in_kernel(work, zeros):
        steps = _card_steps(size if fixed is None else _CARD_COLUMNS, zeros)
        loss = _compensated(work, factor, steps, _KernelRounding(codes, zeros, levels))
    else:
        step = min(size, BLOCK_COLUMNS) if fixed is None else BLOCK_COLUMNS
        while fixed is None and size % step:
            step -= 1
        loss = _compensated(work, factor, (step, step), _ColumnByColumn(rounded))
    total = None if fixed is None else fixed.total
    return codes, Levels(scale.T.contiguous(), None if zero is None else zero.T.contiguous(), total), loss


def _card_steps(columns: int, zeros: _Zeros | None) -> tuple[int, int]:
    """Columns after which the rest of the matrix makes up for them, and columns of one launch: as many, unless zeros are chosen between.

    Groups whose levels are found as they come end a launch, and with it a choice of zeros: on a card those of small groups are chosen
    among fewer columns than on the processor.
    """
    by_block = zeros is not None and zeros.by_block
    return columns, min(columns, MASK_COLUMNS) if by_block else columns


def _in_kernel(work: torch.Tensor, zeros: _Zeros | None) -> bool:
    """Whether the loop runs in the card's kernel."""
    return columns_kernel.usable(work) and (zeros is None or zeros.for_kernel)


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
