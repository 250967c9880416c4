"""EXL2's quantizer on a card: Triton kernels, and the loop over rows that calls them. Imported only where both are there.

What is quantized together (layouts of a matrix, matrices that read one input) stands side by side along the columns of one work matrix
`[K, N]`, a part each. Rows are taken 32 at a time, every group starting at a multiple of that:

    peaks    of each part where a group begins, every column's scale as its largest weight asks for it
    losses   Σ|error|^3.5 at all 97 multipliers of the group's scale, by tile of columns
    choose   the multiplier, and with it the scales as a reader computes them
    round    the 32 rows one after another, each one's error spread over the rows after it (GPTQ, alg. 1)

Then two products spread the errors over the rows further on: at once over those that a group may look at soon, once every 256 rows over
the rest. Nothing is asked back from the card before the end, and no sum depends on the order in which programs run.

A kernel takes few parameters, so what belongs together stands in one tensor:

    table    int32 `[parts, 4]`: first column, columns, 2^(bits − 1), rows of the group that begins here (0: none does)
    columns  fp32 `[3, N]`: scale asked for, scale, 2^(bits − 1)
    partial  fp32 `[parts, tiles, 128]`: the losses, and last the largest scale asked for
    factors  fp32 `[2, 128]`: the multipliers, their reciprocals
    found    fp16 `[N + parts]`: scale indices (1 … 16), then each part's `scale_max`
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

import torch
import triton
import triton.language as tl

from passes.algorithms.exl2 import GRID, LEAST_TOP, ROWS, Exl2Codes, Factor, Part, starts
from passes.blocks.devices import free_bytes, memory_bytes

#: Rows after which errors are spread over all that follow.
_SPAN = 256
#: One part in so many of the free memory is for the work matrix and the codes.
_SHARE = 2
#: Bytes of an entry of the work matrix, its code and its share of the scale indices.
_ENTRY_BYTES = 5.1
_WARPS = 4

_TILE = tl.constexpr(128)
_STEP_ROWS = tl.constexpr(ROWS)
_ROWS_AT_ONCE = tl.constexpr(16)
_MULTIPLIERS = tl.constexpr(len(GRID))
_MULTIPLIERS_AT_ONCE = tl.constexpr(8)
_SLOTS = tl.constexpr(128)
_LEAST_TOP = tl.constexpr(LEAST_TOP)
#: Adding and taking it away rounds what is below 2²² to the nearest integer, half to even.
_ROUNDER = tl.constexpr(1.5 * 2.0**23)


@triton.jit
def _rounded(x: tl.tensor) -> tl.tensor:
    return (x + _ROUNDER) - _ROUNDER


@triton.jit
def _index(asked: tl.tensor, top: tl.tensor) -> tl.tensor:
    """The scale index, 1 … 16, of the scale that a column asks for."""
    return _rounded(tl.minimum(tl.maximum(16.0 * tl.sqrt_rn(tl.div_rn(asked, top)), 1.0), 16.0))


@triton.jit
def _top(partial: tl.tensor, part: tl.tensor, tiles: tl.tensor) -> tl.tensor:
    """The largest scale that a part's columns ask for."""
    top = 0.0
    for start in range(0, tiles, _SLOTS):
        tile = start + tl.arange(0, _SLOTS)
        peaks = tl.load(partial + (part * tiles + tile) * _SLOTS + _SLOTS - 1, mask=tile < tiles, other=0.0)
        top = tl.maximum(top, tl.max(peaks))
    return tl.maximum(top, _LEAST_TOP)


