"""What a walk has finished: blocks written, hidden states to go on from. Survives kill -9 at any moment.

    <folder>/state.json                      {"done": blocks finished, "blocks": [what each reported]}
    <folder>/hidden/00012/                   the inputs of block 12, i.e. what block 11 made of every batch; on a card every minute only
    <folder>/shards/model-00012.safetensors  the stored tensors of block 11

Order of writes for a block: the next hidden states, its shard, then the state. Killed in between, the block is done again
from the same inputs and gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from passes.errors import InputError
from passes.files.atomic import read_json, write_json
from passes.files.os_errors import clear_disk_errors
from passes.ir.readers.headers import is_whole
from passes.record import dataclass


@dataclass(frozen=True, slots=True)
class BlockReport:
    """What the walk saw in one block."""

    block: int
    losses: dict[str, float]
    """Per matrix: the algorithm's own loss on the calibration text."""
    seconds: float
    unseen: Sequence[str] = ()
    """Matrices that no calibration token reached (experts never routed to): rounded without error compensation."""


class WalkState:
    """The folder in which a walk keeps its progress."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shards = folder / "shards"
        with clear_disk_errors(folder):
            self.shards.mkdir(parents=True, exist_ok=True)
        self.reports = self._saved()

    @property
    def done(self) -> int:
        """Number of finished blocks."""
        return len(self.reports)

    def shard(self, index: int) -> Path:
        """Name the file that a block's tensors are stored in; one beyond the last: the head's."""
        return self.shards / f"model-{index + 1:05d}.safetensors"

    def back_to(self, block: int) -> None:
        """Forget what was finished from a block on: it is done again."""
        self.reports = self.reports[:block]

    def finish_block(self, report: BlockReport) -> None:
        """Record a block whose shard and outputs are written."""
        self.reports.append(report)
        write_json(self._path, {"done": self.done, "blocks": [asdict(each) for each in self.reports]})

    def _saved(self) -> list[BlockReport]:
        """What was finished; nothing where a file of it is missing or damaged, as after the machine lost its power."""
        try:
            reports = [BlockReport(**report) for report in read_json(self._path, "state of a walk")["blocks"]]
        except (InputError, KeyError, TypeError):
            return []
        return reports if all(is_whole(self.shard(report.block)) for report in reports) else []

    @property
    def _path(self) -> Path:
        return self.folder / "state.json"
