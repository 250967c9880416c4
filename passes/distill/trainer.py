"""Trains a student by transformers' Trainer: in this process on one device, by `accelerate launch` of this file on several.

    <folder>/job.json           what is trained, on what and how (`TrainingJob`)
    <folder>/checkpoint-<n>/    the Trainer's own: weights, AdamW's moments, schedule, random numbers; the last two stay
    <folder>/curve.json         the held-out loss after so many tokens
    <folder>/trained/           the student at the end, in fp32

A run that was killed goes on from its last whole checkpoint with the same batches, so it ends with the same weights on the same number
of threads. Weights, gradients and AdamW's moments are fp32; on cards the products are bf16.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from passes.distill.curve import Expected, Point, expected_loss
from passes.distill.objective import divergence, hidden_loss, next_token_loss
from passes.distill.teacher import TeacherText
from passes.errors import GoalMissedError, TightfitError
from passes.files.atomic import read_json, readable, write_json
from passes.record import dataclass
from passes.steps.step import Report
from passes.text.token_file import read_tokens

if TYPE_CHECKING:
    import torch

#: How often the held-out loss is measured, and a checkpoint kept, in a run.
MEASURED, CHECKPOINTS = 20, 10
#: The share of the steps in which the learning rate rises; it falls as a cosine after that.
_WARMUP = 0.05
#: From this share of a run on its curve is trusted to say that its goal is out of reach.
_JUDGED_FROM = 0.2


@dataclass(frozen=True)
class TrainingJob:
    """A training: the student's folder, the file with its text, of which the last `held_out` rows judge, and how it is trained.

    `teacher`: the folder with what the teacher says of the text; "" trains on the text's own tokens. `rows`: sequences a step, `at_once` of
    them in one forward. `goal`: the held-out loss to reach, None for none.
    """

    student: str
    text: str
    teacher: str
    folder: str
    device: str
    cards: int
    objective: str
    temperature: float
    top_k: int
    hidden: float
    learning_rate: float
    steps: int
    rows: int
    at_once: int
    held_out: int
    seed: int
    goal: float | None = None

    @property
    def place(self) -> Path:
        """Where its parts lie."""
        return Path(self.folder)

    @property
    def trained(self) -> Path:
        """Where the student lies at the end."""
        return self.place / "trained"

    @cached_property
    def token_ids(self) -> torch.Tensor:
        """The text `[S, T]`."""
        return read_tokens(Path(self.text))

    @property
    def tokens(self) -> int:
        """Tokens of the whole training."""
        return self.tokens_after(self.steps)

    def tokens_after(self, step: int) -> int:
        """Count the tokens of so many steps."""
        return step * self.rows * int(self.token_ids.shape[1])

    @property
    def said(self) -> TeacherText:
        """What the teacher says of the text."""
        return TeacherText(Path(self.teacher), self.top_k, self.temperature, self.hidden > 0)


class Curve:
    """The held-out losses of a training, on disk."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "curve.json"

    @property
    def points(self) -> tuple[Point, ...]:
        """The points so far, in their order."""
        if not readable(self._path):
            return ()
        return tuple(Point(**point) for point in read_json(self._path, "curve")["points"])

    def add(self, point: Point) -> tuple[Point, ...]:
        """Add a point; those at or behind it were of an attempt that was cut off."""
        points = (*(known for known in self.points if known.tokens < point.tokens), point)
        write_json(self._path, {"points": [asdict(known) for known in points]})
        return points


def train(job: TrainingJob, report: Report) -> None:
    """Train, or go on with it; the student lies in `job.trained` afterwards.

    Raises GoalMissedError as soon as the goal is out of reach, TightfitError where a card's process fails.
    """
    job.place.mkdir(parents=True, exist_ok=True)
    if job.cards > 1:
        _launched(job)
    else:
        _train(job, report)
    refuse_missed(job, Curve(job.place).points)


def refuse_missed(job: TrainingJob, curve: tuple[Point, ...]) -> None:
    """Raise GoalMissedError where the curve says that the goal is missed, or will be."""
    said = _out_of_reach(job, curve)
    if said is not None and job.goal is not None:
        short = "" if curve[-1].tokens >= job.tokens else f" after {job.tokens:,} tokens"
        at = f"stopped after {curve[-1].tokens:,} of {job.tokens:,} tokens at {curve[-1].loss:.3g}: " if short else ""
        raise GoalMissedError(
            f"distillation misses its goal: {at}a loss of {said}{short} is expected, the goal is {job.goal:.3g}, "
            f"missed by at least {said.low - job.goal:.2g} nats a token",
            remedy="more tokens (`distill: tokens:`), less pruning, or a goal that the forecast reaches",
        )


def _out_of_reach(job: TrainingJob, curve: tuple[Point, ...]) -> Expected | None:
    """What to expect at the end where all of it misses the goal; None where the goal can be reached, or none is asked for."""
    if job.goal is None or not curve or curve[-1].tokens < _JUDGED_FROM * job.tokens:
        return None
    expected = expected_loss(curve, job.tokens)
    return expected if expected is not None and expected.low > job.goal else None


