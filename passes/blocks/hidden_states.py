"""What each batch of a text brings into each block, on disk: memory holds the batches at work only.

    <folder>/00012/00003.safetensors    what batch 3 brings into block 12

A file appears under its name when it is whole, so that after kill -9 work goes on at a block whose inputs are whole. Who uses
this drops what is behind it.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from passes.files.checkpoint import Checkpoint, write_shard
from passes.ir.readers.headers import is_whole

if TYPE_CHECKING:
    import torch

    from passes.blocks.decoder import Decoder

_NAME = "hidden"


class HiddenStates:
    """The hidden states of `count` batches between the blocks of a model."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder = folder
        self._count = count

    def __len__(self) -> int:
        return self._count

    def embed(self, decoders: Sequence[Decoder], batches: Sequence[torch.Tensor], block: int = 0) -> None:
        """Keep what batches of token ids `[B, T]` bring into the first block.

        Batch b runs on decoder b mod n, which notes how blocks are called.

        `block`: where work goes on; nothing but the calls is wanted where that is not the first one.
        """
        for card, decoder in enumerate(decoders):
            for number, states in enumerate(decoder.embed(batches[card :: len(decoders)])):
                if block == 0:
                    self.write(0, card + number * len(decoders), states)

    def read(self, block: int, batch: int) -> torch.Tensor:
        """Return what a batch brings into a block, `[B, T, D]`, on the processor."""
        states: torch.Tensor = Checkpoint.of_files([self._path(block, batch)]).read([_NAME])[_NAME]
        return states

    def write(self, block: int, batch: int, states: torch.Tensor) -> None:
        """Keep what a batch brings into a block."""
        path = self._path(block, batch)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_shard(path, {_NAME: states})

    def whole(self, block: int) -> bool:
        """Return whether the inputs of a block are there for every batch."""
        return all(is_whole(self._path(block, batch)) for batch in range(self._count))

    def last(self, depth: int) -> int:
        """Return the last block of a decoder of `depth` whose inputs are whole (`depth`: what leaves the last one), else 0."""
        return next((block for block in range(depth, 0, -1) if self.whole(block)), 0)

    def drop(self, block: int) -> None:
        """Forget the inputs of a block."""
        shutil.rmtree(self._path(block, 0).parent, ignore_errors=True)

    def clear(self) -> None:
        """Forget everything."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, block: int, batch: int) -> Path:
        return self.folder / f"{block:05d}" / f"{batch:05d}.safetensors"
