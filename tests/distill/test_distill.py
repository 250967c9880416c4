"""A student trained by its teacher: what it gains, what it is made of, that it goes on where it was killed."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from passes import chain
from passes.blocks.dense_model import DenseModel
from passes.distill.distill import Distill
from passes.distill.needs import cache_bytes, require_room, rows_at_once, training_bytes
from passes.distill.student import distilled
from passes.distill.teacher import TeacherText
from passes.distill.trainer import Curve
from passes.errors import DoesNotFitError, GoalMissedError
from passes.files.checkpoint import Checkpoint
from passes.formats.compressed_tensors.integers import PackQuantized
from passes.ir.model import ModelIR
from passes.ir.sources import open_model
from passes.prune.depth import DepthPrune
from passes.quantize.quantize import Quantize
from passes.run.assemble import differences
from passes.run.execute import execute
from passes.run.job import Job
from passes.steps.context import RunContext
from passes.text.source import TextSource
from tests.forked import Child, run
from tests.walk.conftest import context

pytestmark = pytest.mark.slow

PLAN = Distill(tokens=4096, length=32, epochs=4, dataset="text.txt", learning_rate=2e-2, top_k=16)


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("A quick brown fox jumps over the lazy dog; it is seldom seen to rest. " * 60)
    monkeypatch.chdir(tmp_path)
    return path


def run_in(folder: Path) -> RunContext:
    folder.mkdir(exist_ok=True)
    return context(folder, torch.zeros(0, 1))


def pruned(folder: Path, ir: ModelIR) -> DenseModel:
    source = DenseModel(ir, Checkpoint(folder), ("source",))
    return DepthPrune(1, (2,)).dense(source, context(folder, torch.zeros(0, 1))).descends_from(source)


def job(folder: Path, ir: ModelIR, place: Path, *passes: object) -> Job:
    return Job(
        ir, folder, passes, place / "out", place / "work",  # type: ignore[arg-type]
        calibration=TextSource("text.txt", 8, 32), evaluation=TextSource("python-reference", 4, 32),
    )  # fmt: skip


def test_training_brings_the_student_nearer_and_leaves_its_description(
    llama: Path, llama_ir: ModelIR, tmp_path: Path, text: Path
) -> None:
    before = pruned(llama, llama_ir)
    after = distilled(PLAN, before, run_in(tmp_path / "work"))
    assert after.ir == before.ir and differences(after.weights.folder, before.ir) == []
    [folder] = (tmp_path / "work").glob("distil-*")
    points = Curve(folder).points
    assert points[0].tokens == 0 and points[-1].tokens == PLAN.steps * PLAN.rows * PLAN.length
    assert points[-1].loss < points[0].loss / 2
    assert not list(folder.glob("checkpoint-*")) and not list((tmp_path / "work").glob("teacher-*"))


@pytest.mark.parametrize(
    "changes", [{"objective": "jsd", "temperature": 2.0}, {"hidden": 1.0}, {"method": "sequences"}]
)
def test_other_objectives_train_too(
    llama: Path, llama_ir: ModelIR, tmp_path: Path, text: Path, changes: dict[str, object]
) -> None:
    plan = replace(PLAN, **changes)  # type: ignore[arg-type]
    if plan.method == "sequences":
        lines = (
            f"Text {number} says that {number} and {number + 1} make {2 * number + 1} in the end."
            for number in range(40)
        )
        Path("answers.jsonl").write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
        plan = replace(plan, dataset="answers.jsonl")
    distilled(plan, pruned(llama, llama_ir), run_in(tmp_path / "work"))
    [folder] = (tmp_path / "work").glob("distil-*")
    points = Curve(folder).points
    assert points[-1].loss < points[0].loss


def test_a_chain_with_distillation_is_carried_out(llama: Path, llama_ir: ModelIR, tmp_path: Path, text: Path) -> None:
    passes = (DepthPrune(1), PLAN, Quantize("rtn", PackQuantized(8, 32)))
    outcome = execute(job(llama, llama_ir, tmp_path, *passes))
    ran = [step.name for step in outcome.steps]
    assert [name for name in ran if name in ("distillation text", "teacher", "distil")] == [
        "distillation text", "teacher", "distil",
    ]  # fmt: skip
    alone = execute(job(llama, llama_ir, tmp_path / "alone", passes[0], passes[2]))
    assert outcome.measured is not None and alone.measured is not None
    again = execute(job(llama, llama_ir, tmp_path, *passes))
    assert all(step.reused for step in again.steps) and again.measured == outcome.measured


def test_a_goal_out_of_reach_ends_the_training_and_says_by_how_much(
    llama: Path, llama_ir: ModelIR, tmp_path: Path, text: Path
) -> None:
    plan = replace(PLAN, goal=1e-4)
    with pytest.raises(GoalMissedError, match=r"stopped after .* of 4,096 tokens .* missed by at least") as missed:
        distilled(plan, pruned(llama, llama_ir), run_in(tmp_path / "work"))
    assert missed.value.exit_code == 4


def test_what_the_teacher_says_takes_the_bytes_that_were_foretold(
    llama: Path, llama_ir: ModelIR, tmp_path: Path, tokens: torch.Tensor
) -> None:
    said = TeacherText(tmp_path / "said", 16, 1.0, True)
    said.keep(DenseModel(llama_ir, Checkpoint(llama)), context(tmp_path, tokens))
    kept = [Checkpoint.of_files([path]) for path in sorted((tmp_path / "said").glob("*.safetensors"))]
    stored = sum(tensor.bytes for file in kept for tensor in file.describe())
    assert stored == cache_bytes(llama_ir, tokens.numel(), 16, hidden=True)
    assert {name: tuple(part.shape) for name, part in said.row(3, tokens).items()} == {
        "log_probs": (32, 16), "tokens": (32, 16), "hidden": (32, llama_ir.hidden_size),
    }  # fmt: skip


def test_training_that_has_no_room_is_refused(llama_ir: ModelIR) -> None:
    needed = training_bytes(llama_ir, 4096)
    assert needed > 16 * llama_ir.weights
    with pytest.raises(DoesNotFitError, match="GiB of memory") as refused:
        require_room(needed, needed // 2, "this machine")
    assert refused.value.remedy is not None and "blockwise" in refused.value.remedy
    assert 8 % rows_at_once(llama_ir, 512, 8) == 0


@pytest.mark.parametrize(
    ("passes", "code"),
    [
        ((Distill(),), "nothing_to_recover"),
        ((Distill(method="blockwise"),), "nothing_to_recover"),
        ((DepthPrune(1), Quantize("rtn", PackQuantized(4, 32)), Distill()), "pass_order"),
        ((DepthPrune(1), Distill(objective="forwards_kl")), "unknown_objective"),
        ((DepthPrune(1), Distill(tokens=100, length=512)), "distill_tokens"),
        ((DepthPrune(1), Distill(dataset="http://localhost/v1")), "distill_prompts"),
        ((DepthPrune(1), Distill(dataset="http://h/v1", teacher="t", prompts="p.txt")), "distill_endpoint"),
        ((DepthPrune(1), Distill(method="blockwise"), Quantize("awq", PackQuantized(4, 32))), "blockwise_smoothing"),
    ],
)
def test_what_makes_no_sense_is_refused_with_a_reason(llama_ir: ModelIR, passes: tuple[object, ...], code: str) -> None:
    reasons = chain.illegal(llama_ir, passes)  # type: ignore[arg-type]
    assert [reason.code for reason in reasons] == [code] and reasons[0].remedy


def trained(folder: Path, work: Path) -> None:
    """What a run does that may be killed."""
    distilled(PLAN, pruned(folder, open_model(folder).ir), run_in(work))


def test_kill_9_at_a_checkpoint_ends_with_the_same_weights(llama: Path, tmp_path: Path, text: Path) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    child = Child(trained, llama, killed)
    while not list(killed.glob("distil-*/checkpoint-*/trainer_state.json")):
        assert not child.ended
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    assert child.wait().returncode == -signal.SIGKILL
    assert not list(killed.glob("distil-*/dense"))
    assert run(trained, llama, killed).returncode == 0 and run(trained, llama, whole).returncode == 0
    weights = [
        {path.name: path.read_bytes() for path in sorted(work.glob("distil-*/dense/*.safetensors"))}
        for work in (killed, whole)
    ]
    assert weights[0] == weights[1] and len(weights[0]) == 4
    curves = [Curve(next(work.glob("distil-*"))).points for work in (killed, whole)]
    assert curves[0] == curves[1]


def test_a_caller_without_gradients_trains_as_well(llama: Path, llama_ir: ModelIR, tmp_path: Path, text: Path) -> None:
    with torch.no_grad():
        distilled(PLAN, pruned(llama, llama_ir), run_in(tmp_path / "work"))
    [folder] = (tmp_path / "work").glob("distil-*")
    points = Curve(folder).points
    assert points[-1].loss < points[0].loss / 2
