"""Trains a student by transformers' Trainer: in this process on one device, by `accelerate launch` of this file on several.

    <folder>/job.json           what is trained, on what and how (`TrainingJob`)
    <folder>/log.txt            what processes of their own said
    <folder>/checkpoint-<n>/    the Trainer's own: weights (or adapters), AdamW's moments, schedule, random numbers; the last two stay
    <folder>/curve.json         the held-out loss after so many tokens
    <folder>/trained/           the student at the end, in fp32

A run that was killed goes on from its last whole checkpoint with the same batches, so it ends with the same weights on the same number
of threads. What is trained, its gradients and AdamW's moments are fp32; on cards the products are bf16. Several cards share the
sequences of each step, so the steps are those of one card up to the order of sums.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from passes.distill.curve import Expected, Point, expected_loss, tokens_for
from passes.distill.objective import divergence, hidden_loss, next_token_loss
from passes.distill.processes import end_with_parent, launch
from passes.distill.teacher import TeacherText
from passes.errors import GoalMissedError
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

    `teacher`: the folder with what the teacher says of the text; "" trains on the text's own tokens. `rows`: sequences a step, shared by
    `processes`, each of which has `at_once` of its share in one forward. `apart`: whether it runs in processes of its own, which see
    the cards `visible` (as CUDA_VISIBLE_DEVICES lists them; None: as this one). `lora_rank`: of adapters that are trained in place of the
    weights and added to them in the end; 0 trains the weights. `goal`: the held-out loss to reach, None for none.
    """

    student: str
    text: str
    teacher: str
    folder: str
    device: str
    processes: int
    apart: bool
    visible: str | None
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
    lora_rank: int = 0
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
    """The held-out losses of a training, as kept on disk. `keeps`: whether this process is the one that writes them."""

    def __init__(self, folder: Path, *, keeps: bool = True) -> None:
        self._path, self._keeps = folder / "curve.json", keeps
        points = read_json(self._path, "curve")["points"] if readable(self._path) else ()
        self.points = tuple(Point(**point) for point in points)

    def add(self, point: Point) -> None:
        """Add a point; those at or behind it were of an attempt that was cut off."""
        self.points = (*(known for known in self.points if known.tokens < point.tokens), point)
        if self._keeps:
            write_json(self._path, {"points": [asdict(known) for known in self.points]})

    def said(self, tokens: int) -> str:
        """Return the last loss, whether it was less at first, what to expect of so many tokens, in words; nothing before there is one."""
        if not self.points:
            return ""
        first, last, expected = self.points[0], self.points[-1], expected_loss(self.points, tokens)
        risen = f", more than the {first.loss:.3g} that it began with" if last.loss > first.loss else ""
        return f"loss {last.loss:.3g}{risen}" + (f", in the end {expected}" if expected else "")


def train(job: TrainingJob, report: Report) -> None:
    """Train, or go on with it; the student lies in `job.trained` afterwards.

    Raises GoalMissedError as soon as the goal is out of reach (at once, where the curve so far says so), TightfitError where a process of
    its own fails.
    """
    job.place.mkdir(parents=True, exist_ok=True)
    refuse_missed(Curve(job.place).points, job.tokens, job.goal)
    if readable(job.trained / "config.json"):
        return
    _drop_cut(job.place)
    if job.apart:
        path = job.place / "job.json"
        write_json(path, asdict(job))

        def tell() -> None:
            curve = Curve(job.place)
            if curve.points:
                report(round(job.steps * curve.points[-1].tokens / job.tokens), job.steps, curve.said(job.tokens))

        launch(__name__, path, job.processes, job.visible, tell)
    else:
        _train(job, report)
    refuse_missed(Curve(job.place).points, job.tokens, job.goal)


def refuse_missed(curve: Sequence[Point], tokens: int, goal: float | None) -> None:
    """Raise GoalMissedError where the curve of a training on `tokens` says that its goal is missed, or will be."""
    said = _out_of_reach(curve, tokens, goal)
    if said is not None and goal is not None:
        last = curve[-1]
        short = "" if last.tokens >= tokens else f" after {tokens:,} tokens"
        at = f"stopped after {last.tokens:,} of {tokens:,} tokens at {last.loss:.3g}: " if short else ""
        enough = tokens_for(curve, goal)
        more = (
            f"about {enough:,} tokens as this curve goes on"
            if enough
            else "no number of tokens that this curve can be carried on to"
        )
        raise GoalMissedError(
            f"distillation misses its goal: {at}a loss of {said}{short} is expected, the goal is {goal:.3g}, "
            f"missed by at least {said.low - goal:.2g} nats a token",
            remedy=f"more tokens (`distill: tokens:`; {more}), less pruning, or `goal: {_rounded_up(said.high)}`, which is expected to be "
            f"reached{' (training goes on from its last checkpoint)' if short else ''}",
        )


