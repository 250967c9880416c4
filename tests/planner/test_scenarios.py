"""Plans that an expert would sign: scenarios with what is defensible in each, and why; and choices that small changes do not turn over."""

from __future__ import annotations

import fnmatch
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from passes.ir.sources import open_model
from planner.choice.search import SearchResult, search
from planner.choice.verdict import AS_IS, Verdict
from planner.plan.make import plan
from planner.spec.spec import Spec

_LINES = Path(__file__).with_name("data").joinpath("scenarios.jsonl").read_text(encoding="utf-8").splitlines()
SCENARIOS: dict[str, dict[str, Any]] = {row["id"]: row for row in map(json.loads, _LINES)}


def fits(name: str | None, patterns: list[str]) -> bool:
    return any(fnmatch.fnmatch(name or "", pattern) for pattern in patterns)


@pytest.mark.parametrize("name", SCENARIOS)
def test_the_plan_is_one_that_an_expert_would_sign(name: str) -> None:
    wanted = SCENARIOS[name]
    document = plan(Spec.model_validate(wanted["spec"])).document
    if wanted.get("exit") == 3:
        assert document.chosen is None
        return
    chosen = document.decision
    assert chosen.engine.name in wanted["engine"]
    assert fits(chosen.weights, wanted["weights"]), chosen.label
    assert fits(chosen.kv_cache_dtype, wanted.get("kv", ["*"]))
    assert chosen.settings.tensor_parallel in wanted.get("tp", [chosen.settings.tensor_parallel])
    assert chosen.settings.pipeline_parallel in wanted.get("pp", [chosen.settings.pipeline_parallel])
    hours = (chosen.apply_on_card or chosen.apply).seconds.value / 3600
    assert hours <= wanted.get("hours", hours)
    for said in wanted.get("says", []):
        assert any(said in note for note in chosen.notes), said
    assert all(goal.met or not goal.name.of_speed for goal in chosen.goals)


SPECS = st.fixed_dictionaries(
    {
        "model": st.sampled_from(["Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen3-32B", "meta-llama/Llama-3.1-8B-Instruct"]),
        "gpu": st.sampled_from(["RTX 4090", "RTX 3060 12GB", "L4", "T4", "A100 80GB", "H100"]),
        "count": st.sampled_from([1, 2]),
        "clients": st.sampled_from([1, 4, 40, 200]),
        "context": st.sampled_from([2048, 8192]),
        "prefer": st.sampled_from(["quality", "speed", "throughput", "cost", "context", "size"]),
        "increase": st.sampled_from([None, "1%", "10%"]),
    }
)


def searched(drawn: dict[str, Any], **passes: Any) -> SearchResult:
    quality = {"max_perplexity_increase": drawn["increase"]} if drawn["increase"] else {}
    spec = Spec.model_validate(
        {
            "model": drawn["model"],
            "target": {"gpu": drawn["gpu"], "count": drawn["count"]},
            "workload": {"context": drawn["context"], "concurrency": drawn["clients"]},
            "goals": {"quality": quality, "prefer": drawn["prefer"]},
            "passes": passes,
        }
    )
    return search(spec, open_model(spec.model).ir)


@settings(max_examples=25, deadline=None)
@given(SPECS)
def test_what_is_chosen_is_dominated_by_nothing_in_its_own_pareto_set(drawn: dict[str, Any]) -> None:
    result = searched(drawn)
    chosen = result.chosen
    assert bool(result.pareto) is (chosen is not None)
    assume(chosen is not None)
    assert chosen is not None and chosen in result.pareto
    rule = result.rule
    assert rule.pareto(result.pareto, chosen) == result.pareto
    assert chosen.memory.memory.total.value <= chosen.memory.memory.budget.value
    if chosen.candidate.weights.startswith("exl2") and chosen.admissible(result.spec.goals):
        assert chosen.capacity.room.low >= 0


@settings(max_examples=15, deadline=None)
@given(SPECS, st.sampled_from(["fp8", "w8a8", "w4a16-g128", "awq-4-g128", "gptq-4-g128"]))
def test_a_named_format_is_honoured(drawn: dict[str, Any], name: str) -> None:
    chosen = searched(drawn, quantize={"formats": [name]}).chosen
    assume(chosen is not None)
    assert chosen is not None
    made = chosen.candidate.published
    assert name == (chosen.candidate.weights if made is None else made.weights)


def family(verdict: Verdict | None) -> tuple[str, str] | None:
    return verdict and (verdict.candidate.engine, verdict.candidate.weights.split("-")[0])


def test_small_changes_turn_over_few_choices() -> None:
    """A client more, a little memory less, 2 % of a goal on quality: at most one in twenty-four chooses another engine or family."""
    flips = tried = 0
    for wanted in SCENARIOS.values():
        spec = Spec.model_validate(wanted["spec"])
        ir = open_model(spec.model).ir
        kept = family(search(spec, ir).chosen)
        clients = spec.workload.concurrency
        more = [clients + 1] if isinstance(clients, int) else []
        near = [
            spec.model_copy(update={"workload": spec.workload.model_copy(update={"concurrency": each})})
            for each in more
        ]
        reserve = spec.target.reserve + 107_374_182
        near.append(spec.model_copy(update={"target": spec.target.model_copy(update={"reserve": reserve})}))
        asked = spec.goals.quality.max_perplexity_increase
        for factor in (0.98, 1.02) if asked else ():
            quality = spec.goals.quality.model_copy(update={"max_perplexity_increase": asked * factor})
            near.append(spec.model_copy(update={"goals": spec.goals.model_copy(update={"quality": quality})}))
        for other in near:
            tried += 1
            flips += family(search(other, ir).chosen) != kept
    assert flips * 24 <= tried


def test_no_client_more_turns_a_batch_job_over() -> None:
    """174 clients and 175: no engine is thrown out because clients times the longest context does not fit."""
    drawn = {
        "model": "Qwen/Qwen2.5-7B-Instruct",
        "gpu": "A100 80GB",
        "count": 1,
        "context": 8192,
        "prefer": "throughput",
        "increase": None,
    }
    chosen = {family(searched(drawn | {"clients": clients}).chosen) for clients in (174, 175, 400)}
    assert len(chosen) == 1 and {engine for engine, _ in filter(None, chosen)} == {"vllm"}


def test_published_checkpoints_take_no_work_and_give_the_plan_its_model() -> None:
    drawn = {
        "model": "Qwen/Qwen2.5-7B-Instruct",
        "gpu": "RTX 3060 12GB",
        "count": 1,
        "context": 4096,
        "prefer": "quality",
        "increase": None,
    }
    spec = searched(drawn | {"clients": 2}).spec
    document = plan(spec).document
    chosen = document.decision
    assert chosen.published == document.model == document.lock.model
    assert chosen.weights == AS_IS and chosen.apply.seconds.value == 0
    assert document.places is not None and (document.places.model, document.places.asked) == (
        chosen.published,
        spec.model,
    )
    named = plan(spec.model_copy(update={"goals": spec.goals.model_copy(update={"confidence": 0.5})})).document
    assert replace(named, spec=document.spec, digest="").decision.weights == AS_IS
