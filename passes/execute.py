"""Runs a chain of passes on a model's weights: content-addressed steps, resume, progress, the size invariant.

    text ──► measure ──► walk, or an outside tool ──► assemble ──► evaluate

Each step has a key: sha256 over its inputs, its options and the code that computes it. What a key has made is kept under
`<work>/<step>-<key>` and used again, so a second run does nothing, a changed option redoes only what follows from it, and
two plans share their common steps. The output folder appears under its name only when it is whole and every tensor in it
is the one that the description predicts: name, dtype, shape, bytes. The source is only ever read.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from passes import graph
from passes.assemble import MARKER, assemble, differences
from passes.backends import find_backend
from passes.backends.backend import Task
from passes.backends.result import described, write_shards
from passes.backends.run import backend_python, run, version
from passes.base import Pass
from passes.calibration import TextSource, refuse_same_text, token_blocks, tokens_digest
from passes.checkpoint import Checkpoint, clear_disk_errors, write_json, write_shard
from passes.content_key import code_digest, content_key, file_identity, folder_identity
from passes.devices import compute_devices, compute_dtype
from passes.ir.model import ModelIR
from passes.job import Job, Outcome, Progress, Step
from passes.lock import only_one
from passes.measure import Meter
from passes.reason import DoesNotFitError, InputError, TightfitError
from passes.recipe import method_of
from passes.resolve import Resolver, unmeasured

if TYPE_CHECKING:
    import torch

    from passes.evaluate import Measured


def execute(job: Job, progress: Callable[[Progress], None] = lambda event: None) -> Outcome:
    """Run a job, or what is left of it. Raises TightfitError with a remedy; what was finished is kept for the next run."""
    _check(job)
    calm_libraries()
    with _interruptions():
        return _Run(job, progress).run()


def calm_libraries() -> None:
    """What torch and transformers read once, when they are loaded: call it before.

    Idle OpenMP threads sleep, not spin, while BLAS (Hessians) has threads of its own at work: seen on 2 cores, a third less CPU
    time a block. Bars of others stay away from ours. Garbage is collected again where the command line had it rest.
    """
    gc.enable()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TQDM_DISABLE", "1")


#: What the words of torch and of the kernel for a lack of memory have in them.
_NO_MEMORY = ("out of memory", "can't allocate memory", "Cannot allocate memory", "ALLOC_FAILED")


def _check(job: Job) -> None:
    """Refuse before any work is done whatever can be refused."""
    reasons = graph.illegal(job.source, job.passes)
    if reasons:
        raise InputError(reasons[0].message, remedy=reasons[0].remedy)
    for one in job.passes:
        missing = one.missing()
        if missing:
            raise InputError(
                f"{one.text()} can be planned but not applied: {missing}",
                remedy="choose another pass, or an outside backend",
            )
    if (made := graph.outside(job.passes)) is not None:
        tool = find_backend(made.backend)
        version(tool, backend_python(tool))
    out, source = job.out.resolve(), job.folder.resolve()
    if out == source or source in out.parents or out in source.parents:
        raise InputError(
            f"the output folder {job.out} overlaps the source {job.folder}", remedy="choose another output folder"
        )
    if job.out.exists() and not job.out.is_dir():
        raise InputError(f"{job.out} is a file", remedy="choose another output folder")
    if job.out.is_dir() and any(job.out.iterdir()) and not (job.out / MARKER).exists():
        raise InputError(
            f"{job.out} holds files that are not a result of tightfit",
            remedy="choose another output folder, or empty it",
        )
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

    def __init__(self, job: Job, progress: Callable[[Progress], None]) -> None:
        self.job, self.progress = job, progress
        self.target = graph.rewrite(job.source, job.passes)
        self.devices = compute_devices()
        self.device = self.devices[0]
        self.dtype = compute_dtype(job.source.dtype, job.compute_dtype)
        self.method = method_of(job.passes)
        self.steps: list[Step] = []

    def run(self) -> Outcome:
        """Every step in order; each makes what is not there yet."""
        with clear_disk_errors(self.job.work):
            self.job.work.mkdir(parents=True, exist_ok=True)
        with only_one(self.job.work):
            return self._run()

    def _run(self) -> Outcome:
        self._check_disk()
        tool = graph.outside(self.job.passes)
        native = self.method.needs_hessian or self.target.calibrated_scales or unmeasured(self.job.passes)
        calibrated = native or tool is not None
        text = self._text("calibration", self.job.calibration) if calibrated else None
        tokens = _tokens(text) if text is not None else _no_tokens()
        held_out = _tokens(self._text("evaluation", self.job.evaluation))
        resolver = Resolver(
            self.job.source, Checkpoint(self.job.folder), tokens, self.job.work, self.dtype, self.device, self._identity(),
            self._measure,
        )  # fmt: skip
        self.passes = tuple(resolver.resolved(self.job.passes))
        self.dense, self.weights = resolver.dense, resolver.weights
        self.target = graph.rewrite(self.job.source, self.passes)
        made = (
            self._outside(tool, text, tokens)
            if tool is not None and text is not None
            else self._walk(self.passes, self.target, tokens)
        )
        out_key = self._assemble(self.job.out, self.target, self.passes, made)
        measured = self._evaluate(held_out, out_key) if _decodes(self.target) else None
        return Outcome(
            out=self.job.out,
            passes=self.passes,
            target=self.target,
            steps=tuple(self.steps),
            tensor_bytes=self.target.tensor_bytes,
            calibration_digest=tokens_digest(tokens) if calibrated else None,
            evaluation_digest=tokens_digest(held_out),
            measured=measured,
            losses=made.losses,
            unseen=made.unseen,
        )

    def _text(self, role: str, source: TextSource) -> Path:
        """The file with a text's token blocks."""
        identity = file_identity(Path(source.dataset))
        key = content_key("text", asdict(source), identity, folder_identity(self.job.folder))
        path = self.job.work / f"text-{key}.safetensors"

        def make() -> None:
            write_shard(path, {"input_ids": token_blocks(source, self.job.folder)})

        self._step(f"{role} text", key, path.exists(), make)
        return path

    def _identity(self) -> list[object]:
        """What every step on this source depends on besides its own options."""
        return [
            folder_identity(self.job.folder),
            str(self.dtype),
            [device.type for device in self.devices],
            code_digest(),
        ]

    def _measure(self, name: str, key: str, done: bool, make: Callable[[Callable[[int, int], None]], None]) -> None:
        """A step that counts its own units."""
        meter = Meter()
        report: Callable[[int, int], None] = lambda n, total: self.progress(Progress(name, n, total, "", meter.seconds))  # noqa: E731
        self._step(name, key, done, lambda: make(report))

    def _walk(self, passes: Sequence[Pass], target: ModelIR, tokens: torch.Tensor) -> _Made:
        """A chain in one walk over the source as the structural passes left it."""
        from passes.walk import Walk, units
        from passes.walk_state import BlockReport, WalkState

        method = method_of(passes)
        key = content_key(
            "walk", self._identity(), graph.to_json(passes), tokens_digest(tokens) if len(tokens) else "", repr(method)
        )
        folder = self.job.work / f"walk-{key}"
        meter = Meter()

        def report(block: BlockReport, blocks: int) -> None:
            detail = f"loss {sum(block.losses.values()):.4g}" if block.losses else ""
            self.progress(Progress("walk", block.block + 1, blocks, detail, meter.seconds))

        def make() -> None:
            Walk(
                self.dense, target, self.weights, method, tokens, folder, self.devices, self.dtype, progress=report
            ).run()  # fmt: skip

        self._step("walk", key, folder.exists() and WalkState(folder).done == units(target), make)
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
            dense = graph.rewrite(self.job.source, before)
            folder = self.job.work / f"dense-{content_key('dense', self._identity(), graph.to_json(before))}"
            self._assemble(folder, dense, before, self._walk(before, dense, _no_tokens()))
        tool = find_backend(one.backend)
        python = backend_python(tool)
        by = f"{tool.name} {version(tool, python)}"
        key = content_key("outside", by, self._identity(), graph.to_json([*before, one]), tokens_digest(tokens))
        task = Task(
            one,
            folder.resolve(),
            text.resolve(),
            len(tokens),
            tokens.shape[1],
            self.job.work.resolve() / f"{tool.name}-{key}",
        )
        shards = task.work / "shards"
        finished = task.work / "finished"

        def make(report: Callable[[int, int], None]) -> None:
            run(tool, python, task, report)
            shutil.rmtree(shards, ignore_errors=True)
            write_shards(described(self.target, task.out), task.out, shards)
            finished.touch()

        self._measure(by, key, finished.exists(), make)
        self.target = described(self.target, task.out)
        return _Made(sorted(shards.glob("*.safetensors")), key)

    def _assemble(self, out: Path, target: ModelIR, passes: Sequence[Pass], made: _Made) -> str:
        key = content_key("assemble", made.key, code_digest())
        marker = out / MARKER
        done = marker.exists() and json.loads(marker.read_text()).get("key") == key and not differences(out, target)

        def make() -> None:
            assemble(out, target, passes, made.shards, self.job.folder, self.job.calibration, key)

        self._step("assemble", key, done, make)
        return key

    def _evaluate(self, tokens: torch.Tensor, out_key: str) -> Measured:
        from passes.decoded import DecodedCheckpoint, as_dense
        from passes.evaluate import Measured, Side, evaluate

        key = content_key("evaluate", out_key, tokens_digest(tokens), code_digest())
        path = self.job.work / f"evaluate-{key}.json"
        meter = Meter()

        def make() -> None:
            source = Side(self.job.source, Checkpoint(self.job.folder))
            decoded = DecodedCheckpoint(Checkpoint(self.job.out), self.target, self.dtype)
            result = Side(as_dense(self.dense, self.target), decoded)
            measured = evaluate(
                source, result, tokens, self.dtype, self.device,
                progress=lambda done, total: self.progress(Progress("evaluate", done, total, "", meter.seconds)),
            )  # fmt: skip
            write_json(path, asdict(measured))

        self._step("evaluate", key, path.exists(), make)
        return Measured(**json.loads(path.read_text()))

    def _step(self, name: str, key: str, done: bool, make: Callable[[], None]) -> None:
        """Run `make` unless its result is there; remember what it took."""
        record = self.job.work / f"cost-{key}.json"
        if not done:
            self.progress(Progress(name, 0, 1, "", 0.0))
            meter = Meter()
            make()
            write_json(record, {"seconds": meter.seconds, "peak_bytes": meter.peak_bytes})
        cost = json.loads(record.read_text()) if record.exists() else {}
        self.steps.append(Step(name, key, float(cost.get("seconds", 0)), int(cost.get("peak_bytes", 0)), done))

    def _check_disk(self) -> None:
        """The walk's shards, two generations of hidden states; the output shares its files with the walk's where it can."""
        source = self.job.calibration
        hidden = 2 * source.samples * source.length * self.job.source.hidden_size * 4
        needed = self.target.tensor_bytes * (1 if _same_disk(self.job.work, self.job.out) else 2) + hidden
        free = shutil.disk_usage(self.job.work).free + _folder_bytes(self.job.work)
        if needed > free:
            raise DoesNotFitError(
                f"{self.job.work} has {free / 2**20:,.0f} MiB free, the work needs {needed / 2**20:,.0f} MiB",
                remedy="free some space, or name a work folder on another disk",
            )


