"""EXL2's adaptive quantizer: mixed-width groups of rows, a searched scale per group, rounding with error feedback.

Follows what ExLlamaV2 0.3.2 does (`conversion/adaptivegptq.py`; GPTQ, Frantar et al. 2022, for the feedback), so that quality
is the same at the same parameter set. Two things are done differently because they cost less on a CPU and change nothing:

* Columns are independent, so several layouts (parameter sets) of one matrix are quantized in ONE pass over the rows, stacked
  along the columns: the sensitivity measurement shares Hessian, permutation, factor and every Python step.
* The scale multiplier is searched on the same 97-point grid coarse to fine, and from where the group before it ended
  (`tests/walk/test_exl2.py` holds it to the full scan).

On a card the loop is bound by launches and by what is asked back from it, not by arithmetic:
`passes.algorithms.kernels.exl2_triton` does the same work in few launches, with the full scan.

Orientation: rows are inputs (`[K, N]`, K permuted by descending diag(H)), as the format stores them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from passes.algorithms.kernels.columns import usable
from passes.algorithms.threads import side_by_side
from passes.errors import TightfitError
from passes.record import dataclass

if TYPE_CHECKING:
    import torch

#: Of a group, its scale, bits and multipliers: the loss at each multiplier.
Losses = Callable[["torch.Tensor", "torch.Tensor", int, Sequence[float]], list[float]]
#: (bits, rows) of each group in stored order; widths descend, rows are multiples of 32 that sum to K.
Groups = Sequence[tuple[int, int]]
#: A weight `[N, K]`, any float dtype, and the layout to quantize it with.
Part = tuple["torch.Tensor", Groups]

#: Every group of every layout starts at a multiple of this many rows (EXL2's packing unit).
ROWS = 32
#: ExLlamaV2's damping, much more than GPTQ's usual 0.01: share of the mean diagonal, and its floor.
DAMPING, DAMPING_FLOOR = 0.12, 1e-5
_TRIES = 10
#: The least `scale_max` whose unit, fp16(scale_max / 256), is not 0: below it a reader would see nothing but zeros.
LEAST_TOP = 256 * 2.0**-24
#: The multipliers of a group's scale that are tried.
GRID = tuple(0.70 + 0.50 * step / 96 for step in range(97))
_COARSE = 8
#: Elements of one search buffer: its temporaries stay in cache, and the calls cost little beside the work.
_SEARCH_ELEMENTS = 1 << 17


@dataclass(frozen=True)
class Exl2Codes:
    """One quantized matrix, K rows in stored order, N columns, G groups.

    `codes` uint8 `[K, N]` (0 … 2^bits − 1, zero point 2^(bits−1)); `scale_index` uint8 `[G, N]`, 1 … 16 (stored minus 1);
    `scale_max` fp16 `[G]`; `permutation` int64 `[K]`: original row stored at each position; `groups` as given.
    """

    codes: torch.Tensor
    scale_index: torch.Tensor
    scale_max: torch.Tensor
    permutation: torch.Tensor
    groups: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Factor:
    """What a Hessian contributes, shared by all matrices that read the same input and by all layouts."""

    permutation: torch.Tensor
    inverse: torch.Tensor
    """Upper Cholesky factor of the damped, permuted H⁻¹, fp32 `[K, K]`."""


def factorize(hessian: torch.Tensor, where: str) -> Factor:
    """Order the inputs by importance and factor H⁻¹.

    Args:
        hessian: `[K, K]` fp32, Σ x xᵀ at any scale.
        where: the matrix's name, for messages.

    Raises:
        TightfitError: H stays indefinite after ten rounds of damping (its inputs are degenerate).
    """
    import torch

    diagonal = hessian.diagonal()
    perm = torch.argsort(diagonal, descending=True, stable=True)
    damped = hessian[perm][:, perm].contiguous()
    damp = max(DAMPING * float(diagonal.mean()), DAMPING_FLOOR)
    for _ in range(_TRIES):
        damped.diagonal().add_(damp)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not failed:
            upper, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not failed and bool(torch.isfinite(upper).all()):
                return Factor(perm, upper)
    raise TightfitError(
        f"the Hessian of {where} is not positive definite, even with {_TRIES} times the damping",
        remedy="use more or more varied calibration text",
    )


def quantize_parts(parts: Sequence[Part], factor: Factor) -> Iterator[tuple[Exl2Codes, torch.Tensor]]:
    """Quantize matrices that read one input, each with a layout; parts of one matrix follow each other.

    On a card with Triton they are worked on together (`passes.algorithms.kernels.exl2_triton`), else one matrix after the other. Yields, in
    order, what `quantize` returns of a part; who has no need of the ones before lets them go.
    """
    if usable(factor.inverse):
        from passes.algorithms.kernels import exl2_triton

        yield from exl2_triton.quantize_parts(parts, factor)
        return
    for _, group in groupby(parts, key=lambda part: id(part[0])):
        same = list(group)
        yield from quantize(same[0][0], factor, [groups for _, groups in same])


def quantize(weight: torch.Tensor, factor: Factor, layouts: Sequence[Groups]) -> list[tuple[Exl2Codes, torch.Tensor]]:
    """Quantize one matrix with each of several layouts, in one pass over its rows.

    Args:
        weight: `[N, K]`, Hugging Face's orientation, any float dtype.
        factor: of the matrix's inputs.
        layouts: the parameter sets; each result is independent of the others.

    Returns:
        For each layout its codes and the decoded weight `[N, K]`, fp32 holding the fp16 values a reader computes.
    """
    import torch

    perm = factor.permutation
    source = weight.float().T[perm].contiguous()
    rows, columns = source.shape
    count = len(layouts)
    work = source.repeat(1, count) if count > 1 else source
    codes = torch.empty(rows, columns * count, dtype=torch.uint8, device=weight.device)
    decoded = torch.empty_like(work)
    matrix = _Rows(work, codes, decoded, factor.inverse)
    half = torch.empty(columns * count, device=weight.device)
    begins = [starts(groups) for groups in layouts]
    scale_index: list[list[torch.Tensor]] = [[] for _ in layouts]
    scale_max: list[list[torch.Tensor]] = [[] for _ in layouts]
    current = torch.empty(columns * count, device=weight.device)
    found: list[Found | None] = [None] * count

    for first in range(0, rows, ROWS):
        begun = [(slot, *by_row[first]) for slot, by_row in enumerate(begins) if first in by_row]
        ahead = [
            (work[first : first + length, _span(slot, columns)], bits, found[slot]) for slot, bits, length in begun
        ]
        for (slot, bits, _), scale in zip(begun, _scales(ahead), strict=True):
            found[slot] = scale
            scale_index[slot].append(scale.index)
            scale_max[slot].append(scale.top)
            current[_span(slot, columns)] = working_scale(scale.index, scale.top)
            half[_span(slot, columns)] = float(1 << (bits - 1))
        last = min(first + ROWS, rows)
        matrix.round(first, last, current, half)
    back = torch.argsort(perm)
    results = []
    for slot, groups in enumerate(layouts):
        span = _span(slot, columns)
        stored = Exl2Codes(
            codes[:, span].contiguous(), torch.stack(scale_index[slot]), torch.stack(scale_max[slot]), perm,
            tuple((bits, length) for bits, length in groups),
        )  # fmt: skip
        results.append((stored, decoded[:, span][back].T.contiguous()))
    return results


def _span(slot: int, columns: int) -> slice:
    """The columns of a layout."""
    return slice(slot * columns, (slot + 1) * columns)


def _scales(groups: Sequence[tuple[torch.Tensor, int, Found | None]]) -> list[Found]:
    """The searched scale of each (group, bits, the one before it). On a processor groups are searched side by side, a lone one's
    multipliers are.
    """
    if not groups or groups[0][0].device.type != "cpu":
        return [search_scale(*group) for group in groups]
    if len(groups) == 1:
        return [search_scale(*groups[0], _losses_side_by_side)]
    return side_by_side(lambda group: search_scale(*group), groups)


def starts(groups: Groups) -> dict[int, tuple[int, int]]:
    """Return each group's (bits, rows) by its first row."""
    found, row = {}, 0
    for bits, length in groups:
        found[row] = (bits, length)
        row += length
    return found


