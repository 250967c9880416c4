"""EXL2's adaptive quantizer, held to a literal row-by-row transcription of what ExLlamaV2 does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from passes.algorithms import exl2, threads

MIXED = [(8, 32), (4, 64), (3, 64), (2, 32)]
UNIFORM = [(4, 128), (4, 64)]


def layer(seed: int, columns: int = 96, rows: int = 192) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A weight `[N, K]`, correlated inputs `[T, K]` and their Hessian."""
    rng = torch.Generator().manual_seed(seed)
    weight = torch.randn(columns, rows, generator=rng) * 0.05
    mix = torch.eye(rows) + 0.3 * torch.randn(rows, rows, generator=rng)
    inputs = torch.randn(800, rows, generator=rng) @ mix * torch.rand(rows, generator=rng)
    return weight, inputs, inputs.T @ inputs / 8


def full_scan(group: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The scale search over all 97 multipliers, with pow."""
    base = (group.abs().amax(0) + 1e-12) / (((1 << bits) - 1) / 2)
    top = base.max()
    index = torch.clamp(torch.round(16 * torch.sqrt(base / top)), 1, 16)
    scale = (index / 16) ** 2 * top
    half = 1 << (bits - 1)
    best = min(
        (0.70 + 0.50 * step / 96 for step in range(97)),
        key=lambda p: float(
            ((torch.clamp(torch.round(group / (scale * p)), -half, half - 1) * scale * p - group).abs() ** 3.5).sum()
        ),
    )
    return index, (top * best).half()


def transcription(weight: torch.Tensor, hessian: torch.Tensor, groups: list[tuple[int, int]]) -> torch.Tensor:
    """Section 12 of the format notes, one row at a time; returns the decoded weight `[N, K]`."""
    factor = exl2.factorize(hessian, "test")
    work = weight.T[factor.permutation].clone()
    decoded = torch.empty_like(work)
    row = 0
    for bits, length in groups:
        index, top = full_scan(work[row : row + length], bits)
        scale = exl2.working_scale(index, top)
        half = 1 << (bits - 1)
        for r in range(row, row + length):
            q = torch.clamp(torch.round(work[r] / scale) + half, 0, 2 * half - 1)
            decoded[r] = ((q - half) * scale).half().float()
            error = (work[r] - decoded[r]) / factor.inverse[r, r]
            work[r + 1 :] -= torch.outer(factor.inverse[r, r + 1 :], error)
        row += length
    return decoded[torch.argsort(factor.permutation)].T


def output_error(inputs: torch.Tensor, decoded: torch.Tensor, weight: torch.Tensor) -> float:
    return float((inputs @ (decoded - weight).T).norm() / (inputs @ weight.T).norm())


@pytest.mark.parametrize("groups", [MIXED, UNIFORM], ids=["mixed", "uniform"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_output_error_is_that_of_the_transcription_within_one_percent(groups: list[tuple[int, int]], seed: int) -> None:
    weight, inputs, hessian = layer(seed)
    [(_, decoded)] = exl2.quantize(weight, exl2.factorize(hessian, "test"), [groups])
    ours = output_error(inputs, decoded, weight)
    assert ours <= 1.01 * output_error(inputs, transcription(weight, hessian, groups), weight)


def test_layouts_quantized_together_equal_layouts_quantized_alone() -> None:
    weight, _, hessian = layer(3)
    factor = exl2.factorize(hessian, "test")
    together = exl2.quantize(weight, factor, [MIXED, UNIFORM])
    for groups, (codes, decoded) in zip((MIXED, UNIFORM), together, strict=True):
        [(alone, alone_decoded)] = exl2.quantize(weight, factor, [groups])
        # Equal up to what the shape of a matrix product does to fp32 rounding: at most a handful of codes off by one.
        assert (codes.codes.int() - alone.codes.int()).abs().max() <= 1
        assert (codes.codes != alone.codes).float().mean() < 0.01
        assert torch.equal(codes.permutation, alone.permutation)
        assert output_error(torch.eye(192), decoded, alone_decoded) < 0.02


def test_parts_are_what_each_matrix_is_with_its_layouts() -> None:
    (weight, _, hessian), (other, _, _) = layer(9), layer(10, columns=64)
    factor = exl2.factorize(hessian, "test")
    found = exl2.quantize_parts([(weight, MIXED), (weight, UNIFORM), (other, MIXED)], factor)
    expected = exl2.quantize(weight, factor, [MIXED, UNIFORM]) + exl2.quantize(other, factor, [MIXED])
    for (codes, decoded), (expected_codes, expected_decoded) in zip(found, expected, strict=True):
        assert torch.equal(codes.codes, expected_codes.codes) and torch.equal(decoded, expected_decoded)
        assert codes.groups == expected_codes.groups


def test_decoded_is_what_a_reader_computes_from_the_codes() -> None:
    weight, _, hessian = layer(4)
    [(stored, decoded)] = exl2.quantize(weight, exl2.factorize(hessian, "test"), [MIXED])
    rebuilt, row = torch.empty(192, 96), 0
    for number, (bits, length) in enumerate(MIXED):
        unit = (stored.scale_max[number].float() / 256).half()
        scale = (stored.scale_index[number].half() ** 2 * unit).float()
        q = stored.codes[row : row + length].float() - (1 << (bits - 1))
        rebuilt[row : row + length] = (q * scale).half().float()
        row += length
    assert torch.equal(rebuilt[torch.argsort(stored.permutation)].T, decoded)


def test_a_group_of_zeros_decodes_to_zeros() -> None:
    weight = torch.zeros(32, 64)
    [(_, decoded)] = exl2.quantize(weight, exl2.factorize(torch.eye(64), "test"), [[(4, 64)]])
    assert torch.equal(decoded, weight)


def test_an_indefinite_hessian_is_damped_and_a_hopeless_one_refused() -> None:
    exl2.factorize(torch.zeros(64, 64), "model.layers.0.self_attn.q_proj")
    with pytest.raises(exl2.TightfitError, match=r"layers\.0"):
        exl2.factorize(-torch.eye(64) * 1e3, "model.layers.0.self_attn.q_proj")


@pytest.fixture
def three_threads() -> Iterator[None]:
    """However many torch has: under two workers it has one, and then nothing runs side by side."""
    usual = torch.get_num_threads()
    torch.set_num_threads(3)
    threads._pool.cache_clear()
    yield
    threads._pool().shutdown()
    threads._pool.cache_clear()
    torch.set_num_threads(usual)


@pytest.mark.usefixtures("three_threads")
def test_threads_side_by_side_give_what_one_gives() -> None:
    group, factors = layer(5)[0].T[:64].contiguous(), [0.7 + 0.01 * step for step in range(50)]
    scale = (group.abs().amax(0) + 1e-12) / 7.5
    assert exl2._losses_side_by_side(group, scale, 4, factors) == exl2._losses(group, scale, 4, factors)
    assert threads.side_by_side(lambda item: 2 * item, range(9)) == list(range(0, 18, 2))
    assert torch.get_num_threads() == 3
