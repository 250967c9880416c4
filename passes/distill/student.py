"""Makes a trained student of a model, as steps: the text, what the teacher says of it, the training, its dense weights on disk."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from passes.blocks.dense_model import DenseModel
from passes.blocks.devices import only_cards, require_memory
from passes.distill.distill import LOGITS, TEACHER, TEXT, TRAINING, Distill
from passes.distill.needs import require_room, rows_at_once, training_bytes
from passes.distill.sequences import teacher_sequences
from passes.distill.teacher import TeacherText
from passes.distill.trainer import Curve, TrainingJob, refuse_missed, train
from passes.files.atomic import readable
from passes.files.checkpoint import INDEX, Checkpoint, copy_side_files
from passes.host_memory import memory_available_bytes
from passes.steps.context import RunContext
from passes.steps.key import content_key
from passes.steps.step import Report
from passes.text.source import TextSource, tokens_digest
from passes.text.token_file import read_tokens, token_file

if TYPE_CHECKING:
    import torch


def distilled(plan: Distill, before: DenseModel, run: RunContext) -> DenseModel:
    """Train `before` to follow the model that its chain began with; return it with its new weights.

    Raises DoesNotFitError before anything is done where the machine lacks the memory, GoalMissedError where its goal is out of reach.
    """
    teacher = before.origin or before
    cards = sharing(plan.rows, len(run.devices))
    at_once = rows_at_once(before.ir, plan.length, plan.rows // cards)
    needed = training_bytes(before.ir, at_once * plan.length, plan.lora_rank)
    path = _text(plan, teacher, run)
    tokens = read_tokens(path)
    digest = tokens_digest(tokens)
    identity = (*before.identity, plan.name, replace(plan, goal=None).options(), digest)  # a goal changes no weight
    key = content_key(*identity)
    folder = run.folder / f"distil-{key}"
    dense = folder / "dense"
    done = readable(dense / INDEX)
    if not done:
        _require_memory(needed, run.devices[0])
    said = None
    if plan.method == LOGITS:
        asked = (plan.top_k, plan.temperature, plan.hidden > 0)
        said_key = content_key(*teacher.identity, "teacher", asked, digest)
        said = TeacherText(run.folder / f"teacher-{said_key}", *asked)
        _ask(said, said_key, teacher, run.on_text(tokens).on_one_device(), done=done)
    student = before.folder(run)

    def make(report: Report) -> None:
        _require_memory(needed, run.devices[0])
        files = {"student": str(student), "text": str(path), "teacher": str(said.folder) if said else ""}
        job = _job(plan, run.devices[:cards], folder, files, at_once)
        train(job, report)
        copy_side_files(student, job.trained)
        DenseModel(before.ir, Checkpoint(job.trained)).write(dense, lambda done, total, detail="": None)
        for part in (job.trained, *folder.glob("checkpoint-*"), *([said.folder] if said else [])):
            shutil.rmtree(part, ignore_errors=True)

    run.steps.run(TRAINING, key, done, make)
    refuse_missed(Curve(folder).points, plan.steps * plan.rows * plan.length, plan.goal)
    return DenseModel(before.ir, Checkpoint(dense), identity)


def _text(plan: Distill, teacher: DenseModel, run: RunContext) -> Path:
    """The file with the text's tokens."""
    folder = teacher.folder(run)
    dataset = str(teacher_sequences(plan, folder, run)) if plan.other_teacher else plan.dataset
    source = TextSource(dataset, plan.sequences + plan.held_out, plan.length, plan.seed)
    return token_file(run, folder, TEXT, source)


def _ask(said: TeacherText, key: str, teacher: DenseModel, run: RunContext, *, done: bool) -> None:
    """What the teacher says of the run's text; nothing is asked where the student is there already."""

    def make(report: Report) -> None:
        said.keep(teacher, run.part(run.folder, report))

    run.steps.run(TEACHER, key, done or said.whole(run.text), make)


def _require_memory(needed: int, device: torch.device) -> None:
    """Refuse a training that what computes has no room for."""
    if device.type == "cuda":
        require_memory(
            device, needed, "`distill: lora_rank: 16`, shorter sequences (`length:`), or `method: blockwise`"
        )
    else:
        require_room(needed, memory_available_bytes(), "this machine")


def sharing(rows: int, devices: int) -> int:
    """Return the count of devices that share the sequences of a step: the most that have the same number of them each."""
    return max(part for part in range(1, devices + 1) if rows % part == 0)


def _job(
    plan: Distill, devices: Sequence[torch.device], folder: Path, files: Mapping[str, str], at_once: int
) -> TrainingJob:
    """The training in `folder`. `files`: student, text and teacher."""
    return TrainingJob(
        **files, folder=str(folder), device=devices[0].type, processes=len(devices), apart=len(devices) > 1 or not _only(devices[0]),
        visible=only_cards(devices), objective=plan.objective, temperature=plan.temperature, top_k=plan.top_k, hidden=plan.hidden,
        learning_rate=plan.step_rate, steps=plan.steps, rows=plan.rows, at_once=at_once, held_out=plan.held_out, seed=plan.seed,
        lora_rank=plan.lora_rank, goal=plan.goal,
    )  # fmt: skip


def _only(device: torch.device) -> bool:
    """Whether the Trainer has no other card to take, as it would in this process."""
    import torch

    return device.type != "cuda" or torch.cuda.device_count() == 1
