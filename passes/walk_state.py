"""What a walk has finished: blocks written, hidden states to go on from. Survives kill -9 at any moment.

    <folder>/state.json                      {"done": blocks finished, "blocks": [what each reported]}
    <folder>/hidden-00012.safetensors        hidden states after block 11, i.e. the inputs of block 12
    <folder>/shards/model-00012.safetensors  the stored tensors of block 12

Order of writes for a block: its shard, the next hidden states, then the state. Killed in between, the block is done again
from the same inputs and gives the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from passes.checkpoint import clear_disk_errors, write_json, write_shard

if TYPE_CHECKING:
    import torch


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
        self.reports: list[BlockReport] = []
        if self._path.exists():
            self.reports = [BlockReport(**report) for report in json.loads(self._path.read_text())["blocks"]]

    @property
    def done(self) -> int:
        """Number of finished blocks."""
        return len(self.reports)

    def hidden(self) -> list[torch.Tensor] | None:
        """The inputs of the next block, batch by batch; None at the start."""
        path = self._hidden(self.done)
        if not path.exists():
            return None
        from safetensors.torch import load_file

        saved = load_file(path)
        return [saved[str(index)] for index in range(len(saved))]

    def finish_block(self, report: BlockReport, hidden: Sequence[torch.Tensor]) -> None:
        """Record a block whose shard is written. `hidden`: its outputs, empty when nothing needs them."""
        if hidden:
            write_shard(self._hidden(self.done + 1), {f"{index}": tensor for index, tensor in enumerate(hidden)})
        self.reports.append(report)
        write_json(self._path, {"done": self.done, "blocks": [asdict(each) for each in self.reports]})
        self._hidden(self.done - 1).unlink(missing_ok=True)

    def drop_hidden(self) -> None:
        """Forget the hidden states once the last block is through."""
        for path in self.folder.glob("hidden-*.safetensors"):
            path.unlink()

    @property
    def _path(self) -> Path:
        return self.folder / "state.json"

    def _hidden(self, block: int) -> Path:
        return self.folder / f"hidden-{block:05d}.safetensors"
