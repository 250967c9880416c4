"""GPTQ as a card runs it: blocks of columns in one call. What the kernel itself computes is held to the processor's loop where Triton is
installed; its interpreter runs it on the processor.
"""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest
import torch

from passes.algorithms import gptq as loop
from passes.algorithms.gptq import GptqOptions, gptq, sparse
from passes.algorithms.kernels import columns
from passes.algorithms.kernels.columns import BlockLevels, BlockZeros
from passes.algorithms.scale_search import Levels, ScaleSearch, decode_codes, round_codes
from passes.algorithms.sparsity import Mask
from passes.formats.format import Grid, Quantized

ROWS, COLUMNS = 40, 288
TWO_OF_FOUR, HALF, WANDA = Mask("sparsegpt", 0.5, 4), Mask("sparsegpt", 0.5), Mask("wanda", 0.5)
CASES = {
    "static": (Grid(4, 96), "static", None),
    "zero points": (Grid(4, 96, False), "static", None),
    "levels as groups come": (Grid(4, 96), "group", None),
    "small groups as they come": (Grid(4, 16), "group", None),
    "act order": (Grid(4, 96), "full", None),
    "rows": (Grid(8, -1), "static", None),
    "floats": (Grid(4, 16, True, "e2m1"), "static", None),
    "2:4": (Grid(4, 96), "static", TWO_OF_FOUR),
    "2:4 with zero points": (Grid(4, 96, False), "static", TWO_OF_FOUR),
    "zeros anywhere": (Grid(4, 96), "static", HALF),
    "zeros known before": (Grid(4, 96), "static", WANDA),
}


def in_plain_steps(
    work: torch.Tensor, upper: torch.Tensor, levels: BlockLevels, zeros: BlockZeros
) -> tuple[torch.Tensor, torch.Tensor]:
    """What `round_block` promises, a column at a time."""
    block, codes, errors = work.clone(), torch.empty_like(work), torch.empty_like(work)
    pivots = upper.diagonal()
    keep = torch.ones_like(work, dtype=torch.bool) if zeros.keep is None else zeros.keep
    for i in range(len(block)):
        if zeros.run and i % zeros.run == 0:
            run = slice(i, i + zeros.run)
            cost = (block[run] / pivots[run, None]).square()
            keep[run] = cost.argsort(dim=0, stable=True).argsort(dim=0) >= zeros.drop
        value = code = block[i]
        at = None
        if levels.scale is not None and levels.group is not None:
            group = int(levels.group[i])
            at = Levels(levels.scale[group], None if levels.zero is None else levels.zero[group])
            bits = 8 if levels.high - levels.low > 15 else 4
            code = round_codes(value, at, Grid(bits, -1, levels.low < 0, levels.kind))
        code = code.where(keep[i], at.zero if at is not None and at.zero is not None else torch.zeros(()))
        result = code if at is None else decode_codes(code, at)
        codes[i], errors[i] = code, (value - result) / pivots[i]
        block[i + 1 :] -= upper[i, i + 1 :, None] * errors[i]
    return codes, errors


def problem() -> tuple[torch.Tensor, torch.Tensor]:
    """Weights `[N, K]` and the Hessian of correlated inputs."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.eye(COLUMNS) + 0.3 * torch.randn(COLUMNS, COLUMNS, generator=generator)
    inputs = torch.randn(512, COLUMNS, generator=generator) @ mixing
    return torch.randn(ROWS, COLUMNS, generator=generator), inputs.T @ inputs


def quantized(case: str) -> tuple[Quantized, float]:
    grid, order, mask = CASES[case]
    weight, hessian = problem()
    options = GptqOptions(order, 0.01, ScaleSearch(20, 0.7))
    return gptq(weight, hessian, grid, torch.float16, options, "w", mask)


def as_on_a_card(monkeypatch: pytest.MonkeyPatch, kernel: bool) -> None:
    monkeypatch.setattr(columns, "usable", lambda work: True)
    if not kernel:
        monkeypatch.setattr(columns, "round_block", in_plain_steps)


#: The kernel under Triton's interpreter where that is installed, a plain loop in its place everywhere.
KERNELS = [False, pytest.param(True, marks=pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton"))]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("case", CASES)
def test_blocks_give_the_codes_of_the_loop(case: str, kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "TRITON_INTERPRET", "1")
    expected, loss = quantized(case)
    as_on_a_card(monkeypatch, kernel)
    found, found_loss = quantized(case)
    assert (found.codes == expected.codes).float().mean() > 0.999
    assert found_loss == pytest.approx(loss, rel=1e-3)
    torch.testing.assert_close(found.scale, expected.scale)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("mask", [TWO_OF_FOUR, HALF])
def test_blocks_make_up_for_zeros_alone(mask: Mask, kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "TRITON_INTERPRET", "1")
    weight, hessian = problem()
    expected, loss = sparse(weight, hessian, GptqOptions(), "w", mask)
    as_on_a_card(monkeypatch, kernel)
    found, found_loss = sparse(weight, hessian, GptqOptions(), "w", mask)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert found_loss == pytest.approx(loss, rel=1e-4)


def test_zeros_chosen_on_what_is_left_end_a_launch() -> None:
    weight, hessian = problem()
    factor = loop.factorize(hessian, 0.01, torch.arange(COLUMNS), "w")
    steps = {
        mask: loop._card_steps(128, loop._prepared(weight, hessian, factor, mask)[1])
        for mask in (None, TWO_OF_FOUR, HALF, WANDA)
    }
    assert steps == {None: (128, 128), TWO_OF_FOUR: (128, 128), HALF: (128, 32), WANDA: (128, 128)}
