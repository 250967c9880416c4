"""EXL2's kernels for a card: what they do against the processor's path, in Triton's interpreter; that they compile."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from passes.algorithms import exl2
from tests.walk.test_exl2 import full_scan, layer, output_error
from tests.walk.triton_python import run_triton

pytestmark = [pytest.mark.engine, pytest.mark.slow]

#: A group across row 256, where errors go to all rows that follow; widths and sizes that begin at the same row and apart.
MIXED = [(8, 32), (4, 64), (3, 128), (2, 64)]
UNIFORM = [(5, 128), (5, 128), (5, 32)]
ROWS = 288


def test_they_agree_with_the_processors_path(engine_python: Path, tmp_path: Path) -> None:
    """Two parts of one matrix stand side by side, there is no memory for a third; none is a whole number of tiles wide."""
    weight, inputs, hessian = layer(6, columns=136, rows=ROWS)
    other = layer(7, columns=40, rows=ROWS)[0].to(torch.bfloat16)
    factor = exl2.factorize(hessian, "test")
    parts: list[exl2.Part] = [(other, UNIFORM), (other, MIXED), (weight, MIXED)]
    asked, answer = tmp_path / "in.pt", tmp_path / "out.pt"
    free = {"free_bytes": 2 * 2 * other.numel() * 6}
    torch.save({"parts": parts, "permutation": factor.permutation, "inverse": factor.inverse, **free}, asked)
    assert run_triton(engine_python, "exl2_interpreted", "quantize", str(asked), str(answer), interpret=True) == "2\n"
    found = torch.load(answer)
    for (dense, groups), (codes, index, top, decoded) in zip(parts, found, strict=True):
        [(expected, by_processor)] = exl2.quantize(dense, factor, [groups])
        assert (codes.dtype, index.dtype, top.dtype) == (torch.uint8, torch.uint8, torch.float16)
        assert (codes != expected.codes).float().mean() <= 0.001
        assert (index != expected.scale_index).float().mean() <= 0.001
        ratio = output_error(inputs, decoded, dense.float()) / output_error(inputs, by_processor, dense.float())
        assert ratio == pytest.approx(1, abs=5e-4)


def test_the_first_group_has_the_scale_of_the_full_scan(engine_python: Path, tmp_path: Path) -> None:
    """Of zeros, too: the smallest that a reader does not take for none."""
    weight, _, hessian = layer(8, columns=32, rows=64)
    factor = exl2.factorize(hessian, "test")
    parts: list[exl2.Part] = [(weight, [(3, 64)]), (torch.zeros_like(weight), [(4, 64)])]
    asked, answer = tmp_path / "in.pt", tmp_path / "out.pt"
    torch.save({"parts": parts, "permutation": factor.permutation, "inverse": factor.inverse}, asked)
    run_triton(engine_python, "exl2_interpreted", "quantize", str(asked), str(answer), interpret=True)
    (_, index, top, _), (codes, _, least, zeros) = torch.load(answer)
    expected_index, expected_top = full_scan(weight.T[factor.permutation], 3)
    assert torch.equal(index[0].float(), expected_index) and torch.equal(top[0], expected_top)
    assert not zeros.any() and bool((codes == 8).all()) and float(least[0]) == exl2.LEAST_TOP


def test_they_compile_for_cards(engine_python: Path) -> None:
    """Four kernels for three generations."""
    lines = run_triton(engine_python, "exl2_interpreted", "compile", interpret=False).splitlines()
    assert len({tuple(line.split()[:2]) for line in lines}) == 4 * 3
