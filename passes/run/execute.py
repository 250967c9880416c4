"""Runs a chain of passes on a model's weights: content-addressed steps, resume, progress, the size invariant.

    text ──► choices of the passes ──► walk, or an outside tool ──► assemble ──► evaluate ──► publish      (`passes.run.job_graph`)

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
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from passes import chain
from passes.backends.backend import Task
from passes.backends.result import described, write_shards
from passes.backends.run import backend_python, run, version
from passes.base import Pass
from passes.blocks.dense_model import DenseModel
from passes.blocks.devices import compute_devices, compute_dtype, visible_cards
from passes.blocks.model_class import UNRUNNABLE_REMEDY, unrunnable
from passes.errors import DoesNotFitError, InputError
from passes.files.atomic import read_json, readable, write_json
from passes.files.checkpoint import Checkpoint
from passes.files.lock import only_one
from passes.files.os_errors import clear_disk_errors, clear_memory_errors
from passes.ir.model import ModelIR
from passes.ir.readers.headers import is_whole
from passes.record import dataclass
from passes.run.assemble import Assembly, assemble, holds
from passes.run.disk_need import scratch_bytes
from passes.run.job import Job, Outcome
from passes.run.job_graph import (
    ASSEMBLE,
    CALIBRATION_TEXT,
    EVALUATE,
    EVALUATION_TEXT,
    job_graph,
    maker_node,
    pass_node,
)
from passes.run.result_folder import check_places, holding, partial_of, publish
from passes.steps.context import RunContext
from passes.steps.execution import Execution
from passes.steps.executor import HERE, Executor
from passes.steps.key import code_digest, content_key, source_identity
from passes.steps.progress import Progress, Step
from passes.steps.step import Report, Steps
from passes.text.source import refuse_same_text, tokens_digest
from passes.text.token_file import read_tokens, token_file

if TYPE_CHECKING:
    import torch

    from passes.measure.evaluate import Measured


def execute(
    job: Job,
    progress: Callable[[Progress], None] = lambda event: None,
    *,
    resolved: Callable[[Sequence[Pass], ModelIR], None] = lambda passes, target: None,
    finish: Callable[[Outcome, Path], None] = lambda outcome, folder: None,
    executor: Executor = HERE,
) -> Outcome:
    """Run a job, or what is left of it. Raises TightfitError with a remedy; what was finished is kept for the next run.

    `resolved` is told the chain with its measured choices and its description before any weight is written; `finish` writes what else
    belongs into the result's folder before that gets its name. `executor`: whose processes make the steps, where not this one; it then
    finds them made.
    """
    calm_libraries()
    _check(job)
    out = job.out.resolve()
    with clear_disk_errors(job.work):
        job.work.mkdir(parents=True, exist_ok=True)
    with only_one(job.work / "lock", job.work), holding(out), clear_memory_errors():
        return _Run(job, progress, resolved, finish).run(executor)


def advance(job: Job, name: str, threads: int) -> tuple[Step, ...]:
    """Carry out one piece of a job's graph in this process, on what others have made of it, with so many threads as sums depend on them.

    Returns the steps that were made now. Whoever asks for it holds the job's locks.
    """
    import torch

    calm_libraries()
    torch.set_num_threads(threads)
    with clear_memory_errors():
        return _Run(job).advance(name)


def calm_libraries() -> None:
    """Set what torch and transformers read once, when they are loaded: call it before.

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
class _StoredWeights:
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
        progress: Callable[[Progress], None] = lambda event: None,
        resolved: Callable[[Sequence[Pass], ModelIR], None] = lambda passes, target: None,
        finish: Callable[[Outcome, Path], None] = lambda outcome, folder: None,
    ) -> None:
        self.job, self.progress, self.resolved, self.finish = job, progress, resolved, finish
        self.out = job.out.resolve()
        self.target = chain.rewrite(job.source, job.passes)
        devices = compute_devices(job.device)
        dtype = compute_dtype(job.source.dtype, job.compute_dtype, devices[0])
        self.source = self.dense = source_model(job.source, job.folder, dtype, devices)
        self.elsewhere: set[str] = set()
        self.steps = Steps(job.work, progress, self.elsewhere)
        self.context = RunContext(job.work, devices, dtype, no_tokens(), self.steps)
        self.passes: list[Pass] = []
        self.text: Path | None = None
        self.measured: Measured | None = None

    def run(self, executor: Executor) -> Outcome:
        """Carry out every piece of the work in the graph's order; each makes what is not there yet."""
        calibrated = chain.needs_text(self.job.passes, self.target)
        self._check_disk(calibrated)
        if executor.apart:
            self._make_elsewhere(executor, calibrated)
        work = self._execution(calibrated)
        work.run(self.steps.finished)
        outcome = Outcome(
            out=self.job.out,
            passes=tuple(self.passes),
            target=self.target,
            steps=tuple(step for piece in work.order() for step in work.steps(piece)),
            tensor_bytes=self.target.tensor_bytes,
            calibration_digest=tokens_digest(self.context.text) if calibrated else None,
            evaluation_digest=tokens_digest(self.held_out),
            measured=self.measured,
            losses=self.stored.losses,
            unseen=self.stored.unseen,
        )
        self.finish(outcome, self.folder)
        if self.folder != self.out:
            publish(self.folder, self.out)
        return outcome

    def _make_elsewhere(self, executor: Executor, calibrated: bool) -> None:
        """Have an executor's processes make the steps, a task each piece of the graph; what they made is found by its keys."""
        import torch

        threads, began = torch.get_num_threads(), time.monotonic()
        graph = job_graph(self.job.passes, needs_text=calibrated)
        pieces = Execution(graph, {name: partial(advance, self.job, name, threads) for name in graph.names})
        choices = {pass_node(i, pass_) for i, pass_ in enumerate(self.job.passes, start=1)}
        for number, ended in enumerate(pieces.ended(executor), start=1):
            self.progress(Progress("tasks", number, len(graph.names), ended.name, time.monotonic() - began))
            self.elsewhere |= {step.key for step in ended.value}
            if choices and not (choices := choices - {ended.name}):  # what needs them begins when the next is asked for
                passes = _Run(self.job).chosen()
                self.resolved(passes, chain.rewrite(self.job.source, passes))

    def chosen(self) -> tuple[Pass, ...]:
        """Return the chain with the choices that others have measured."""
        last = pass_node(len(self.job.passes), self.job.passes[-1])
        self._execution(chain.needs_text(self.job.passes, self.target)).upto(last).run(self.steps.finished)
        return tuple(self.passes)

    def advance(self, name: str) -> tuple[Step, ...]:
        """Carry out one piece and what it needs, which is there already. Returns the steps that were not."""
        self._execution(chain.needs_text(self.job.passes, self.target)).upto(name).run(self.steps.finished)
        return tuple(step for step in self.steps.finished if not step.reused)

    def _execution(self, calibrated: bool) -> Execution:
        return Execution(job_graph(self.job.passes, needs_text=calibrated), self._work(calibrated))

    def _work(self, calibrated: bool) -> dict[str, Callable[[], None]]:
        """What each node of the job's graph runs. `calibrated`: whether the chain looks at text."""
        passes = self.job.passes
        text = {CALIBRATION_TEXT: self._calibration_text} if calibrated else {}
        choices = {pass_node(i, pass_): partial(self._choose, pass_) for i, pass_ in enumerate(passes, start=1)}
        return {
            **text,
            EVALUATION_TEXT: self._evaluation_text,
            **choices,
            maker_node(passes): self._make,
            ASSEMBLE: self._assemble,
            EVALUATE: self._evaluate,
        }

    def _calibration_text(self) -> None:
        self.text = token_file(self.context, self.job.folder, CALIBRATION_TEXT, self.job.calibration)
        self.context = self.context.on_text(read_tokens(self.text))

    def _evaluation_text(self) -> None:
        self.held_out = read_tokens(token_file(self.context, self.job.folder, EVALUATION_TEXT, self.job.evaluation))

    def _choose(self, pass_: Pass) -> None:
        """Make the choice that a pass leaves open, on what the passes before it have left."""
        chosen, self.dense = resolved_pass(pass_, self.dense, self.context)
        self.passes.append(chosen)

    def _make(self) -> None:
        """The quantized weights of the chain, every choice made: by an outside tool, or in one walk."""
        self.target = chain.rewrite(self.job.source, self.passes)
        self.resolved(self.passes, self.target)
        tool = chain.outside(self.passes)
        self.stored = self._walk() if tool is None or self.text is None else self._outside(tool, self.text)

    def _walk(self) -> _StoredWeights:
        """The chain in one walk over the source as the structural passes left it."""
        from passes.walk.state import WalkState
        from passes.walk.walk import Walk, units

        method, tokens = chain.method(self.passes), self.context.text
        digest = tokens_digest(tokens) if len(tokens) else ""
        key = content_key(*self.dense.identity, "walk", chain.to_json(self.passes), digest, repr(method))
        folder = self.job.work / f"walk-{key}"
        names = " → ".join(pass_.text() for pass_ in self.passes)

        def make(report: Report) -> None:
            def block(done: int, total: int, detail: str = "") -> None:
                report(done, total, ", ".join(filter(None, (names, detail))))

            inside = self.context.part(folder, block)
            Walk(self.dense, self.target, method, inside, tuning=chain.tuning(self.passes)).run()

        self.steps.run("walk", key, folder.exists() and WalkState(folder).done == units(self.target), make)
        shutil.rmtree(folder / "hidden", ignore_errors=True)
        reports = WalkState(folder).reports
        return _StoredWeights(
            sorted((folder / "shards").glob("*.safetensors")),
            key,
            {f"{report.block}.{name}": loss for report in reports for name, loss in report.losses.items()},
            tuple(f"{report.block}.{name}" for report in reports for name in report.unseen),
        )

    def _outside(self, pass_: Pass, text: Path) -> _StoredWeights:
        """The pass of an outside tool, on a folder with the dense model as the passes before it left it."""
        tool, tokens = chain.find_backend(pass_.backend), self.context.text
        python = backend_python(tool)
        by = f"{tool.name} {version(tool, python)}"
        folder = self.dense.folder(self.context)
        key = content_key(*self.dense.identity, "outside", by, chain.to_json([pass_]), tokens_digest(tokens))
        task = Task(
            pass_,
            folder.resolve(),
            text.resolve(),
            len(tokens),
            tokens.shape[1],
            self.job.work.resolve() / f"{tool.name}-{key}",
            visible_cards(self.job.device),
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
        return _StoredWeights(sorted(shards.glob("*.safetensors")), key)

    def _assemble(self) -> None:
        """The folder that holds the result: `out` where it is published already, else the one beside it."""
        self.key = key = content_key("assemble", self.stored.key, code_digest())
        published = holds(self.out, key, self.target)
        self.folder = folder = self.out if published else partial_of(self.out)

        def make(report: Report) -> None:
            parts = Assembly(self.passes, self.target, self.dense, self.stored.shards, self.job.calibration)
            assemble(folder, parts, key)

        self.steps.run("assemble", key, published or holds(folder, key, self.target), make)

    def _can_be_evaluated(self) -> bool:
        """Whether this project reads the weights back (of some formats it knows the sizes only; what an engine rounds while it
        loads is not there yet) and runs the blocks.
        """
        blocks = (block for block, _ in self.target.decoder.counts)
        known = all(linear.storage.decodes for block in blocks for linear in block.linears)
        return known and self.target.load_time.name == "none" and unrunnable(self.job.source) is None

    def _evaluate(self) -> None:
        """How far the result is from its source, where its weights can be read back."""
        if not self._can_be_evaluated():
            return
        from passes.blocks.decoded_weights import decoded_model
        from passes.measure.evaluate import Measured, evaluate

        key = content_key("evaluate", self.key, tokens_digest(self.held_out), code_digest())

        def make(inside: RunContext) -> dict[str, Any]:
            result = decoded_model(self.dense.ir, self.target, self.folder, inside.dtype)
            return asdict(evaluate(self.source, result, inside))

        judging = self.context.on_text(self.held_out).on_one_device()
        self.measured = Measured(**judging.measured("evaluate", "evaluate", key, make))

    def _check_disk(self, calibrated: bool) -> None:
        """Room for what the work keeps, asked once a job: what it has kept by the time of a second run is part of that.

        The output shares its files with the walk's where both are on one disk.
        """
        text = self.job.calibration if calibrated else None
        job = self.job
        asked = content_key(
            "disk", self.source.identity, chain.to_json(job.passes), job.calibration, job.evaluation, str(self.out)
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


def source_model(ir: ModelIR, folder: Path, dtype: torch.dtype, devices: Sequence[torch.device]) -> DenseModel:
    """Return the model that a run begins with, and what every step on it depends on."""
    return DenseModel(ir, Checkpoint(folder), tuple(source_identity(folder, dtype, devices)))


def resolved(passes: Sequence[Pass], source: DenseModel, run: RunContext) -> tuple[tuple[Pass, ...], DenseModel]:
    """Return the chain with every choice made, and the dense model that it leaves of `source`."""
    chosen, dense = [], source
    for pass_ in passes:
        pass_, dense = resolved_pass(pass_, dense, run)
        chosen.append(pass_)
    return tuple(chosen), dense


def resolved_pass(pass_: Pass, dense: DenseModel, run: RunContext) -> tuple[Pass, DenseModel]:
    """Return a pass with its choice made on the dense model that the passes before it have left, and the dense model after it.

    Measurements are kept in the work folder under their keys and serve any budget.
    """
    chosen = pass_.resolve(dense, run.on_one_device())
    after = chosen.dense(dense, run)
    return chosen, dense if after is dense else after.descends_from(dense)


def no_tokens() -> torch.Tensor:
    """Return the text where nothing looks at any: `[0, 1]`."""
    import torch

    return torch.zeros(0, 1, dtype=torch.int64)


def _same_disk(work: Path, out: Path) -> bool:
    return work.stat().st_dev == partial_of(out).stat().st_dev
