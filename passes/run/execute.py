"""Runs a chain of passes on a model's weights: content-addressed steps, resume, progress, the size invariant.

    text ──► measure ──► walk, or an outside tool ──► assemble ──► evaluate ──► publish

Each step has a key: sha256 over its inputs, its options and the code that computes it. What a key has made is kept under
`<work>/<step>-<key>` and used again, so a second run does nothing, a changed option redoes only what follows from it, and
two plans share their common steps. The output folder appears under its name last of all: when every tensor in it is the one that the
description predicts (name, dtype, shape, bytes), its distance from the source is measured, and what else belongs into it is written.
The source is only ever read.
"""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from passes import chain
from passes.backends.backend import Task
from passes.backends.result import described, write_shards
from passes.backends.run import backend_python, run, version
from passes.base import Pass
from passes.blocks.devices import compute_devices, compute_dtype
from passes.blocks.model_class import UNRUNNABLE_REMEDY, unrunnable
from passes.errors import DoesNotFitError, InputError
from passes.files.atomic import read_json, readable, write_json
from passes.files.checkpoint import Checkpoint, write_shard
from passes.files.lock import only_one
from passes.files.os_errors import clear_disk_errors, clear_memory_errors
from passes.ir.headers import is_whole
from passes.ir.model import ModelIR
from passes.run.assemble import assemble, holds
from passes.run.disk_need import scratch_bytes
from passes.run.job import Job, Outcome
from passes.run.resolve import Resolver
from passes.run.result_folder import check_places, holding, partial_of, publish
from passes.steps.key import code_digest, content_key, file_identity, folder_identity, source_identity
from passes.steps.progress import Progress
from passes.steps.step import Report, Steps
from passes.text.source import TextSource, refuse_same_text, token_blocks, tokens_digest

if TYPE_CHECKING:
    import torch

    from passes.measure.evaluate import Measured


def execute(
    job: Job,
    progress: Callable[[Progress], None] = lambda event: None,
    *,
    resolved: Callable[[Sequence[Pass], ModelIR], None] = lambda passes, target: None,
    finish: Callable[[Outcome, Path], None] = lambda outcome, folder: None,
) -> Outcome:
    """Run a job, or what is left of it. Raises TightfitError with a remedy; what was finished is kept for the next run.

    `resolved` is told the chain with its measured choices and its description before any weight is written; `finish` writes what else
    belongs into the result's folder before that gets its name.
    """
    calm_libraries()
    _check(job)
    out = job.out.resolve()
    with clear_disk_errors(job.work):
        job.work.mkdir(parents=True, exist_ok=True)
    with only_one(job.work / "lock", job.work), holding(out), clear_memory_errors():
        return _Run(job, progress, resolved, finish).run()


def calm_libraries() -> None:
    """What torch and transformers read once, when they are loaded: call it before.

    Idle OpenMP threads sleep, not spin, while BLAS (Hessians) has threads of its own at work: seen on 2 cores, a third less CPU
    time a block. Bars of others stay away from ours. Garbage is collected again where the command line had it rest.
    """
    gc.enable()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TQDM_DISABLE", "1")


def _check(job: Job) -> None:
    """Refuse before any work is done whatever can be refused."""
    reasons = chain.illegal(job.source, job.passes)
    if reasons:
        raise InputError(reasons[0].message, remedy=reasons[0].remedy)
    if missing := chain.missing(job.source, job.passes):
        raise InputError(
            f"{chain.draw(job.passes)} can be planned but not applied: {'; '.join(missing)}",
            remedy="choose another pass, or an outside backend",
        )
    why = unrunnable(job.source)
    if why is not None and chain.walk_needs_text(job.passes, chain.rewrite(job.source, job.passes)):
        raise InputError(f"nothing can be calibrated: {why}", remedy=UNRUNNABLE_REMEDY)
    if (made := chain.outside(job.passes)) is not None:
        tool = chain.find_backend(made.backend)
        version(tool, backend_python(tool))
    check_places(job.out, job.work, job.folder)
    refuse_same_text(job.calibration.dataset, job.evaluation.dataset)


@dataclass(frozen=True, slots=True)
class _Made:
    """The quantized weights: their shards, the key of what made them, and what was seen on the way."""

    shards: list[Path]
    key: str
    losses: dict[str, float] = field(default_factory=dict)
    unseen: tuple[str, ...] = ()


