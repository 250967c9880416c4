"""What work and quality are worth: days of work buy nothing that hours do, and 8 bits that a card multiplies itself come before others."""

from __future__ import annotations

import pytest

from passes.ir.sources import open_model
from passes.quantize.format_names import pass_named
from planner.choice.judging.candidate import fitted
from planner.choice.rule.criteria import preferred
from planner.choice.verdict import Candidate, Verdict
from planner.plan.document import ChosenPlan
from planner.plan.make import plan
from planner.quality.expected import expected_quality
from planner.spec.parse import parse_spec
from planner.spec.parts.goals import Bands, Goals
from targets.engines.engine import Settings
from targets.gpu import find_gpu
from targets.workload import Workload

LLAMA, COMMAND_R = "meta-llama/Llama-3.1-8B-Instruct", "CohereForAI/c4ai-command-r-v01"
MANY = "context: 4096, concurrency: {}, input_tokens: 800, output_tokens: 250"
ALONE = "context: 4096, concurrency: 1, input_tokens: 500, output_tokens: 200"
EXL2 = "engine: exllamav2\npasses: { quantize: { methods: [exl2] } }"


def chosen(model: str, gpu: str, load: str, goals: str, more: str = "") -> ChosenPlan:
    target = f"model: {model}\ntarget: {{ gpu: {gpu} }}\nworkload: {{ {load} }}\n"
    found = plan(parse_spec(f"{target}goals: {{ {goals} }}\n{more}")).chosen
    assert found is not None
    return found


@pytest.mark.parametrize("clients", [100, 150, 174])
def test_eight_bits_are_those_that_the_card_multiplies(clients: int) -> None:
    """An L4 multiplies FP8: weights of 8 bits that it unpacks first answer a hundred clients later, for what no task tells."""
    made = chosen(LLAMA, "L4", MANY.format(clients), "quality: { max_perplexity_increase: 3% }")
    assert "fp8" in (made.published or made.weights).lower()


def test_a_goal_that_tells_them_apart_has_them_unpacked() -> None:
    made = chosen(LLAMA, "L4", MANY.format(60), "quality: { max_perplexity_increase: 0.5% }")
    assert made.weights.startswith(("w8a16", "as-is", "gptq-8")) and "fp8" not in (made.published or "").lower()


def test_what_takes_too_long_to_make_is_chosen_where_nothing_else_is_and_said_first() -> None:
    """Work that a card has too little memory for is counted on a workstation's processor: the same plan on every machine."""
    slow = chosen(COMMAND_R, "RTX 3090, count: 2", ALONE, "", EXL2)
    assert "to make, more than 48 h" in slow.notes[0]
    patient = chosen(COMMAND_R, "RTX 3090, count: 2", ALONE, "work_hours: 5000", EXL2)
    assert not any("nobody would wait" in note for note in patient.notes)


def test_hours_before_days() -> None:
    """A laptop's card holds no conversion to EXL2; a checkpoint that its makers publish in 4 bits takes no work."""
    load = "context: 8192, concurrency: 1, input_tokens: 1000, output_tokens: 300"
    made = chosen("Qwen/Qwen2.5-7B-Instruct", "RTX 4060 Laptop, reserve: 0.8 GiB", load, "decode: 20 tok/s")
    assert made.nothing_to_make


def test_the_wider_band_is_of_eight_bits_alone() -> None:
    """Four bits that an RTX 5090 multiplies are no eight bits, however wide the band: what was seen of tasks is of eight."""
    dense, gpu = open_model(LLAMA).ir, find_gpu("RTX 5090")

    def stored(name: str) -> Verdict:
        step = pass_named(name)
        assert step is not None
        quality = expected_quality(dense, (step,))
        return fitted(Candidate("vllm", (step,), Settings()), step.rewrite(dense), gpu, Workload(4096, 8), quality, ())

    def width(name: str, band: float) -> float:
        return preferred(Goals(bands=Bands(quality=f"{band:%}")), gpu).width(stored("w8a16-g128"), stored(name))

    assert (width("fp8", 0.005), width("fp8", 0.002)) == (0.02, 0.002)
    assert width("nvfp4", 0.04) == 0.04


@pytest.mark.parametrize(
    ("size", "target", "said"),
    [
        ("14B", "RTX 4090, count: 2, bridge: true", "RTX 4090 takes no NVLink bridge"),
        ("14B", "RTX 3090, count: 2", "an NVLink bridge, which is bought apart, is not assumed of RTX 3090"),
        ("14B", "RTX 3090, count: 2, bridge: true", ""),
        ("32B", "RTX 3090, count: 4, bridge: true", "an NVLink bridge joins two RTX 3090, not 4"),
    ],
)
def test_a_bridge_that_joins_nothing_is_told(size: str, target: str, said: str) -> None:
    plain = "engine: vllm\npasses: { quantize: forbid }"
    notes = [
        note for note in chosen(f"Qwen/Qwen2.5-{size}-Instruct", target, ALONE, "", plain).notes if "bridge" in note
    ]
    assert len(notes) == bool(said) and said in "".join(notes)