@triton.jit
def _peaks(work: tl.tensor, table: tl.tensor, columns: tl.tensor, partial: tl.tensor, stride: tl.tensor) -> None:
    """Grid: parts, tiles. `work`: from the step's first row on."""
    part, tile, tiles = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    first, width = tl.load(table + 4 * part), tl.load(table + 4 * part + 1)
    half, rows = tl.load(table + 4 * part + 2).to(tl.float32), tl.load(table + 4 * part + 3)
    place = tile * _TILE + tl.arange(0, _TILE)
    inside = place < width
    if rows > 0:
        peak = tl.zeros([_TILE], tl.float32)
        for start in range(0, rows, _ROWS_AT_ONCE):
            row = start + tl.arange(0, _ROWS_AT_ONCE)
            at = work + row[:, None] * stride + (first + place)[None, :]
            peak = tl.maximum(peak, tl.max(tl.abs(tl.load(at, mask=inside[None, :], other=0.0)), axis=0))
        asked = tl.div_rn(peak + 1e-12, half - 0.5)
        tl.store(columns + first + place, asked, mask=inside)
        tl.store(partial + (part * tiles + tile) * _SLOTS + _SLOTS - 1, tl.max(tl.where(inside, asked, 0.0)))


@triton.jit
def _losses(
    work: tl.tensor, table: tl.tensor, columns: tl.tensor, partial: tl.tensor, factors: tl.tensor, stride: tl.tensor
) -> None:
    """Grid: parts, tiles, multipliers by eights. Weights are in units of their column's scale: x, rounded at multiplier p."""
    part, tile, tiles = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    first, width = tl.load(table + 4 * part), tl.load(table + 4 * part + 1)
    half, rows = tl.load(table + 4 * part + 2).to(tl.float32), tl.load(table + 4 * part + 3)
    place = tile * _TILE + tl.arange(0, _TILE)
    inside = place < width
    if rows > 0:
        top = _top(partial, part, tiles)
        portion = _index(tl.load(columns + first + place, mask=inside, other=0.0), top) * 0.0625
        scale = portion * portion * top
        number = tl.program_id(2) * _MULTIPLIERS_AT_ONCE + tl.arange(0, _MULTIPLIERS_AT_ONCE)
        p, inverse = tl.load(factors + number)[:, None], tl.load(factors + _SLOTS + number)[:, None]
        total = tl.zeros([_MULTIPLIERS_AT_ONCE, _TILE], tl.float32)
        for row in range(rows):
            x = (tl.load(work + row * stride + first + place, mask=inside, other=0.0) / scale)[None, :]
            error = tl.abs(_rounded(tl.minimum(tl.maximum(x * inverse, -half), half - 1.0)) * p - x)
            total += error * error * error * tl.sqrt(error)
        weight = scale * scale * scale * tl.sqrt(scale)
        loss = tl.sum(tl.where(inside[None, :], total * weight[None, :], 0.0), axis=1)
        tl.store(partial + (part * tiles + tile) * _SLOTS + number, loss, mask=number < _MULTIPLIERS)


@triton.jit
def _choose(
    table: tl.tensor, columns: tl.tensor, partial: tl.tensor, factors: tl.tensor, found: tl.tensor, stride: tl.tensor
) -> None:
    """Grid: parts, tiles. The first of the multipliers with the least loss; every program of a part adds up the same sums."""
    part, tile, tiles = tl.program_id(0), tl.program_id(1), tl.num_programs(1)
    first, width = tl.load(table + 4 * part), tl.load(table + 4 * part + 1)
    half, rows = tl.load(table + 4 * part + 2).to(tl.float32), tl.load(table + 4 * part + 3)
    place = tile * _TILE + tl.arange(0, _TILE)
    inside = place < width
    if rows > 0:
        number = tl.arange(0, _SLOTS)
        loss = tl.zeros([_SLOTS], tl.float32)
        for start in range(0, tiles, _ROWS_AT_ONCE):
            each = start + tl.arange(0, _ROWS_AT_ONCE)
            held = (each < tiles)[:, None] & (number < _MULTIPLIERS)[None, :]
            at = partial + (part * tiles + each)[:, None] * _SLOTS + number[None, :]
            loss += tl.sum(tl.load(at, mask=held, other=0.0), axis=0)
        best = tl.argmin(tl.where(number < _MULTIPLIERS, loss, float("inf")), axis=0)
        top = _top(partial, part, tiles)
        stored = tl.maximum(top * tl.load(factors + best), _LEAST_TOP).to(tl.float16)
        unit = (stored.to(tl.float32) * 0.00390625).to(tl.float16).to(tl.float32)
        index = _index(tl.load(columns + first + place, mask=inside, other=0.0), top)
        scale = (index * index * unit).to(tl.float16).to(tl.float32)
        tl.store(columns + stride + first + place, scale, mask=inside)
        tl.store(columns + 2 * stride + first + place, tl.zeros([_TILE], tl.float32) + half, mask=inside)
        tl.store(found + first + place, index.to(tl.float16), mask=inside)
        tl.store(found + stride + part, stored, mask=tile == 0)