class _Run:
    """One run of a job: finds each step's result or makes it."""

    def __init__(
        self,
        job: Job,
        progress: Callable[[Progress], None],
        resolved: Callable[[Sequence[Pass], ModelIR], None],
        finish: Callable[[Outcome, Path], None],
    ) -> None:
        self.job, self.resolved, self.finish = job, resolved, finish
        self.out = job.out.resolve()
        self.target = chain.rewrite(job.source, job.passes)
        self.devices = compute_devices()
        self.device = self.devices[0]
        self.dtype = compute_dtype(job.source.dtype, job.compute_dtype)
        self.identity = source_identity(job.folder, self.dtype, self.devices)
        self.steps = Steps(job.work, progress)

    def run(self) -> Outcome:
        """Every step in order; each makes what is not there yet."""
        tool = chain.outside(self.job.passes)
        calibrated = chain.needs_text(self.job.passes, self.target)
        self._check_disk(calibrated)
        text = token_file(self.steps, self.job.folder, "calibration text", self.job.calibration) if calibrated else None
        tokens = read_tokens(text) if text is not None else _no_tokens()
        held_out = read_tokens(token_file(self.steps, self.job.folder, "evaluation text", self.job.evaluation))
        resolver = Resolver(
            self.job.source, Checkpoint(self.job.folder), tokens, self.job.work, self.dtype, self.device, self.identity,
            self.steps,
        )  # fmt: skip
        self.passes = tuple(resolver.resolved(self.job.passes))
        self.dense, self.weights = resolver.dense, resolver.weights
        self.target = chain.rewrite(self.job.source, self.passes)
        self.resolved(self.passes, self.target)
        made = (
            self._outside(tool, text, tokens)
            if tool is not None and text is not None
            else self._walk(self.passes, self.target, tokens)
        )
        folder, key = self._assemble(self.out, self.target, self.passes, made)
        measured = self._evaluate(folder, held_out, key) if self._can_be_evaluated() else None
        outcome = Outcome(
            out=self.job.out,
            passes=self.passes,
            target=self.target,
            steps=tuple(self.steps.finished),
            tensor_bytes=self.target.tensor_bytes,
            calibration_digest=tokens_digest(tokens) if calibrated else None,
            evaluation_digest=tokens_digest(held_out),
            measured=measured,
            losses=made.losses,
            unseen=made.unseen,
        )
        self.finish(outcome, folder)
        if folder != self.out:
            publish(folder, self.out)
        return outcome

    def _walk(self, passes: Sequence[Pass], target: ModelIR, tokens: torch.Tensor) -> _Made:
        """A chain in one walk over the source as the structural passes left it."""
        from passes.walk.state import BlockReport, WalkState
        from passes.walk.walk import Walk, units

        method = chain.method(passes)
        key = content_key(
            "walk", self.identity, chain.to_json(passes), tokens_digest(tokens) if len(tokens) else "", repr(method)
        )
        folder = self.job.work / f"walk-{key}"
        names = " → ".join(one.text() for one in passes)

        def make(report: Report) -> None:
            def block(found: BlockReport, blocks: int) -> None:
                loss = f", loss {sum(found.losses.values()):.4g}" if found.losses else ""
                report(found.block + 1, blocks, names + loss)

            Walk(
                self.dense, target, self.weights, method, tokens, folder, self.devices, self.dtype, progress=block
            ).run()  # fmt: skip

        self.steps.run("walk", key, folder.exists() and WalkState(folder).done == units(target), make)
        shutil.rmtree(folder / "hidden", ignore_errors=True)
        reports = WalkState(folder).reports
        return _Made(
            sorted((folder / "shards").glob("*.safetensors")),
            key,
            {f"{one.block}.{name}": loss for one in reports for name, loss in one.losses.items()},
            tuple(f"{one.block}.{name}" for one in reports for name in one.unseen),
        )

    def _outside(self, one: Pass, text: Path, tokens: torch.Tensor) -> _Made:
        """The pass of an outside tool, on a folder with the dense model as the passes before it left it."""
        before = self.passes[: self.passes.index(one)]
        folder = self.job.folder
        if before:
            dense = chain.rewrite(self.job.source, before)
            place = self.job.work / f"dense-{content_key('dense', self.identity, chain.to_json(before))}"
            folder, _ = self._assemble(place, dense, before, self._walk(before, dense, _no_tokens()))
            if folder != place:
                folder = publish(folder, place)
        tool = chain.find_backend(one.backend)
        python = backend_python(tool)
        by = f"{tool.name} {version(tool, python)}"
        key = content_key("outside", by, self.identity, chain.to_json([*before, one]), tokens_digest(tokens))
        task = Task(
            one,
            folder.resolve(),
            text.resolve(),
            len(tokens),
            tokens.shape[1],
            self.job.work.resolve() / f"{tool.name}-{key}",
        )
        shards = task.work / "shards"
        finished = task.work / "finished.json"

        def done() -> bool:
            return readable(finished) and all(is_whole(shards / name) for name in read_json(finished, "list")["shards"])

        def make(report: Report) -> None:
            run(tool, python, task, report)
            shutil.rmtree(shards, ignore_errors=True)
            write_shards(described(self.target, task.out), task.out, shards)
            write_json(finished, {"shards": [path.name for path in sorted(shards.iterdir())]})

        self.steps.run(by, key, done(), make)
        self.target = described(self.target, task.out)
        return _Made(sorted(shards.glob("*.safetensors")), key)

    def _assemble(self, out: Path, target: ModelIR, passes: Sequence[Pass], made: _Made) -> tuple[Path, str]:
        """The folder that holds the result: `out` where it is published already, else the one beside it. And the result's key."""
        key = content_key("assemble", made.key, code_digest())
        published = holds(out, key, target)
        folder = out if published else partial_of(out)

        def make(report: Report) -> None:
            assemble(folder, target, passes, made.shards, self.job.folder, self.job.calibration, key)

        self.steps.run("assemble", key, published or holds(folder, key, target), make)
        return folder, key

    def _can_be_evaluated(self) -> bool:
        """Whether this project reads the weights back (of EXL3 it knows the sizes only; what an engine rounds while it loads is not
        there yet) and runs the blocks.
        """
        blocks = (block for block, _ in self.target.decoder.counts)
        known = all(linear.storage.kind != "exl3" for block in blocks for linear in block.linears)
        return known and self.target.load_time.name == "none" and unrunnable(self.job.source) is None

    def _evaluate(self, folder: Path, tokens: torch.Tensor, out_key: str) -> Measured:
        from passes.blocks.decoded_weights import DecodedCheckpoint, as_dense
        from passes.measure.evaluate import Measured, Side, evaluate

        key = content_key("evaluate", out_key, tokens_digest(tokens), code_digest())
        path = self.job.work / f"evaluate-{key}.json"

        def make(parts: Path, report: Report) -> dict[str, Any]:
            source = Side(self.job.source, Checkpoint(self.job.folder))
            decoded = DecodedCheckpoint(Checkpoint(folder), self.target, self.dtype)
            result = Side(as_dense(self.dense, self.target), decoded)
            return asdict(evaluate(source, result, tokens, parts, self.dtype, self.device, progress=report))

        return Measured(**self.steps.once("evaluate", key, path, make))

    def _check_disk(self, calibrated: bool) -> None:
        """Room for what the work keeps, asked once a job: what it has kept by the time of a second run is part of that.

        The output shares its files with the walk's where both are on one disk.
        """
        text = self.job.calibration if calibrated else None
        job = self.job
        asked = content_key(
            "disk", self.identity, chain.to_json(job.passes), job.calibration, job.evaluation, str(self.out)
        )
        record = job.work / f"room-{asked}.json"
        if record.exists() and any(job.work.glob("walk-*")):
            return
        needed = scratch_bytes(self.job.source, self.target, self.job.passes, text, self.job.evaluation)
        rooms = [(self.job.work, needed)]
        if not _same_disk(self.job.work, self.out):
            rooms.append((partial_of(self.out), self.target.tensor_bytes))
        for place, wanted in rooms:
            free = shutil.disk_usage(place).free
            if wanted > free:
                raise DoesNotFitError(
                    f"{place} has {free / 2**20:,.0f} MiB free, the work needs {wanted / 2**20:,.0f} MiB",
                    remedy="free some space, or name a work folder on another disk",
                )
        write_json(record, {"needed_bytes": needed})


def token_file(steps: Steps, model: Path, name: str, source: TextSource) -> Path:
    """A step that makes the file with a text's token blocks."""
    identity = file_identity(Path(source.dataset))
    key = content_key("text", asdict(source), identity, folder_identity(model), code_digest())
    path = steps.work / f"text-{key}.safetensors"

    def make(report: Report) -> None:
        write_shard(path, {"input_ids": token_blocks(source, model, path.with_suffix(""), report)})

    steps.run(name, key, is_whole(path), make)
    shutil.rmtree(path.with_suffix(""), ignore_errors=True)
    return path


def read_tokens(path: Path) -> torch.Tensor:
    """The token blocks of a file that `token_file` made."""
    tokens: torch.Tensor = Checkpoint.of_files([path]).read(["input_ids"])["input_ids"]
    return tokens


def _no_tokens() -> torch.Tensor:
    import torch

    return torch.zeros(0, 1, dtype=torch.int64)


def _same_disk(work: Path, out: Path) -> bool:
    return work.stat().st_dev == partial_of(out).stat().st_dev
