"""Pruned and trained models: one that misses a goal on quality gets no folder; orders and widths that cannot be are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from passes import chain
from passes.base import Pass
from passes.distill.distill import Distill
from passes.errors import GoalMissedError
from passes.formats.compressed_tensors.integers import PackQuantized
from passes.ir.sources import open_model
from passes.prune.depth import DepthPrune
from passes.prune.width import WidthPrune
from passes.quantize.quantize import Quantize
from planner.apply import apply
from planner.plan.make import plan
from planner.spec.parse import parse_spec

SPEC = """
model: {model}
target: {{ gpu: rtx-4090 }}
engine: vllm
workload: {{ context: 128, concurrency: 1, input_tokens: 32, output_tokens: 16 }}
goals: {{ quality: {{ max_kl: {goal} }} }}
passes: {{ {change}, quantize: forbid, kv_cache: [auto] }}
calibration: {{ dataset: {text}, samples: 4, length: 32 }}
evaluation: {{ dataset: python-reference, samples: 2, length: 32 }}
"""


def spec(model: Path, place: Path, goal: float, change: str = "prune: { kv_heads: 1 }") -> str:
    text = place / "text.txt"
    if not text.exists():
        text.write_text("A quick brown fox jumps over the lazy dog; it is seldom seen to rest. " * 20)
    return SPEC.format(model=model, text=text, goal=goal, change=change)


def test_a_pruned_model_that_misses_its_goal_is_not_made_and_the_next_try_uses_its_work(
    llama: Path, tmp_path: Path
) -> None:
    """Planned by its most likely loss, 0.6 nats; a model with random weights loses more."""
    out, work = tmp_path / "out", tmp_path / "work"
    for _ in range(2):
        with pytest.raises(
            GoalMissedError, match=r"out is not made: KL [\d.]+ nats > 1 nats, 0\.\d+ nats too much"
        ) as missed:
            apply(plan(parse_spec(spec(llama, tmp_path, 1.0))), out, work=work)
    assert missed.value.exit_code == 4 and not out.exists() and not list(tmp_path.glob("out*"))
    certificate = json.loads((work / "certificate.json").read_text())
    [goal] = certificate["goals"]
    assert not goal["met"] and not certificate["holds"]
    made = apply(plan(parse_spec(spec(llama, tmp_path, 10.0))), out, work=work)
    assert made.holds and made.outcome is not None
    assert [step.name for step in made.outcome.steps if not step.reused] == ["assemble"]


def test_a_model_that_learned_from_another_and_misses_its_goal_is_not_made_either(llama: Path, tmp_path: Path) -> None:
    """Nothing was pruned: what it learned takes it away from the source, which its goal is about."""
    texts = tmp_path / "answers.jsonl"
    texts.write_text(
        "".join(json.dumps({"text": " ".join(map(str, range(number, number + 20)))}) + "\n" for number in range(60))
    )
    learn = f"distill: {{ method: sequences, dataset: {texts}, tokens: 1024, length: 32, learning_rate: 0.01 }}"
    out = tmp_path / "out"
    with pytest.raises(GoalMissedError, match=r"out is not made: KL .* too much") as missed:
        apply(plan(parse_spec(spec(llama, tmp_path, 0.001, learn))), out, work=tmp_path / "work")
    assert missed.value.exit_code == 4 and not list(tmp_path.glob("out*"))


@pytest.mark.parametrize(
    ("passes", "code"),
    [
        ((Quantize("gptq", PackQuantized(4, 32)), DepthPrune(1)), "pass_order"),
        ((Quantize("gptq", PackQuantized(4, 32)), WidthPrune(96)), "pass_order"),
        ((DepthPrune(1), Quantize("gptq", PackQuantized(4, 32)), Distill()), "pass_order"),
        ((WidthPrune(112), Quantize("gptq", PackQuantized(4, 32))), "group_size_32_does_not_divide_112"),
    ],
)
def test_orders_and_widths_that_cannot_be_are_refused_with_a_reason(
    llama: Path, passes: tuple[Pass, ...], code: str
) -> None:
    [reason] = chain.illegal(open_model(llama).ir, passes)
    assert reason.code == code and reason.remedy
