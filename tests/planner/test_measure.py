"""`plan --measure`: what a chain loses on real weights replaces what was expected of it, and can change the choice."""

from __future__ import annotations

from pathlib import Path

import pytest

from passes.errors import InputError
from passes.steps.progress import Progress
from planner.machine import Computing
from planner.plan.document import require_executable, spec_of
from planner.plan.lock import require_fresh
from planner.plan.make import plan
from planner.plan.saved import load_plan, save
from planner.quality.trials import LEADING
from planner.spec.parse import load_spec
from targets.quantity import Basis
from tests.elsewhere import Elsewhere
from tests.walk.conftest import save_tiny_llama

_SPEC = """
model: model
target: { gpu: rtx-4090 }
engine: vllm
workload: { context: 128, input_tokens: 32, output_tokens: 16 }
passes: { quantize: { formats: [w4a16-g32, w8a8, mixed-6.0-g32-w8a8], dense: false }, kv_cache: [auto] }
calibration: { dataset: text.txt, samples: 8, length: 64 }
evaluation: { dataset: python-reference, samples: 2, length: 64 }
"""


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    save_tiny_llama(tmp_path / "model")
    (tmp_path / "text.txt").write_text("what a format costs is seen best on the weights themselves. " * 200)
    (tmp_path / "tiny.yaml").write_text(_SPEC)
    return tmp_path / "tiny.yaml"


def test_the_leading_candidates_are_tried_and_kept(spec: Path, tmp_path: Path) -> None:
    said: list[Progress] = []
    made = plan(spec, measure=tmp_path / "work", progress=said.append)
    assert made.result.chosen is not None
    assert {event.step for event in said if event.step.endswith("trial")} == {
        f"{number} of {LEADING}: trial" for number in range(1, LEADING + 1)
    }
    assert made.result.chosen.quality.kl.basis is Basis.MEASURED
    assert made.document.decision.state == "resolved"
    kept = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "work").glob("trial-*.json")}
    assert len(kept) == LEADING
    assert plan(spec, measure=tmp_path / "work").document == made.document
    assert kept == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "work").glob("trial-*.json")}


def test_candidates_that_other_processes_try_are_measured_alike(spec: Path, tmp_path: Path) -> None:
    said: list[Progress] = []
    executor = Elsewhere()
    made = plan(spec, measure=tmp_path / "elsewhere", progress=said.append, on=Computing("cpu", executor))
    assert made.document == plan(spec, measure=tmp_path / "work").document
    assert len(executor.done) == LEADING and executor.done[0].startswith("1: ")
    assert [event.detail for event in said if event.step == "trials"] == executor.done
    assert not [event for event in said if event.step.endswith(": trial")], "none was tried here"


def test_a_measured_plan_is_a_plan_like_any_other(spec: Path, tmp_path: Path) -> None:
    made = plan(spec, measure=tmp_path / "work")
    save(made.document, tmp_path / "a.plan.json")
    document = load_plan(tmp_path / "a.plan.json")
    assert document == made.document
    require_executable(document)
    require_fresh(document, spec_of(document), made.source)


def test_without_weights_nothing_can_be_measured(spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    named = load_spec(spec).model_copy(update={"model": "HuggingFaceTB/SmolLM2-135M-Instruct"})
    with pytest.raises(InputError, match="nothing can be measured"):
        plan(named, measure=tmp_path / "work")


def test_the_cache_costs_what_it_is_expected_to_where_weights_are_measured(spec: Path, tmp_path: Path) -> None:
    with_cache = load_spec(spec).model_copy(
        update={"passes": load_spec(spec).passes.model_copy(update={"kv_cache": ("fp8",)})}
    )
    made = plan(with_cache, measure=tmp_path / "work")
    plain = plan(spec, measure=tmp_path / "work")
    assert made.result.chosen is not None and plain.result.chosen is not None
    lost = [one.result.chosen.quality.log_ppl_increase.value for one in (made, plain) if one.result.chosen is not None]
    assert lost[0] > lost[1]
