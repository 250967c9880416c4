"""What a quantized checkpoint lost before anything was done to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from passes.ir.names import made_of, released_so
from passes.ir.sources import described
from planner.asked import chain_of
from planner.quality.expected import expected_quality
from planner.quality.origin import NOT_JUDGED, loss_since_origin, origin_unknown
from tests.planner.test_check_words import check


@pytest.mark.parametrize(
    ("checkpoint", "source", "weights"),
    [
        ("nvidia/Qwen3-32B-NVFP4", "Qwen/Qwen3-32B", "nvfp4"),
        ("Qwen/Qwen2.5-32B-Instruct-AWQ", "Qwen/Qwen2.5-32B-Instruct", "awq-4-g128"),
        ("cognitivecomputations/DeepSeek-R1-AWQ", "deepseek-ai/DeepSeek-R1", "awq-4-g64"),
        ("unsloth/Qwen3-8B-FP8", "Qwen/Qwen3-8B", "fp8-block"),
    ],
)
def test_a_published_quantization_has_lost_what_making_it_loses(checkpoint: str, source: str, weights: str) -> None:
    found = made_of(checkpoint)
    assert found is not None and (found[0], found[1].weights) == (source, weights)
    dense, served = described(source), described(checkpoint)
    assert dense is not None and served is not None
    lost, made = loss_since_origin(served, ()), expected_quality(dense, chain_of(weights, "auto"))
    assert lost == made and lost.log_ppl_increase.value > 0 and not origin_unknown(served)
    assert loss_since_origin(served, chain_of(None, "fp8")).log_ppl_increase.value > lost.log_ppl_increase.value


@pytest.mark.parametrize("name", ["openai/gpt-oss-20b", "deepseek-ai/DeepSeek-R1", "Qwen/Qwen3-32B"])
def test_what_a_maker_released_has_lost_nothing(name: str) -> None:
    ir = described(name)
    assert ir is not None and released_so(name) and not origin_unknown(ir)
    assert loss_since_origin(ir, ()).log_ppl_increase.value == 0


def test_check_holds_a_quantized_checkpoint_to_what_it_was_made_of(optimize: Any) -> None:
    goal = ("--gpu", "B200", "--max-perplexity-increase", "3%")
    code, published = check(optimize, "--model", "nvidia/Qwen3-32B-NVFP4", *goal)
    made, own = check(optimize, "--model", "Qwen/Qwen3-32B", "--weights", "nvfp4", *goal)
    assert (code, made) == (3, 3) and published["quality"] == own["quality"] and published["meets"] is False


def test_the_goal_of_a_quantized_checkpoint_of_nobody_knows_what_is_not_judged(optimize: Any) -> None:
    model = ("--model", "unsloth/qwen2.5-3b-instruct-unsloth-bnb-4bit", "--gpu", "L4", "--context", 4096)
    code, told = check(optimize, *model, "--max-perplexity-increase", "5%")
    [reason] = told["reasons"]
    assert code == 6 and told["fits"] and not {"meets", "goals"} & told.keys()
    assert reason["code"] == "quality_not_judged" and NOT_JUDGED in reason["message"]
    assert check(optimize, *model)[0] == 0, "nothing is asked of its quality"


def test_a_spec_asks_what_is_done_to_the_model_that_it_names(optimize: Any, tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        "model: Qwen/Qwen2.5-7B-Instruct-AWQ\ntarget: { gpu: RTX 4090 }\nworkload: { context: 4096, concurrency: 1 }\n"
        "goals: { quality: { max_perplexity_increase: 2% } }\n"
    )
    assert optimize("check", spec)[0] == optimize("plan", spec, "-o", tmp_path / "plan.json")[0] == 0
    assert optimize("check", tmp_path / "plan.json")[0] == 0
    named = ("--model", "Qwen/Qwen2.5-7B-Instruct-AWQ", "--gpu", "RTX 4090", "--max-perplexity-increase", "2%")
    assert optimize("check", *named)[0] == 3, "the model itself has lost more"
