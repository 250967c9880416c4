"""GPTQ: error compensation pays, orders are permutations, scales are what is stored, bad Hessians are refused."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from passes.algorithms.gptq import GptqOptions, gptq
from passes.algorithms.inverse_factor import column_order
from passes.algorithms.method import method
from passes.algorithms.rtn import round_blocks_to_nearest, round_to_nearest
from passes.algorithms.scale_search import FULL_RANGE, ScaleSearch
from passes.blocks.input_statistics import InputStatistics
from passes.errors import TightfitError
from passes.formats.format import Grid, Quantized
from passes.formats.gptq import Gptq as GptqFormat
from passes.quantize.exl2 import QuantizeExl2
from passes.quantize.quantize import EXECUTABLE_METHODS

K, N = 96, 48


def problem(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A random weight and the Hessian of correlated inputs."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(K, K, generator=generator) / K**0.5
    inputs = torch.randn(400, K, generator=generator) @ mixing * torch.rand(K, generator=generator).exp()
    return torch.randn(N, K, generator=generator), inputs.T @ inputs


def decode(quantized: Quantized, group_size: int) -> torch.Tensor:
    group = quantized.group_of_input
    if group is None:
        group = torch.arange(K) // (K if group_size < 0 else group_size)
    codes = quantized.codes.float()
    if quantized.zero_point is not None:
        codes = codes - quantized.zero_point.float()[:, group]
    return codes * quantized.scale[:, group]


def loss(weight: torch.Tensor, other: torch.Tensor, hessian: torch.Tensor) -> float:
    error = other - weight
    return float(((error @ hessian) * error).sum())


@pytest.mark.parametrize("search", [FULL_RANGE, ScaleSearch(steps=20, shrink=0.5)])
def test_weights_of_one_sign_get_a_zero_point_that_the_format_can_say(search: ScaleSearch) -> None:
    """Version 1 of GPTQ's format stores zero points less one, so 0 is none of them; the largest weight is reached all the same."""
    weight = torch.rand(32, 64, generator=torch.Generator().manual_seed(0)) + 0.5
    for version, least in ((1, 1), (2, 0)):
        form = GptqFormat(4, 32, symmetric=False, version=version)
        quantized = round_to_nearest(weight, form.grid, torch.float16, search)
        assert quantized.zero_point is not None and int(quantized.zero_point.min()) == least
        decoded = form.decode("m", form.encode("m", quantized), torch.float32)
        assert float((decoded - weight).abs().max()) < (0.06 if search is FULL_RANGE else 0.4)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 1000),
    bits=st.sampled_from([3, 4, 8]),
    group_size=st.sampled_from([-1, 32, 48]),
    symmetric=st.booleans(),
    order=st.sampled_from(["none", "static", "group", "full"]),
)
def test_error_compensation_beats_rounding_to_nearest(
    seed: int, bits: int, group_size: int, symmetric: bool, order: str
) -> None:
    weight, hessian = problem(seed)
    grid = Grid(bits, group_size, symmetric)
    quantized, _ = gptq(weight, hessian, grid, torch.float32, GptqOptions(order), "w")
    nearest = round_to_nearest(weight, grid, torch.float32)
    assert loss(weight, decode(quantized, group_size), hessian) < loss(weight, decode(nearest, group_size), hessian)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)
    assert int(quantized.codes.min()) >= low and int(quantized.codes.max()) <= high


@pytest.mark.parametrize("order", ["none", "static", "group", "full"])
def test_a_diagonal_hessian_leaves_nothing_to_compensate(order: str) -> None:
    weight, _ = problem(0)
    hessian = torch.diag(torch.arange(1.0, K + 1))
    grid = Grid(4, 32)
    quantized, _ = gptq(weight, hessian, grid, torch.float32, GptqOptions(order), "w")
    if order != "full":
        assert torch.equal(quantized.codes, round_to_nearest(weight, grid, torch.float32).codes)