def _launched(job: TrainingJob) -> None:
    """Train in one process a card."""
    path = job.place / "job.json"
    write_json(path, asdict(job))
    program = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", str(job.cards)]
    program += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "-m", __name__, str(path)]
    done = subprocess.run(program, capture_output=True, text=True, check=False)
    if done.returncode:
        raise TightfitError(
            f"accelerate launch ended with {done.returncode}: {done.stderr.strip()[-800:]}",
            remedy=f"what was trained is kept; `{' '.join(program)}` shows all it says",
        )


def _train(job: TrainingJob, report: Report) -> None:
    import torch
    from transformers import AutoModelForCausalLM, PrinterCallback, Trainer, TrainerCallback
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(job.student, dtype=torch.float32)
    model.config.use_cache = False
    text = job.token_ids
    every = max(1, job.steps // MEASURED)
    curve = Curve(job.place)

    class Rows(torch.utils.data.Dataset):  # type: ignore[type-arg]
        """The rows to train on, with what the teacher says of each."""

        def __len__(self) -> int:
            return len(text) - job.held_out

        def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
            return {"input_ids": text[number], **(job.said.row(number, text) if job.teacher else {})}

    class Distiller(Trainer):  # type: ignore[misc]
        """A Trainer whose loss is the distance from the teacher."""

        def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
            return _loss(job, model, inputs)

    class Watch(TrainerCallback):  # type: ignore[misc]
        """Measures the held-out loss, tells of the training, stops it when its goal is out of reach."""

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            step = state.global_step
            if step % every == 0 or step == job.steps:
                points = curve.add(Point(job.tokens_after(step), _held_out(job, model)))
                control.should_training_stop = control.should_training_stop or _out_of_reach(job, points) is not None
            points = curve.points
            expected = expected_loss(points, job.tokens)
            said = f"loss {points[-1].loss:.3g}" + (f", in the end {expected}" if expected else "") if points else ""
            report(step, job.steps, said)

    settings = _settings(job)
    trainer = Distiller(model, settings, train_dataset=Rows(), callbacks=[Watch()])
    trainer.model_accepts_loss_kwargs = False
    trainer.remove_callback(PrinterCallback)
    begun = _last_whole(job.place)
    if begun is None and not curve.points:
        curve.add(Point(0, _held_out(job, model.to(settings.device))))
    with torch.enable_grad():  # whoever calls may read weights without gradients
        trainer.train(resume_from_checkpoint=str(begun) if begun else None)
    if trainer.is_world_process_zero():
        _keep(model, job)


def _settings(job: TrainingJob) -> Any:
    """What transformers' Trainer is told: AdamW with a cosine after a short warm-up, checkpoints to go on from."""
    from transformers import TrainingArguments

    at_once = max(1, job.at_once // job.cards)
    return TrainingArguments(
        output_dir=job.folder,
        max_steps=job.steps,
        per_device_train_batch_size=at_once,
        gradient_accumulation_steps=max(1, job.rows // (at_once * job.cards)),
        learning_rate=job.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, round(job.steps * _WARMUP)),
        weight_decay=0.0,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        bf16=job.device != "cpu",
        use_cpu=job.device == "cpu",
        save_strategy="steps",
        save_steps=max(1, job.steps // CHECKPOINTS),
        save_total_limit=2,
        logging_strategy="no",
        seed=job.seed,
        data_seed=job.seed,
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=[],
        dataloader_pin_memory=False,
    )


def _keep(model: Any, job: TrainingJob) -> None:
    """Save what was trained, whole or not at all."""
    partial = job.place / "trained.partial"
    model.save_pretrained(partial)
    shutil.rmtree(job.trained, ignore_errors=True)
    partial.rename(job.trained)


def _last_whole(folder: Path) -> Path | None:
    """The last checkpoint that was written to its end, its state being what comes last; those behind it go."""
    numbered = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)
    for path in numbered:
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            shutil.rmtree(path, ignore_errors=True)
        else:
            return path
    return None


def _held_out(job: TrainingJob, model: Any) -> float:
    """The mean loss of the rows that are not trained on, by the objective alone."""
    import torch

    training, text = model.training, job.token_ids
    model.eval()
    with torch.no_grad():
        losses = [float(_loss(job, model, inputs, alone=True)) for inputs in _judging(job, text, model.device)]
    model.train(training)
    return sum(losses) / len(losses)


def _judging(job: TrainingJob, text: torch.Tensor, device: torch.device) -> Iterator[dict[str, torch.Tensor]]:
    for number in range(len(text) - job.held_out, len(text)):
        row = {"input_ids": text[number], **(job.said.row(number, text) if job.teacher else {})}
        yield {name: tensor[None].to(device) for name, tensor in row.items()}


def _loss(job: TrainingJob, model: Any, inputs: dict[str, torch.Tensor], *, alone: bool = False) -> torch.Tensor:
    """The loss of a batch; `alone`: without what hidden states add."""
    ids = inputs["input_ids"]
    looks = job.hidden > 0 and not alone
    out = model(input_ids=ids, use_cache=False, output_hidden_states=looks)
    if not job.teacher:
        return next_token_loss(out.logits, ids)
    logits, tokens, log_probs = (part.flatten(0, 1) for part in (out.logits, inputs["tokens"], inputs["log_probs"]))
    loss = divergence(logits, tokens, log_probs, job.objective, job.temperature).mean()
    return loss + job.hidden * hidden_loss(out.hidden_states[-1], inputs["hidden"]) if looks else loss


if __name__ == "__main__":
    _train(
        TrainingJob(**json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))), lambda done, total, detail="": None
    )
