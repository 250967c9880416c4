"""GPTQ as a card runs it: blocks of columns in one call; the kernel itself in Triton's interpreter, in the engine's environment."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from passes.algorithms import column_loop as loop
from passes.algorithms.inverse_factor import factorize
from passes.algorithms.kernels import columns
from passes.algorithms.kernels.columns import BlockLevels, BlockZeros
from passes.algorithms.scale_search import Levels, decode_codes, round_codes
from passes.algorithms.sparsity import Mask
from passes.formats.format import Grid
from tests.walk.columns_interpreted import CASES, COLUMNS, HALF, TWO_OF_FOUR, WANDA, problem, quantized, zeros_alone
from tests.walk.triton_python import run_triton


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


@pytest.mark.parametrize("case", CASES)
def test_blocks_give_the_codes_of_the_loop(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, loss = quantized(case)
    monkeypatch.setattr(columns, "usable", lambda work: True)
    monkeypatch.setattr(columns, "round_block", in_plain_steps)
    found, found_loss = quantized(case)
    assert (found.codes == expected.codes).float().mean() > 0.999
    assert found_loss == pytest.approx(loss, rel=1e-3)
    torch.testing.assert_close(found.scale, expected.scale)


@pytest.mark.parametrize("mask", [TWO_OF_FOUR, HALF])
def test_blocks_make_up_for_zeros_alone(mask: Mask, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, loss = zeros_alone(mask)
    monkeypatch.setattr(columns, "usable", lambda work: True)
    monkeypatch.setattr(columns, "round_block", in_plain_steps)
    found, found_loss = zeros_alone(mask)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert found_loss == pytest.approx(loss, rel=1e-4)


@pytest.mark.engine
@pytest.mark.slow
def test_the_kernel_rounds_as_the_loop_does(engine_python: Path) -> None:
    cases = ("zero points", "small groups as they come", "floats", "2:4 with zero points", "zeros anywhere", "zeros")
    printed = run_triton(engine_python, "columns_interpreted", *cases, interpret=True)
    for case, (equal, ratio) in json.loads(printed.splitlines()[-1]).items():
        assert equal > 0.999, case
        assert ratio == pytest.approx(1, rel=1e-3), case


@pytest.mark.engine
@pytest.mark.slow
def test_the_kernel_compiles_for_cards(engine_python: Path) -> None:
    assert len(run_triton(engine_python, "columns_interpreted", "compile", interpret=False).splitlines()) == 12


@pytest.mark.parametrize("run", [6, 64])
def test_runs_that_a_kernel_does_not_hold_whole_are_left_to_the_loop(run: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected, _ = zeros_alone(Mask("sparsegpt", 0.5, run))
    monkeypatch.setattr(columns, "usable", lambda work: True)
    found, _ = zeros_alone(Mask("sparsegpt", 0.5, run))
    assert torch.equal(found, expected) and float((found == 0).float().mean()) == 0.5


def test_zeros_chosen_on_what_is_left_end_a_launch() -> None:
    weight, hessian = problem()
    factor = factorize(hessian, 0.01, torch.arange(COLUMNS), "w")
    steps = {
        mask: loop.card_steps(128, loop.prepared(weight, hessian, factor, mask)[1])
        for mask in (None, TWO_OF_FOUR, HALF, WANDA)
    }
    assert steps == {None: (128, 128), TWO_OF_FOUR: (128, 128), HALF: (128, 32), WANDA: (128, 128)}