@pytest.mark.parametrize("order", ["none", "static", "group", "full"])
def test_an_order_is_a_permutation_and_group_keeps_groups_together(order: str) -> None:
    diagonal = torch.rand(K, generator=torch.Generator().manual_seed(1))
    found = column_order(diagonal, order, 32)
    assert sorted(found.tolist()) == list(range(K))
    if order == "group":
        assert all(len({int(column) // 32 for column in part}) == 1 for part in found.split(32))


def test_scales_are_rounded_to_the_stored_dtype_before_codes_are_chosen() -> None:
    weight, hessian = problem(2)
    quantized, _ = gptq(weight, hessian, Grid(4, 32), torch.bfloat16, GptqOptions(), "w")
    assert torch.equal(quantized.scale, quantized.scale.bfloat16().float())


def test_a_scale_search_never_loses_to_the_full_range() -> None:
    weight, _ = problem(3)
    grid = Grid(3, 32)
    plain = decode(round_to_nearest(weight, grid, torch.float32), 32)
    searched = decode(round_to_nearest(weight, grid, torch.float32, ScaleSearch(30)), 32)
    assert float((searched - weight).square().sum()) < float((plain - weight).square().sum())


@pytest.mark.parametrize("order", ["static", "full"])
def test_inputs_that_never_fire_have_no_say_in_the_scales(order: str) -> None:
    """Whatever their weights are, and however small the inputs that do fire: what is left of the loss is that of the others."""
    weight, hessian = problem(4)
    dead = torch.arange(K) % 2 == 0
    hessian[dead], hessian[:, dead] = 0, 0
    hessian *= 1e-6
    small, large = weight.clone(), weight.clone()
    small[:, dead], large[:, dead] = 0, weight[:, dead] * 3
    options = GptqOptions(order, search=ScaleSearch(20, 0.2))
    losses = [
        loss(each, decode(gptq(each, hessian, Grid(4, 32), torch.float32, options, "w")[0], 32), hessian)
        for each in (small, large)
    ]
    assert losses[1] < 1.5 * losses[0]


def test_a_hessian_that_no_damping_mends_is_refused_by_name() -> None:
    weight, hessian = problem(5)
    with pytest.raises(TightfitError, match=r"model\.layers\.0\.mlp"):
        gptq(
            weight,
            hessian - 100 * torch.diag(torch.diagonal(hessian)),
            Grid(4, 32),
            torch.float32,
            GptqOptions(),
            "model.layers.0.mlp",
        )


def test_the_hessian_is_the_sum_of_outer_products() -> None:
    inputs = torch.randn(2, 50, K)
    hessian = InputStatistics(K, torch.device("cpu"))
    hessian.add(inputs[0])
    hessian.add(inputs[1].bfloat16())
    second = inputs[1].bfloat16().float()
    torch.testing.assert_close(hessian.hessian("w"), inputs[0].T @ inputs[0] + second.T @ second, rtol=1e-4, atol=1e-3)


def test_nan_inputs_end_in_a_clear_message() -> None:
    hessian = InputStatistics(K, torch.device("cpu"))
    hessian.add(torch.full((3, K), float("nan")))
    with pytest.raises(TightfitError, match=r"model\.layers\.3.*NaN"):
        hessian.hessian("model.layers.3")


def test_block_scales_hold_the_largest_weight_of_each_block() -> None:
    weight = torch.randn(40, 70)
    quantized = round_blocks_to_nearest(weight, (32, 32), Grid(8, -1, kind="e4m3"), torch.float32)
    assert quantized.scale.shape == (2, 3)
    spread = quantized.scale.repeat_interleave(32, 0)[:40].repeat_interleave(32, 1)[:, :70]
    torch.testing.assert_close(quantized.codes.float() * spread, weight, rtol=0.07, atol=0.01)


def test_every_method_that_a_pass_may_name_is_run() -> None:
    assert all(method(name) is not None for name in (*EXECUTABLE_METHODS, QuantizeExl2.method))
