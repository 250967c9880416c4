"""What is to be run, what is told on the way, and what came of it."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING

from passes.base import Pass
from passes.blocks.devices import AUTO
from passes.ir.model import ModelIR
from passes.record import dataclass
from passes.steps.progress import Step
from passes.text.source import PYTHON_REFERENCE, TextSource

if TYPE_CHECKING:
    from passes.measure.evaluate import Measured


@dataclass(frozen=True)
class Job:
    """What is to be run: `passes` on the model in `folder` described by `source`, into `out`; scratch space in `work`.

    `device`: what computes, by a name that `passes.blocks.devices.compute_devices` knows.
    """

    source: ModelIR
    folder: Path
    passes: tuple[Pass, ...]
    out: Path
    work: Path
    calibration: TextSource = TextSource()
    evaluation: TextSource = TextSource(PYTHON_REFERENCE, 16, 512)
    compute_dtype: str = "auto"
    device: str = AUTO


@dataclass(frozen=True)
class Outcome:
    """The finished result: where it is, what it cost, how far it is from its source.

    `passes`: the chain as it was run, choices that had to be measured (which blocks to drop) filled in.
    """

    out: Path
    passes: tuple[Pass, ...]
    target: ModelIR
    steps: tuple[Step, ...]
    tensor_bytes: int
    calibration_digest: str | None
    evaluation_digest: str
    measured: Measured | None
    """None where nothing here decodes the format (or an engine rounds while it loads) or runs the blocks."""
    losses: dict[str, float] = field(default_factory=dict)
    unseen: tuple[str, ...] = ()
    """Matrices (experts) that no calibration token reached: rounded to nearest."""