@dataclass(frozen=True)
class _Rows:
    """Weights `[K, columns of all layouts]` on their way to codes, under the factor of H⁻¹ `[K, K]`."""

    work: torch.Tensor
    codes: torch.Tensor
    decoded: torch.Tensor
    inverse: torch.Tensor

    def round(self, first: int, last: int, scale: torch.Tensor, half: torch.Tensor) -> None:
        """Round rows first … last − 1 one after another, spreading each row's error over all later rows (GPTQ, alg. 1)."""
        import torch

        block = self.work[first:last]
        factor = self.inverse[first:last, first:last]
        errors = torch.empty_like(block)
        step = torch.where(scale > 0, 1 / scale, torch.zeros_like(scale))
        low, high = -half, half - 1
        for row in range(last - first):
            q = torch.clamp(torch.round(block[row] * step), low, high)
            # fp16(q · scale) is what the reader computes; q and scale are exact in fp32.
            value = (q * scale).half().float()
            self.codes[first + row] = (q + half).to(torch.uint8)
            self.decoded[first + row] = value
            error = (block[row] - value) / factor[row, row]
            errors[row] = error
            if row + 1 < last - first:
                block[row + 1 :].addr_(factor[row, row + 1 :], error, alpha=-1)
        if last < len(self.work):
            self.work[last:].addmm_(self.inverse[first:last, last:].T, errors, alpha=-1)