@triton.jit
def _round(
    work: tl.tensor, codes: tl.tensor, errors: tl.tensor, upper: tl.tensor, columns: tl.tensor, stride: tl.tensor
) -> None:
    """Grid: tiles of all columns. Round 32 rows of `work` in place to what a reader decodes; `upper`: their block of the factor.

    A row takes up the errors of the rows before it when its turn comes. Those were written by this program alone, and the barrier
    makes them seen by all of its threads.
    """
    place = tl.program_id(0) * _TILE + tl.arange(0, _TILE)
    inside = place < stride
    scale = tl.load(columns + stride + place, mask=inside, other=0.0)
    half = tl.load(columns + 2 * stride + place, mask=inside, other=1.0)
    step = tl.where(scale > 0.0, tl.div_rn(1.0, tl.where(scale > 0.0, scale, 1.0)), 0.0)
    for row in range(_STEP_ROWS):
        weight = tl.load(work + row * stride + place, mask=inside, other=0.0)
        for before in range(row):
            error = tl.load(errors + before * stride + place, mask=inside, other=0.0)
            weight -= tl.load(upper + before * _STEP_ROWS + row) * error
        code = _rounded(tl.minimum(tl.maximum(weight * step, -half), half - 1.0))
        value = (code * scale).to(tl.float16).to(tl.float32)
        tl.store(work + row * stride + place, value, mask=inside)
        tl.store(codes + row * stride + place, (code + half).to(tl.uint8), mask=inside)
        pivot = tl.load(upper + row * _STEP_ROWS + row)
        tl.store(errors + row * stride + place, tl.div_rn(weight - value, pivot), mask=inside)
        tl.debug_barrier()


def quantize_parts(parts: Sequence[Part], factor: Factor) -> Iterator[tuple[Exl2Codes, torch.Tensor]]:
    """Quantize (weight `[N, K]`, layout) parts that share a factor, as many together as half of the card's free memory holds.

    Yields, in order, each part's codes and its decoded weight `[N, K]`, fp32 holding the fp16 values a reader computes.
    """
    start = 0
    while start < len(parts):
        count = fitting(parts[start:], _room(factor.inverse.device))
        yield from _quantized(parts[start : start + count], factor)
        start += count


def fitting(parts: Sequence[Part], room: int) -> int:
    """Return how many of the parts, from the first one on, are quantized together with so many bytes free; at least one."""
    taken = accumulate(weight.numel() * _ENTRY_BYTES for weight, _ in parts)
    return max(1, sum(total <= room / _SHARE for total in taken))


def _room(device: torch.device) -> int:
    """What is free on a card; outside one (Triton's interpreter) all there is."""
    return free_bytes(device) if device.type == "cuda" else memory_bytes(device)


