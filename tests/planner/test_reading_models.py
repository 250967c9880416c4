"""Models that write no text: embedding models and rerankers are planned, checked and launched by the prompts that they read."""

from __future__ import annotations

from dataclasses import replace

import pytest

from passes.errors import InputError
from passes.ir.purpose import Purpose, purpose, purpose_named
from passes.ir.sources import open_model
from planner.check import check
from planner.plan.make import plan
from planner.setup.wizard import Answers, spec_text
from planner.spec.parse import as_spec
from targets.engines.engine import Settings
from targets.engines.vllm.launch import vllm_arguments
from targets.launch.request import LaunchRequest
from targets.workload import Workload

EMBEDS, RANKS, WRITES = "Qwen/Qwen3-Embedding-0.6B", "Qwen/Qwen3-Reranker-0.6B", "Qwen/Qwen3-0.6B"


@pytest.mark.parametrize(
    ("name", "ends"),
    [
        (EMBEDS, Purpose.VECTOR), (RANKS, Purpose.SCORE), (WRITES, Purpose.TEXT), ("BAAI/bge-reranker-v2-m3", Purpose.SCORE),
        ("Skywork/Skywork-Reward-Llama-3.1-8B", Purpose.SCORE), ("BAAI/bge-m3", Purpose.VECTOR),
    ],
)  # fmt: skip
def test_what_a_model_answers_with_is_told_by_its_name(name: str, ends: Purpose) -> None:
    assert purpose_named(name) is ends


def test_a_head_says_more_than_a_name() -> None:
    ir = open_model(WRITES).ir
    assert purpose(ir) is Purpose.TEXT
    headed = replace(ir, config={"architectures": ["Qwen3ForSequenceClassification"]})
    assert purpose(headed) is Purpose.SCORE


@pytest.mark.parametrize("use", ["chat", "batch"])
def test_init_asks_nothing_of_decoding(use: str) -> None:
    said = spec_text(Answers(model=EMBEDS, gpu="L4", use=use))
    assert "output_tokens" not in said and "decode:" not in said and "tok/s" not in said
    assert "output_tokens" in spec_text(Answers(model=WRITES, gpu="L4", use=use))
    with pytest.raises(InputError, match="goal on decode"):
        spec_text(Answers(model=EMBEDS, gpu="L4", use=use, goals={"decode": "8"}))


def test_goals_on_decoding_are_refused_and_answers_are_one_token() -> None:
    asked = {"model": EMBEDS, "target": {"gpu": "L4"}, "workload": {"input_tokens": 2000, "output_tokens": 400}}
    assert as_spec(asked).workload.asked.output_tokens == 1
    for goal, wanted in {"decode": "8 tok/s", "tpot": "50 ms", "throughput": "100 tok/s"}.items():
        with pytest.raises(InputError, match=f"goals.{goal}: .* writes no text"):
            as_spec(asked | {"goals": {goal: wanted}})


def test_plan_and_check_tell_the_same_and_compare_requests() -> None:
    workload = {"context": 4096, "concurrency": 4, "input_tokens": 2000}
    made = plan({"model": EMBEDS, "target": {"gpu": "L4"}, "workload": workload, "goals": {"prefer": "throughput"}})
    chosen = made.document.decision
    assert any("writes no text" in note for note in chosen.notes)
    told = " ".join(reason.message for rejected in made.document.rejected for reason in rejected.reasons)
    assert "requests/s" in told and "tok/s" not in told
    checked = check(
        EMBEDS, "L4", context=4096, concurrency=4, input_tokens=2000, output_tokens=1, weights=chosen.weights,
        kv_cache_dtype=chosen.kv_cache_dtype or "auto", settings=chosen.settings.settings,
    )  # fmt: skip
    assert chosen.speed is not None
    assert checked.speed.ttft_ms.value == pytest.approx(chosen.speed.ttft_ms.value, rel=0.02)


def test_an_engine_that_only_writes_is_refused() -> None:
    assert "engine_only_writes" in {reason.code for reason in check(EMBEDS, "L4", "exllamav2").document.reasons}
    assert "engine_only_writes" not in {reason.code for reason in check(WRITES, "L4", "exllamav2").document.reasons}


@pytest.mark.parametrize(
    ("name", "asked"), [(EMBEDS, {"runner"}), (RANKS, {"runner", "hf-overrides"}), (WRITES, set())]
)
def test_vllm_is_told_to_pool_where_its_own_choice_is_to_write(name: str, asked: set[str]) -> None:
    request = LaunchRequest("vllm", None, "", name, open_model(name).ir, Settings(), Workload(4096), 0)
    said = {setting.name for setting in vllm_arguments(request, cpu=False)}
    assert said & {"runner", "hf-overrides"} == asked
