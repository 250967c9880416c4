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
def round_columns(
    work, work_stride, codes, errors, upper, down, right, scale, zero, group, keep, columns, rows, low, high, drop,
    KIND: tl.constexpr, ZERO: tl.constexpr, KEEP: tl.constexpr, RUN: tl.constexpr, BLOCK: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Round `columns` columns, each `rows` long, of which a program takes TILE. Rows of the pointers are columns of the matrix."""
    row = tl.program_id(0) * TILE + tl.arange(0, TILE)
    column = tl.arange(0, BLOCK)
    inside = row < rows
    w = tl.load(
        work + column[:, None] * work_stride + row[None, :],
        mask=(column[:, None] < columns) & inside[None, :], other=0.0,
    )  # fmt: skip
    pivots = tl.load(upper + column * (down + right), mask=column < columns, other=1.0)
    kept = tl.full([BLOCK, TILE], 1, tl.int32)
    for i in range(columns):
        here = column == i
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
        result = value
        if KIND > 0:
            g = tl.load(group + i)
            s = tl.load(scale + g * rows + row, mask=inside, other=1.0)
            code = tl.math.div_rn(value, s)
            if KIND == 1:
                if ZERO:
                    z = tl.load(zero + g * rows + row, mask=inside, other=0.0)
                    code += z
                code = _nearest(tl.minimum(tl.maximum(code, low), high))
            else:
                code = tl.minimum(tl.maximum(code, low), high)
                size = tl.abs(code)
                step = tl.where(size < 2.0, 0.5, tl.where(size < 4.0, 1.0, 2.0))
                code = _nearest(code / step) * step
        else:
            code = value
        if KEEP or RUN > 0:
            if KEEP:
                stays = tl.load(keep + i * rows + row, mask=inside, other=1) != 0
            else:
                stays = tl.sum(tl.where(here[:, None], kept, 0), 0) != 0
            if KIND > 0 and ZERO:
                code = tl.where(stays, code, z)
            else:
                code = tl.where(stays, code, 0.0)
        if KIND > 0:
            if ZERO:
                result = (code - z) * s
            else:
                result = code * s
        else:
            result = code
        pivot = tl.sum(tl.where(here, pivots, 0.0), 0)
        error = (value - result) * tl.math.div_rn(1.0, pivot)
        tl.store(codes + i * rows + row, code, mask=inside)
        tl.store(errors + i * rows + row, error, mask=inside)
        u = tl.load(upper + i * down + column * right, mask=(column > i) & (column < columns), other=0.0)
        w -= u[:, None] * error[None, :]