def _quantized(parts: Sequence[Part], factor: Factor) -> Iterator[tuple[Exl2Codes, torch.Tensor]]:
    """Quantize parts together; each result is cut out of the whole when it is asked for."""
    perm = factor.permutation
    edges = [0, *accumulate(len(weight) for weight, _ in parts)]
    spans = [slice(*edge) for edge in pairwise(edges)]
    work = torch.empty(len(perm), edges[-1], device=perm.device)
    before = None
    for (weight, _), span in zip(parts, spans, strict=True):
        work[:, span] = weight.T[perm] if before is None or before[0] is not weight else work[:, before[1]]
        before = weight, span
    with torch.cuda.device_of(work):  # type: ignore[no-untyped-call]
        codes, found = _rows(work, [starts(groups) for _, groups in parts], spans, factor.inverse)
    back = torch.argsort(perm)
    for number, ((_, groups), span) in enumerate(zip(parts, spans, strict=True)):
        begins = torch.tensor([row // ROWS for row in starts(groups)], device=perm.device)
        stored = Exl2Codes(
            codes[:, span].contiguous(), found[begins, span].to(torch.uint8), found[begins, edges[-1] + number], perm,
            tuple((bits, length) for bits, length in groups),
        )  # fmt: skip
        yield stored, torch.index_select(work[:, span].T, 1, back)


def _rows(
    work: torch.Tensor, begun: Sequence[dict[int, tuple[int, int]]], spans: Sequence[slice], inverse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Round all rows of `work` in place to what a reader decodes. Returns the codes `[K, N]` and `found` of each step."""
    rows, stride = work.shape
    steps, device = rows // ROWS, work.device
    codes = torch.empty(rows, stride, dtype=torch.uint8, device=device)
    errors = torch.empty(min(_SPAN, rows), stride, device=device)
    found = torch.zeros(steps, stride + len(spans), dtype=torch.float16, device=device)
    table = torch.tensor([_table(spans, begun, step * ROWS) for step in range(steps)], dtype=torch.int32).to(device)
    search = _Search(work, spans)
    # The blocks of the factor on its diagonal, `[steps, 32, 32]`.
    upper = inverse.reshape(steps, ROWS, steps, ROWS).diagonal(dim1=0, dim2=2).permute(2, 0, 1).contiguous()
    longest = max(length for each in begun for _, length in each.values())
    for first in range(0, rows, _SPAN):
        end = min(first + _SPAN, rows)
        near = min(end - ROWS + longest, rows)
        for at in range(first, end, ROWS):
            step, after = at // ROWS, at + ROWS
            if any(at in each for each in begun):
                search(work[at:], table[step], found[step])
            spread = errors[at - first : after - first]
            _round[(triton.cdiv(stride, _TILE.value),)](
                work[at:], codes[at:], spread, upper[step], search.columns, stride, num_warps=_WARPS, num_stages=1
            )
            if after < near:
                work[after:near].addmm_(inverse[at:after, after:near].T, spread, alpha=-1)
        if near < rows:
            work[near:].addmm_(inverse[first:end, near:].T, errors[: end - first], alpha=-1)
    return codes, found


def _table(
    spans: Sequence[slice], begun: Sequence[dict[int, tuple[int, int]]], row: int
) -> list[tuple[int, int, int, int]]:
    """What `table` says of the step at a row."""
    out = []
    for span, each in zip(spans, begun, strict=True):
        bits, length = each.get(row, (1, 0))
        out.append((span.start, span.stop - span.start, 1 << (bits - 1), length))
    return out


class _Search:
    """The scales of the groups that begin at a step, all parts at once; `columns` is what rounding takes from it."""

    def __init__(self, work: torch.Tensor, spans: Sequence[slice]) -> None:
        self._stride = work.shape[1]
        self.columns = torch.zeros(3, self._stride, device=work.device)
        self._grid = len(spans), triton.cdiv(max(span.stop - span.start for span in spans), _TILE.value)
        self._partial = torch.zeros(*self._grid, _SLOTS.value, device=work.device)
        padded = [*GRID, *[1.0] * (_SLOTS.value - len(GRID))]
        self._factors = torch.tensor([padded, [1 / p for p in padded]], device=work.device)

    def __call__(self, ahead: torch.Tensor, table: torch.Tensor, found: torch.Tensor) -> None:
        """Find them on `ahead`, the work matrix from the step's first row on."""
        how: dict[str, int] = {"num_warps": _WARPS, "num_stages": 1}
        columns, partial, factors, stride = self.columns, self._partial, self._factors, self._stride
        eights = triton.cdiv(len(GRID), _MULTIPLIERS_AT_ONCE.value)
        _peaks[self._grid](ahead, table, columns, partial, stride, **how)
        _losses[(*self._grid, eights)](ahead, table, columns, partial, factors, stride, **how)
        _choose[self._grid](table, columns, partial, factors, found, stride, **how)
