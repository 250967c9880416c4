"""The Triton source of `passes.algorithms.kernels.columns`, which alone imports it: it needs Triton."""

# mypy: ignore-errors
# ruff: noqa: SIM102, SIM108
from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _nearest(x):
    """x rounded half to even: fp32 numbers as large as the constant have no fraction. |x| < 2²²."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def _of_column(pointer, groups, here, rows, row, inside):
    """The levels of one column for every row: its group is picked out of the block's."""
    return tl.load(pointer + tl.sum(tl.where(here, groups, 0), 0) * rows + row, mask=inside, other=1.0)


@triton.jit
def round_columns(
    work, work_stride, codes, errors, upper, down, right, scale, zero, group, keep, columns, rows, low, high, drop,
    KIND: tl.constexpr, ZERO: tl.constexpr, KEEP: tl.constexpr, RUN: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Round `columns` columns, each `rows` long, of which a program takes TILE; BLOCK columns are in registers at a time.

    Rows of the pointers are columns of the matrix.
    """
    row = tl.program_id(0) * TILE + tl.arange(0, TILE)
    column = tl.arange(0, BLOCK)
    inside = row < rows
    for first in range(0, columns, BLOCK):
        there = first + column < columns
        w = tl.load(
            work + (first + column)[:, None] * work_stride + row[None, :], mask=there[:, None] & inside[None, :], other=0.0
        )  # fmt: skip
        for before in range(0, first, BLOCK):  # what the blocks before have left to make up for
            error = tl.load(errors + (before + column)[:, None] * rows + row[None, :], mask=inside[None, :], other=0.0)
            across = tl.load(
                upper + (before + column)[None, :] * down + (first + column)[:, None] * right, mask=there[:, None], other=0.0
            )  # fmt: skip
            w -= tl.dot(across, error, input_precision="ieee")
        pivots = tl.load(upper + (first + column) * (down + right), mask=there, other=1.0)
        kept = tl.full([BLOCK, TILE], 1, tl.int32)
        if KIND > 0:
            groups = tl.load(group + first + column, mask=there, other=0)
            s_next = _of_column(scale, groups, column == 0, rows, row, inside)
            if ZERO:
                z_next = _of_column(zero, groups, column == 0, rows, row, inside)
        u_next = tl.load(upper + first * down + (first + column) * right, mask=there, other=0.0)
        for i in range(tl.minimum(BLOCK, columns - first)):
            here = column == i
            # What the next column needs is asked for before this one is worked on.
            follows = column == i + 1
            u = u_next
            following = tl.minimum(first + i + 1, columns - 1)
            u_next = tl.load(upper + following * down + (first + column) * right, mask=there, other=0.0)
            if KIND > 0:
                s = s_next
                s_next = _of_column(scale, groups, follows, rows, row, inside)
                if ZERO:
                    z = z_next
                    z_next = _of_column(zero, groups, follows, rows, row, inside)
            if RUN > 0:
                if i % RUN == 0:
                    ratio = w / pivots[:, None]
                    cost = ratio * ratio
                    rank = tl.zeros([BLOCK, TILE], tl.int32)
                    for o in range(i, i + RUN):
                        other = tl.sum(tl.where((column == o)[:, None], cost, 0.0), 0)[None, :]
                        rank += ((other < cost) | ((other == cost) & (o < column)[:, None])).to(tl.int32)
                    kept = (rank >= drop).to(tl.int32)
            value = tl.sum(tl.where(here[:, None], w, 0.0), 0)
            code = value
            if KIND > 0:
                code = tl.math.div_rn(value, s)
                if KIND == 1:
                    if ZERO:
                        code += z
                    code = _nearest(tl.minimum(tl.maximum(code, low), high))
                else:
                    code = tl.minimum(tl.maximum(code, low), high)
                    size = tl.abs(code)
                    step = tl.where(size < 2.0, 0.5, tl.where(size < 4.0, 1.0, 2.0))
                    code = _nearest(code / step) * step
            if KEEP or RUN > 0:
                if KEEP:
                    stays = tl.load(keep + (first + i) * rows + row, mask=inside, other=1) != 0
                else:
                    stays = tl.sum(tl.where(here[:, None], kept, 0), 0) != 0
                if KIND > 0 and ZERO:
                    code = tl.where(stays, code, z)
                else:
                    code = tl.where(stays, code, 0.0)
            result = code
            if KIND > 0:
                if ZERO:
                    result = (code - z) * s
                else:
                    result = code * s
            pivot = tl.sum(tl.where(here, pivots, 0.0), 0)
            off = (value - result) * tl.math.div_rn(1.0, pivot)
            tl.store(codes + (first + i) * rows + row, code, mask=inside)
            tl.store(errors + (first + i) * rows + row, off, mask=inside)
            w -= tl.where(column > i, u, 0.0)[:, None] * off[None, :]
        tl.debug_barrier()  # the errors are read again, by other threads of this program
