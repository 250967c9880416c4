"""What the stages share: the model, its texts, and lines of the report with their goals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from benchmarks import real_models
from passes.blocks.dense_model import DenseModel
from passes.ir.sources import open_model
from passes.run.execute import calm_libraries, source_model
from passes.steps.context import RunContext
from passes.steps.progress import Progress
from passes.steps.step import Steps
from passes.text.source import PYTHON_REFERENCE, TextSource
from passes.text.token_file import read_tokens, token_file

#: What is kept of a run, so that one that was killed goes on: steps under their keys.
WORK = real_models.CACHE / "prune-distill"
#: Text that the model writes itself, and the text that everything is judged on.
CALIBRATION = TextSource("self", 64, 256)
EVALUATION = TextSource(PYTHON_REFERENCE, 8, 256)


@dataclass(frozen=True)
class Bench:
    """SmolLM2 in single precision on the processor, as `source`; `run` with its calibration text; `judging` `[S, T]`."""

    source: DenseModel
    run: RunContext
    judging: torch.Tensor

    def within(self, name: str) -> RunContext:
        """Return the run with a folder of its own for what a stage keeps."""
        folder = self.run.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        return self.run.part(folder)


@dataclass(frozen=True)
class Line:
    """A line of the report: what was measured, and the goal, a bound from above (None: told only)."""

    name: str
    value: float
    unit: str
    at_most: float | None = None

    @property
    def met(self) -> bool:
        """Whether the goal is met."""
        return self.at_most is None or self.value <= self.at_most

    def text(self) -> str:
        """Return the line for people."""
        goal = "" if self.at_most is None else f"   goal: at most {self.at_most:g}   {'met' if self.met else 'missed'}"
        return f"{self.name:58} {self.value:9.4f} {self.unit:12}{goal}"


@contextmanager
def opened(work: Path = WORK) -> Iterator[Bench]:
    """Hold the bench: model and texts, made where they are not there yet."""
    calm_libraries()
    torch.set_num_threads(min(2, torch.get_num_threads()))
    work.mkdir(parents=True, exist_ok=True)
    source = open_model(real_models.smollm2())
    files = source.materialize(work)
    device, dtype = torch.device("cpu"), torch.float32
    nothing = torch.zeros(0, 1, dtype=torch.int64)
    run = RunContext(work, (device,), dtype, nothing, Steps(work, _told()))
    calibration = read_tokens(token_file(run, files, "calibration text", CALIBRATION))
    judging = read_tokens(token_file(run, files, "evaluation text", EVALUATION))
    yield Bench(source_model(source.ir, files, dtype, (device,)), replace(run, text=calibration), judging)


def _told() -> Callable[[Progress], None]:
    said: set[str] = set()

    def tell(event: Progress) -> None:
        if event.step not in said:
            said.add(event.step)
            print(f"  … {event.step}", flush=True)

    return tell