def _tokens(path: Path) -> torch.Tensor:
    tokens: torch.Tensor = Checkpoint.of_files([path]).read(["input_ids"])["input_ids"]
    return tokens


def _decodes(target: ModelIR) -> bool:
    """Whether this project reads the weights back; of EXL3 it knows the sizes only."""
    return all(linear.storage.kind != "exl3" for block, _ in target.decoder.counts for linear in block.linears)


def _no_tokens() -> torch.Tensor:
    import torch

    return torch.zeros(0, 1, dtype=torch.int64)


def _same_disk(work: Path, out: Path) -> bool:
    parent = next(folder for folder in (out, *out.resolve().parents) if folder.exists())
    return work.stat().st_dev == parent.stat().st_dev


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@contextmanager
def _interruptions() -> Iterator[None]:
    """Ctrl-C and a lack of memory end in one clear message; the next run resumes."""
    try:
        yield
    except KeyboardInterrupt as error:
        raise TightfitError(
            "interrupted", remedy="run the same command again; it resumes at the first unfinished block"
        ) from error
    except (MemoryError, RuntimeError) as error:
        text = str(error)
        if isinstance(error, MemoryError) or any(words in text for words in _NO_MEMORY):
            raise DoesNotFitError(
                "out of memory while working",
                remedy="use fewer calibration samples, or a machine with more memory; a second run resumes",
            ) from error
        raise
