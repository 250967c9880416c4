"""The loop over columns that GPTQ and SparseGPT share: round some, make up for their errors in the columns that follow.

Works on Wᵀ `[K, N]` in a factor's order, so that a column of the weight is a contiguous row here. A block of columns is rounded in
tensor operations, or in one launch of a card's kernel; zeros come from a mask, chosen as the columns come or all before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from passes.algorithms.inverse_factor import Factor
from passes.algorithms.kernels import columns as columns_kernel
from passes.algorithms.kernels.columns import KERNEL_COLUMNS, NO_ZEROS, BlockLevels, BlockZeros
from passes.algorithms.sparsity import MASK_COLUMNS, Mask
from passes.record import dataclass

if TYPE_CHECKING:
    import torch

#: Columns compensated inside a block before the rest of the matrix is updated by one product; on a card, of so many of them.
BLOCK_COLUMNS, CARD_COLUMNS = 32, 128


class Zeros:
    """The mask as the columns come: chosen on the weights as compensated so far (SparseGPT), or all before (Wanda)."""

    def __init__(self, mask: Mask, work: torch.Tensor, factor: Factor, chosen: torch.Tensor | None) -> None:
        import torch

        self._mask, self._work, self._chosen = mask, work, chosen
        self._span = mask.run or MASK_COLUMNS
        self._pivots = torch.diagonal(factor.upper)

    def keep(self, position: int) -> torch.Tensor:
        """Return what stays of the column at `position`, `[N]`. Positions must be asked for in order."""
        if self._chosen is not None:
            return self._chosen[position]
        place = position % self._span
        if place == 0:
            self._block = self._choice(slice(position, position + self._span))
        return self._block[place]

    def of_block(self, start: int, end: int) -> BlockZeros:
        """Return what stays of a kernel's block of columns: known before, or the runs that the kernel is to choose itself.

        A block is a choice of its own where there are no runs (`card_steps`).
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


def prepared(
    weight: torch.Tensor, hessian: torch.Tensor, factor: Factor, mask: Mask | None
) -> tuple[torch.Tensor, Zeros | None]:
    """Return Wᵀ `[K, N]` in the factor's order, and what will be zero in it."""
    if mask is None:
        return weight.float()[:, factor.order].T.contiguous(), None
    if mask.method == "wanda":
        chosen = mask.wanda(weight, hessian)
        work = (weight.float() * chosen)[:, factor.order].T.contiguous()
        return work, Zeros(mask, work, factor, chosen[:, factor.order].T.contiguous())
    work = weight.float()[:, factor.order].T.contiguous()
    return work, Zeros(mask, work, factor, None)


#: Rounds a block of columns: its first position, its columns `[B, N]` and the block of the factor `[B, B]`; returns the errors `[B, N]`.
RoundBlock = Callable[[int, "torch.Tensor", "torch.Tensor"], "torch.Tensor"]


def compensated(work: torch.Tensor, factor: Factor, steps: tuple[int, int], rounded: RoundBlock) -> float:
    """Run the loop of algorithm 1 over `work` `[K, N]` (consumed), and return the loss Σ (error / U_kk)².

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
class ColumnByColumn:
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
class KernelRounding:
    """A block's loop in one launch. `codes` `[K, N]` is written; `levels(start)`: what the block there is rounded to."""

    codes: torch.Tensor
    zeros: Zeros | None
    levels: Callable[[int], BlockLevels]

    def __call__(self, start: int, block: torch.Tensor, upper: torch.Tensor) -> torch.Tensor:
        """Round a block."""
        end = start + len(block)
        zeros = NO_ZEROS if self.zeros is None else self.zeros.of_block(start, end)
        self.codes[start:end], errors = columns_kernel.round_block(block, upper, self.levels(start), zeros)
        return errors


def card_steps(columns: int, zeros: Zeros | None) -> tuple[int, int]:
    """Return after how many columns the rest makes up for them, and how many a launch takes: as many, unless zeros are chosen between.

    Groups whose levels are found as they come end a launch, and with it a choice of zeros: on a card those of small groups are chosen
    among fewer columns than on the processor.
    """
    by_block = zeros is not None and zeros.by_block
    return columns, min(columns, MASK_COLUMNS) if by_block else columns


def in_kernel(work: torch.Tensor, zeros: Zeros | None) -> bool:
    """Return whether the loop runs in the card's kernel."""
    return columns_kernel.usable(work) and (zeros is None or zeros.for_kernel)
