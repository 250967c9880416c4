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
from passes.distill.needs import cache_bytes, require_room, rows_at_once, training_bytes, training_disk_bytes
from passes.distill.student import distilled
from passes.distill.teacher import TeacherText
from passes.distill.trainer import Curve, TrainingJob, train
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
from tests.distill.conftest import training_job
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


def test_a_goal_out_of_reach_ends_the_training_and_says_what_would_do(
    llama: Path, llama_ir: ModelIR, tmp_path: Path, text: Path
) -> None:
    plan, before = replace(PLAN, goal=1e-4), pruned(llama, llama_ir)
    said = []
    for _ in range(2):  # the second time from what the curve said, without training
        with pytest.raises(
            GoalMissedError, match=r"stopped after [\d,]+ of 4,096 tokens .* missed by at least"
        ) as missed:
            distilled(plan, before, run_in(tmp_path / "work"))
        said.append(str(missed.value))
    assert said[0] == said[1] and missed.value.exit_code == 4
    [folder] = (tmp_path / "work").glob("distil-*")
    stopped = Curve(folder).points
    assert stopped[-1].tokens < 0.3 * 4096 and not (folder / "trained").exists()
    reachable = float(str(missed.value.remedy).partition("`goal: ")[2].partition("`")[0])
    distilled(replace(plan, goal=reachable), before, run_in(tmp_path / "work"))
    points = Curve(folder).points
    assert points[: len(stopped)] == stopped, "it goes on where it stopped"
    assert points[-1].tokens == 4096 and points[-1].loss <= reachable
    with pytest.raises(GoalMissedError) as missed:
        distilled(replace(plan, goal=points[-1].loss / 2), before, run_in(tmp_path / "work"))
    reachable = float(str(missed.value.remedy).partition("`goal: ")[2].partition("`")[0])
    distilled(replace(plan, goal=reachable), before, run_in(tmp_path / "work"))  # what is offered is met
    with pytest.raises(GoalMissedError, match=r"goal: a loss of [\d.]+ .* is expected, the goal is 0.0001"):
        distilled(plan, before, run_in(tmp_path / "work"))  # what is there already misses it, too


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
    assert training_disk_bytes(llama_ir) == 32 * llama_ir.weights > 2 * training_disk_bytes(llama_ir, 4)


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


def test_adapters_are_trained_in_place_of_the_weights_and_end_in_them(
    llama: Path, llama_ir: ModelIR, tmp_path: Path, text: Path
) -> None:
    before = pruned(llama, llama_ir)
    after = distilled(replace(PLAN, lora_rank=4), before, run_in(tmp_path / "work"))
    assert differences(after.weights.folder, before.ir) == []
    [folder] = (tmp_path / "work").glob("distil-*")
    points = Curve(folder).points
    assert points[-1].loss < 0.7 * points[0].loss
    for linear in before.ir.decoder.block(0).linears:
        name = f"{linear.name}.weight"
        change = after.block(0)[name].float() - before.block(0)[name].float()
        values = torch.linalg.svdvals(change)
        assert values[0] > 0 and values[4] < 1e-3 * values[0]
    norms = [name for name in before.block(0) if "norm" in name]
    assert norms and all(torch.equal(after.block(0)[name], before.block(0)[name]) for name in norms)


@pytest.mark.parametrize("rank", [0, 8])
def test_training_takes_the_memory_that_was_foretold(llama: Path, tmp_path: Path, rank: int) -> None:
    ended = run(measured_training, llama, save_wide_llama(tmp_path / "model"), tmp_path, rank)
    assert ended.returncode == 0, ended.stderr
    predicted, peak = map(int, ended.stdout.split()[-2:])
    # What the allocator keeps of what was freed, and matrices' own buffers, come on top.
    assert 0.75 * peak < predicted < 1.35 * peak, (predicted, peak)


def save_wide_llama(folder: Path) -> Path:
    """A Llama of 29 million weights, so that its training outweighs what a process takes anyway."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=4096, hidden_size=512, intermediate_size=1536, num_hidden_layers=8, num_attention_heads=8,
        num_key_value_heads=4, max_position_embeddings=256, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def measured_training(warm: Path, folder: Path, place: Path, rank: int) -> None:
    """Print the bytes that a training is said to take, and those by which it grows this process at most."""
    asked = {"length": 256, "steps": 3, "rows": 2, "lora_rank": rank}
    quietly(training_job(warm, place / "warm", **asked))  # loads all that a training loads
    began = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
    quietly(training_job(folder, place / "run", **asked))
    print(training_bytes(open_model(folder).ir, 2 * 256, rank), memory("VmHWM") - began)


def quietly(asked: TrainingJob) -> None:
    train(asked, lambda done, total, detail="": None)


def memory(line: str) -> int:
    """A figure of this process's memory, as Linux says it, in bytes."""
    said = Path("/proc/self/status").read_text()
    return 1024 * int(said.partition(f"{line}:")[2].split()[0])
