"""Over random specs, each remedy that a plan without a choice prints is a key of the spec, and the reason that it stands beside goes."""

from __future__ import annotations

from functools import lru_cache
from random import Random
from typing import Any

import pytest
import yaml

from planner.plan.document import PlanDocument
from planner.plan.make import plan
from planner.spec.parse import as_spec
from planner.spec.patch import patched

_MODELS = (
    "Qwen/Qwen2.5-32B-Instruct", "Qwen/Qwen2.5-72B-Instruct", "Llama-3.1-8B-Instruct", "Llama-3.3-70B-Instruct", "gemma-3-27b-it",
    "gemma-3-4b-it", "Mixtral-8x7B-Instruct-v0.1", "Qwen/Qwen3-30B-A3B", "Qwen/Qwen3-8B", "DeepSeek-R1", "gpt-oss-20b",
)  # fmt: skip
_CARDS = ("T4", "L4", "RTX 3090", "RTX 4090", "RTX 5090", "A10", "A100 40GB", "L40S", "RTX 3060 12GB")
_GOALS: tuple[dict[str, Any], ...] = (
    {"ttft": "200 ms"}, {"decode": "100 tok/s"}, {"quality": {"max_perplexity_increase": "1%"}}, {"throughput": "20000 tok/s"},
    {"tpot": "10 ms", "quality": {"max_perplexity_increase": "4%"}},
)  # fmt: skip


def _spec(rng: Random) -> dict[str, Any]:
    return {
        "model": rng.choice(_MODELS), "target": {"gpu": rng.choice(_CARDS), "count": rng.choice((1, 2))}, "goals": rng.choice(_GOALS),
        "workload": {"context": rng.choice((4096, 32768)), "concurrency": rng.choice((1, 16)), "input_tokens": 1000, "output_tokens": 300},
        "engine": rng.choice(("auto", "vllm")),
    }  # fmt: skip


_RNG = Random(182)
SPECS = tuple(_spec(_RNG) for _ in range(5))


@lru_cache(maxsize=len(SPECS))
def _made(number: int) -> PlanDocument:
    return plan(SPECS[number]).document


def _against(document: PlanDocument, candidate: str) -> set[str]:
    """The codes of what a plan has against a candidate."""
    lost = (each for each in document.rejected if each.candidate == candidate)
    return {reason.code for each in lost for reason in each.reasons}


@pytest.mark.parametrize(
    "number", range(len(SPECS)), ids=lambda number: f"{SPECS[number]['model']}-{SPECS[number]['target']['gpu']}"
)
def test_what_no_plan_says_would_do_does(number: int) -> None:
    spec, document = as_spec(SPECS[number]), _made(number)
    if document.chosen is not None:
        return
    reasons = [(lost, reason) for lost in document.rejected[:2] for reason in lost.reasons if reason.remedy]
    for lost, reason in reasons:
        after = plan(patched(spec, yaml.safe_load(reason.remedy or ""))).document
        assert reason.code not in _against(after, lost.candidate), (lost.candidate, reason)


def test_the_specs_are_mostly_not_met() -> None:
    assert sum(_made(number).chosen is None for number in range(len(SPECS))) >= 3