def _rounded_up(value: float) -> str:
    """A positive figure in three digits, none below it."""
    digits = 2 - math.floor(math.log10(value))
    return f"{math.ceil(value * 10**digits) / 10**digits:.3g}"


def _out_of_reach(curve: Sequence[Point], tokens: int, goal: float | None) -> Expected | None:
    """What to expect at the end where all of it misses the goal; None where the goal can be reached, or none is asked for."""
    if goal is None or not curve or curve[-1].tokens < _JUDGED_FROM * tokens:
        return None
    expected = expected_loss(curve, tokens)
    return expected if expected is not None and expected.low > goal else None


def _train(job: TrainingJob, report: Report) -> None:
    import torch
    from transformers import PrinterCallback, Trainer, TrainerCallback
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    settings = _settings(job)
    model = _student(job)
    text = job.token_ids
    every = max(1, job.steps // MEASURED)
    curve = Curve(job.place, keeps=settings.process_index == 0)

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

        def held_out(self) -> float:
            """Return the held-out loss in nats a token, the same for every process, so that all of them stop where one does."""
            loss = torch.tensor(_held_out(job, model), device=settings.device)
            return float(self.accelerator.reduce(loss, "mean"))

    def out_of_reach() -> bool:
        return _out_of_reach(curve.points, job.tokens, job.goal) is not None

    class Watch(TrainerCallback):  # type: ignore[misc]
        """Measures the held-out loss, tells of the training, stops it when its goal is out of reach."""

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            step = state.global_step
            if step % every == 0 or step == job.steps:
                curve.add(Point(job.tokens_after(step), trainer.held_out()))
                control.should_training_stop = control.should_training_stop or out_of_reach()
            report(step, job.steps, curve.said(job.tokens))

    trainer = Distiller(model, settings, train_dataset=Rows(), callbacks=[Watch()])
    trainer.model_accepts_loss_kwargs = False
    trainer.remove_callback(PrinterCallback)
    begun = _last_whole(job.place)
    if begun is None:
        model.to(settings.device)
        curve.add(Point(0, trainer.held_out()))
    with torch.enable_grad():  # whoever calls may read weights without gradients
        trainer.train(resume_from_checkpoint=str(begun) if begun else None)
    if trainer.is_world_process_zero() and not out_of_reach():
        _keep(model.merge_and_unload() if job.lora_rank else model, job)


def _student(job: TrainingJob) -> Any:
    """The model that is trained, with adapters at each linear layer of its blocks where they are what is trained."""
    import torch
    from transformers import AutoModelForCausalLM, set_seed

    model = AutoModelForCausalLM.from_pretrained(job.student, dtype=torch.float32)
    model.config.use_cache = False
    if not job.lora_rank:
        return model
    from peft import LoraConfig, get_peft_model

    set_seed(job.seed)
    lora = LoraConfig(r=job.lora_rank, lora_alpha=2 * job.lora_rank, lora_dropout=0.0, target_modules="all-linear")
    return get_peft_model(model, lora)


def _settings(job: TrainingJob) -> Any:
    """What transformers' Trainer is told: AdamW with a cosine after a short warm-up, checkpoints to go on from."""
    from transformers import TrainingArguments

    return TrainingArguments(
        output_dir=job.folder,
        max_steps=job.steps,
        per_device_train_batch_size=job.at_once,
        gradient_accumulation_steps=job.rows // (job.at_once * job.processes),
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
        ddp_find_unused_parameters=False,
    )


def _keep(model: Any, job: TrainingJob) -> None:
    """Save what was trained, whole or not at all."""
    partial = job.place / "trained.partial"
    model.save_pretrained(partial)
    shutil.rmtree(job.trained, ignore_errors=True)
    partial.rename(job.trained)


def _drop_cut(folder: Path) -> None:
    """Let go of checkpoints that were not written to their end: their state, which comes last, cannot be read."""
    for path in folder.glob("checkpoint-*"):
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            shutil.rmtree(path, ignore_errors=True)


def _last_whole(folder: Path) -> Path | None:
    """The last checkpoint; those that were cut off are gone."""
    return max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.rpartition("-")[2]), default=None)


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


def _apart(path: Path) -> None:
    """What each process of its own does."""
    end_with_parent()
    _train(TrainingJob(**read_json(path, "training")), lambda done, total, detail="": None)


if __name__ == "__main__":
    _apart(Path(sys.argv[1]))
