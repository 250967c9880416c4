"""GPTQ's loop over the columns of a block as one Triton kernel: on a card, a launch a block instead of a dozen a column.

A program owns a tile of a matrix's rows. It holds some columns of the block for them in registers, rounds one after the other, and lets
those that follow make up for each error (`passes.algorithms.gptq`, whose loop on the processor does the same in the same order).
Layout as there: Wᵀ, so that a column of the matrix is a row of what is worked on.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import TYPE_CHECKING, Any

from passes.record import dataclass

if TYPE_CHECKING:
    import torch

#: Columns that a program holds at a time; rows of a matrix that it owns, and warps that share them.
KERNEL_COLUMNS, _TILE, _WARPS = 32, 64, 2


@dataclass(frozen=True)
class BlockLevels:
    """What the columns of a block are rounded to: `kind` "int" or "e2m1" between `low` and `high`, or "none": kept as they are.

    `scale`, `zero`: fp32 `[G, N]`, `zero` None when symmetric; `group`: int32 `[B]`, the row of these for each column of the block.
    """

    kind: str
    low: float = 0.0
    high: float = 0.0
    scale: torch.Tensor | None = None
    zero: torch.Tensor | None = None
    group: torch.Tensor | None = None


@dataclass(frozen=True)
class BlockZeros:
    """Which weights of a block become zero: `keep`, bool `[B, N]`, chosen before; or `drop` of every `run` columns, the cheapest ones as
    compensated up to where the run begins.
    """

    keep: torch.Tensor | None = None
    run: int = 0
    drop: int = 0


#: A block that keeps all of its weights.
NO_ZEROS = BlockZeros()


@cache
def _triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def usable(work: torch.Tensor) -> bool:
    """Return whether the kernel runs where a tensor lies: on a card, beside Triton."""
    return work.is_cuda and _triton()


def round_block(
    work: torch.Tensor, upper: torch.Tensor, levels: BlockLevels, zeros: BlockZeros = NO_ZEROS
) -> tuple[torch.Tensor, torch.Tensor]:
    """Round the columns of one block `work` `[B, N]` fp32, which is left as it is, one after the other.

    `upper`: `[B, B]`, the block of the factor. Returns the codes (values where `kind` is "none") and the errors over their pivots,
    fp32 `[B, N]` both.
    """
    import torch
    import triton

    columns, rows = work.shape
    codes, errors = torch.empty_like(work), torch.empty_like(work)
    nothing = work  # stands for a tensor that the kernel does not read
    keep = nothing if zeros.keep is None else zeros.keep.to(torch.int8)
    scale, zero, group = (nothing if each is None else each for each in (levels.scale, levels.zero, levels.group))
    with torch.cuda.device_of(work):  # type: ignore[no-untyped-call]
        _kernel()[(triton.cdiv(rows, _TILE),)](
            work, work.stride(0), codes, errors, upper, *upper.stride(), scale, zero, group, keep, columns, rows, levels.low, levels.high,
            zeros.drop, KIND={"none": 0, "int": 1, "e2m1": 2}[levels.kind], ZERO=levels.zero is not None,
            KEEP=zeros.keep is not None, RUN=zeros.run, BLOCK=min(KERNEL_COLUMNS, max(16, triton.next_power_of_2(columns))),
            TILE=_TILE, num_warps=_WARPS,
        )  # fmt: skip
    return codes, errors


@cache
def _kernel() -> Any:
    """The kernel; compiled when first launched."""
    from passes.algorithms.kernels.columns_triton import round_columns

    return round_columns
