"""What each batch of a text brings into each block: on the card that computes, else in pinned memory, else on disk, by what fits.

    <folder>/00012/00003.safetensors    what batch 3 brings into block 12

A file appears under its name when it is whole, so that after kill -9 work goes on at a block whose inputs are whole. Where files are not
the place, who uses this has the inputs of a block written (`save`) as often as it does not want to lose more than that; it drops what is
behind it.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from passes.blocks.devices import free_bytes, pinned_copy
from passes.blocks.memory import CARD_SHARE, HOST_SHARE
from passes.files.checkpoint import Checkpoint, write_shard
from passes.host_memory import memory_available_bytes
from passes.ir.readers.headers import is_whole

if TYPE_CHECKING:
    import torch

    from passes.blocks.decoder import Decoder

_NAME = "hidden"


class Place(Enum):
    """Where hidden states are between two blocks."""

    CARD = "card"
    HOST = "pinned memory"
    DISK = "disk"


def place_of(states_bytes: int, devices: Sequence[torch.device]) -> Place:
    """Return where so many bytes of hidden states go while these devices compute; to disk where the processor does, whose memory is for
    the weights.
    """
    cards = [device for device in devices if device.type == "cuda"]
    if not cards:
        return Place.DISK
    free = len(cards) * min(free_bytes(card) for card in cards)  # each has its share of the batches
    if states_bytes <= free // CARD_SHARE:
        return Place.CARD
    return Place.HOST if states_bytes <= memory_available_bytes() // HOST_SHARE else Place.DISK


class HiddenStates:
    """The hidden states of `count` batches between the blocks of a model.

    `moves`: in memory a batch takes with it what it brought into the block before; on disk that stays until it is dropped, as a run that
    was killed goes on there.
    """

    def __init__(self, folder: Path, count: int, place: Place = Place.DISK, *, moves: bool = False) -> None:
        self.folder, self.place, self._moves = folder, place, moves
        self._count = count
        self._held: dict[int, dict[int, torch.Tensor]] = {}
        self._copying: set[torch.device] = set()

    def __len__(self) -> int:
        return self._count

    @staticmethod
    def on_disk(folder: Path, block: int) -> Path:
        """Return the folder in which lies what batches bring into a block."""
        return folder / f"{block:05d}"

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
        """Return what a batch brings into a block, `[B, T, D]`, wherever it is kept."""
        self._settle()
        if (states := self._held.get(block, {}).get(batch)) is None:
            states = Checkpoint.of_files([self._path(block, batch)]).read([_NAME])[_NAME]
        return states

    def write(self, block: int, batch: int, states: torch.Tensor) -> None:
        """Keep what a batch brings into a block."""
        if self.place is Place.DISK:
            self._write(block, batch, states)
        else:
            if self.place is Place.HOST:
                self._copying.add(states.device)
                states = pinned_copy(states)
            self._held.setdefault(block, {})[batch] = states
            if self._moves:
                self._held.get(block - 1, {}).pop(batch, None)

    def save(self, blocks: range) -> None:
        """Have what the batches bring into some blocks on disk, and of no others."""
        self._settle()
        for block in blocks:
            for batch, states in self._held.get(block, {}).items():
                if not is_whole(self._path(block, batch)):
                    self._write(block, batch, states)
        for folder in self.folder.glob("[0-9]*"):
            if int(folder.name) not in blocks:
                shutil.rmtree(folder, ignore_errors=True)

    def whole(self, block: int) -> bool:
        """Return whether the inputs of a block are there for every batch."""
        held = self._held.get(block, {})
        return all(batch in held or is_whole(self._path(block, batch)) for batch in range(self._count))

    def last(self, depth: int) -> int:
        """Return the last block of a decoder of `depth` whose inputs are whole (`depth`: what leaves the last one), else 0."""
        return next((block for block in range(depth, 0, -1) if self.whole(block)), 0)

    def drop(self, block: int) -> None:
        """Forget the inputs of a block; what was saved stays until something else is."""
        self._held.pop(block, None)
        if self.place is Place.DISK:
            shutil.rmtree(self._path(block, 0).parent, ignore_errors=True)

    def clear(self) -> None:
        """Forget everything."""
        self._held.clear()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _settle(self) -> None:
        """Wait for the copies into pinned memory: who reads them may be the processor, or another card."""
        import torch

        while self._copying:
            torch.cuda.current_stream(self._copying.pop()).synchronize()

    def _write(self, block: int, batch: int, states: torch.Tensor) -> None:
        path = self._path(block, batch)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_shard(path, {_NAME: states})

    def _path(self, block: int, batch: int) -> Path:
        return self.on_disk(self.folder, block) / f"{batch:05d}.safetensors"
