"""A card with more bandwidth, more arithmetic and the same link to the others is never predicted slower at the same step."""

from __future__ import annotations

from itertools import permutations

import pytest

from passes.ir.sources import open_model
from passes.quantize.format_names import pass_named
from targets.engines.engine import find_engine
from targets.gpu import Gpu, all_gpus, find_gpu
from targets.speed.card import card_of, generation_of, is_geforce
from targets.speed.rates import fitted_rates
from targets.speed.step import Step, step_seconds
from targets.speed.work import work_of

VLLM = find_engine("vllm")
CARDS = [gpu for gpu in all_gpus() if gpu.vendor == "NVIDIA" and (gpu.capability or 0) >= 75 and gpu.offered]
#: Steps, and by what factor a newer card may take longer: how much of their arithmetic rate generations reach differs, and that of an L40
#: or an L20, which no row has, is taken from cards that print twice as much for the same chip.
STEPS = ((Step(1, 1000), 1.02), (Step(16, 2000), 1.02), (Step(8, 2000, 2048, 1024, 1), 1.25))


def at_least(one: Gpu, other: Gpu, cards: int) -> bool:
    """Whether a card has at least what another has, of every figure that a step rests on."""
    mine, theirs = card_of(VLLM, one), card_of(VLLM, other)
    newer = (one.capability or 0) >= (other.capability or 0) and is_geforce(one) == is_geforce(other)
    linked = cards == 1 or (mine.wiring == theirs.wiring and mine.link >= theirs.link)
    rates = all(mine.rate(kind) >= theirs.rate(kind) for kind in ("bf16", "fp8", "int8", "fp4"))
    return newer and linked and rates and mine.bandwidth >= theirs.bandwidth


@pytest.mark.parametrize("cards", [1, 2])
@pytest.mark.parametrize("weights", [None, "w4a16-g128"])
def test_more_of_everything_is_no_slower(weights: str | None, cards: int) -> None:
    ir = open_model("meta-llama/Llama-3.3-70B-Instruct").ir
    if weights is not None:
        made = pass_named(weights)
        assert made is not None
        ir = made.rewrite(ir)
    work = work_of(ir)

    def seconds(gpu: Gpu) -> list[float]:
        rates = fitted_rates("vllm", generation_of(gpu)).rates
        return [step_seconds(work, card_of(VLLM, gpu), rates, step, cards) for step, _ in STEPS]

    took = {gpu.name: seconds(gpu) for gpu in CARDS}
    slower = [
        f"{one.name} takes {mine:.4f} s, {other.name} {theirs:.4f} s"
        for one, other in permutations(CARDS, 2) if at_least(one, other, cards)
        for mine, theirs, (_, factor) in zip(took[one.name], took[other.name], STEPS, strict=True) if mine > factor * theirs
    ]  # fmt: skip
    assert not slower, "\n".join(slower[:20])


def test_two_3090_without_a_bridge_are_no_faster_than_two_4090() -> None:
    old, new = find_gpu("RTX 3090"), find_gpu("RTX 4090")
    assert at_least(new, old, 2)


def test_the_same_chip_is_of_the_same_line() -> None:
    assert {generation_of(find_gpu(name)) for name in ("RTX 4060 Ti 8GB", "RTX 4060 Ti 16GB", "RTX 4090 Laptop")} == {
        "8.9 geforce"
    }