@dataclass(frozen=True)
class Found:
    """The scale of one group: indices `[N]` (uint8, 1 … 16), the fp16 `scale_max`, and which step of the grid it took at how many bits."""

    index: torch.Tensor
    top: torch.Tensor
    step: int
    bits: int


def search_scale(group: torch.Tensor, bits: int, before: Found | None = None, losses_of: Losses | None = None) -> Found:
    """Return the scale of one group `[rows, N]`; `before`: that of the group before it in the same layout.

    A column's index follows from its largest weight; one multiplier for the whole group is searched over 97 values from 0.70
    to 1.20, minimising Σ|error|^3.5, which favours large weights over the mean square.
    """
    import torch

    levels = float((1 << bits) - 1) / 2
    base = (group.abs().amax(0) + 1e-12) / levels
    top = base.max().clamp(min=LEAST_TOP)
    index = torch.clamp(torch.round(16 * torch.sqrt(base / top)), 1, 16)
    scale = (index / 16) ** 2 * top
    losses: dict[int, float] = {}
    look = losses_of or _losses

    def evaluate(steps: Sequence[int]) -> int:
        fresh = [step for step in steps if 0 <= step < len(GRID) and step not in losses]
        losses.update(zip(fresh, look(group, scale, bits, [GRID[step] for step in fresh]), strict=True))
        return min(losses, key=lambda step: (losses[step], step))

    if before is None or before.bits != bits:
        best = evaluate(range(0, len(GRID), _COARSE))
    else:
        best, last = evaluate((round(before.step / _COARSE) * _COARSE,)), -1
        while best != last:
            best, last = evaluate((best - _COARSE, best + _COARSE)), best
    best = evaluate((best - _COARSE // 2, best + _COARSE // 2))
    best = evaluate(range(best - _COARSE // 2 + 1, best + _COARSE // 2))
    return Found(index.to(torch.uint8), (top * GRID[best]).clamp(min=LEAST_TOP).half(), best, bits)


def working_scale(index: torch.Tensor, scale_max: torch.Tensor) -> torch.Tensor:
    """Return the scale exactly as a reader computes it: fp16(index² · fp16(scale_max / 256)), returned in fp32."""
    unit = (scale_max.float() / 256).half().float()
    return (index.float() ** 2 * unit).half().float()


def _losses_side_by_side(group: torch.Tensor, scale: torch.Tensor, bits: int, factors: Sequence[float]) -> list[float]:
    """The same, a share of the multipliers on each thread."""
    import torch

    count = torch.get_num_threads()
    shares = side_by_side(lambda share: _losses(group, scale, bits, share), [factors[n::count] for n in range(count)])
    return [shares[n % count][n // count] for n in range(len(factors))]


def _losses(group: torch.Tensor, scale: torch.Tensor, bits: int, factors: Sequence[float]) -> list[float]:
    """Σ|clamp(round(w / (s·p)))·s·p − w|^3.5 for each multiplier p, chunk by chunk in cache. |e|^3.5 = e²·|e|·√|e|."""
    import torch

    low, high = -float(1 << (bits - 1)), float((1 << (bits - 1)) - 1)
    x = group / scale
    weight = scale**3.5
    totals = [0.0] * len(factors)
    chunk = max(1, _SEARCH_ELEMENTS // group.shape[1])
    for start in range(0, group.shape[0], chunk):
        part = x[start : start + chunk]
        e, root = torch.empty_like(part), torch.empty_like(part)
        for number, p in enumerate(factors):
            torch.mul(part, 1 / p, out=e)
            e.round_().clamp_(low, high).mul_(p).sub_(part).abs_()
            torch.sqrt(e, out=root)
            root.mul_(e)
            e.square_().mul_(root)
            totals[number] += float(e.sum(0) @ weight)
    return totals
