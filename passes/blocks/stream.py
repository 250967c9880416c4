"""A text on its way through the blocks of a dense model: the one loop over blocks, and the one rule of resuming.

    stream = BlockStream(dense, run.part(folder))
    for block in stream.blocks(stream.resume(done)):
        with block.loaded() as replicas:      # the block with its weights on every device
            block.run(replicas)               # every batch through it
        record(block.index)

Who goes through the blocks records one when its outputs are whole and what it wanted of it is kept; the stream drops the inputs behind
after that. What is recorded without the inputs to go on from is begun again. Where the inputs are not on disk they are written there every
minute, so that a run that was killed loses no more.

Weights are loaded in the caller's `with`, so that they outlive neither an exception nor the block. Without a device there is no text: the
blocks go by, and work goes on by its record alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from passes.blocks.decoder import CacheMaxima, Decoder
from passes.blocks.dense_model import DenseModel
from passes.blocks.hidden_states import HiddenStates, Place, place_of
from passes.blocks.memory import BATCH_TOKENS
from passes.ir.model import ModelIR
from passes.record import dataclass
from passes.steps.context import RunContext
from passes.steps.meter import give_back_freed

if TYPE_CHECKING:
    import torch


#: Seconds after which hidden states that are not on disk are written there.
_SAVED_EVERY = 60.0


def batches_of(text: torch.Tensor, batch_tokens: int) -> tuple[torch.Tensor, ...]:
    """Return a text `[N, T]` in batches of whole sequences, of about so many tokens."""
    import torch

    return torch.split(text, max(1, batch_tokens // max(1, text.shape[1])))


@dataclass(frozen=True)
class BlockReplica:
    """One device's copy of a block with its weights, and the family's code around it. Names are those of the description."""

    decoder: Decoder
    layer: torch.nn.Module
    index: int

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.decoder.device

    def run(self, states: torch.Tensor, cache: CacheMaxima | None = None) -> torch.Tensor:
        """Return the block's output for a batch's hidden states `[B, T, D]`, wherever these are."""
        return self.decoder.run(self.layer, self.index, states.to(self.device), cache)

    def module(self, name: str) -> torch.nn.Module:
        """Return the module of that name."""
        return self.decoder.module(self.layer, name)

    def parameter(self, name: str) -> torch.Tensor:
        """Return what the block computes with under a name such as `mlp.up_proj.weight`."""
        return self.decoder.parameter(self.layer, name)

    def put(self, name: str, value: torch.Tensor) -> None:
        """Have the block compute with another value under that name."""
        self.decoder.put(self.layer, name, value)


@dataclass(frozen=True)
class StreamedBlock:
    """A block that the text has come to."""

    stream: BlockStream
    index: int

    @contextmanager
    def loaded(self, tensors: Mapping[str, torch.Tensor] | None = None) -> Iterator[tuple[BlockReplica, ...]]:
        """Hold the block with its weights on every device. `tensors`: its weights, where they are read already."""
        tensors = self.stream.dense.block(self.index) if tensors is None else tensors
        with ExitStack() as stack:
            yield tuple(
                BlockReplica(decoder, stack.enter_context(decoder.block(self.index, tensors)), self.index)
                for decoder in self.stream.decoders
            )

    def run(self, replicas: Sequence[BlockReplica]) -> None:
        """Run every batch through the block: its outputs are what the batches bring into the next one."""
        hidden = self.stream.hidden
        for batch in range(len(hidden)):
            replica = replicas[batch % len(replicas)]
            hidden.write(self.index + 1, batch, replica.run(hidden.read(self.index, batch)))


class BlockStream:
    """A text on its way through the blocks of a dense model, its hidden states between the blocks where there is room for them.

    The text is the run's, `batch_tokens` of it go through a block together. `keep`: blocks whose inputs stay behind the block at work (1;
    more for who looks back; one more than there are for a way back). `stored`: how its matrices are going to be stored (`Decoder`).
    `moves`: nobody looks at the input of a batch that is through the block at work (`HiddenStates`).
    """

    def __init__(
        self,
        dense: DenseModel,
        run: RunContext,
        batch_tokens: int = BATCH_TOKENS,
        keep: int = 1,
        stored: ModelIR | None = None,
        moves: bool = False,
    ) -> None:

        self.dense = dense
        self.decoders = [Decoder(dense, run.dtype, device, stored) for device in run.devices]
        self.batches = batches_of(run.text, batch_tokens)
        generations = run.text.numel() * dense.ir.hidden_size * run.dtype.itemsize * (keep + 1)
        self.hidden = HiddenStates(run.folder, len(self.batches), place_of(generations, run.devices), moves=moves)
        self._keep = keep

    def resume(self, done: int) -> int:
        """Return the last block, `done` or before it, where the inputs that are kept there are whole; the caller forgets what it recorded
        from there on.
        """
        if not self.decoders:
            return done
        return next((block for block in range(done, 0, -1) if all(map(self.hidden.whole, self._kept_at(block)))), 0)

    def _kept_at(self, block: int) -> range:
        """The blocks whose inputs are kept when one is about to be at work."""
        return range(max(0, block + 1 - self._keep), block + 1)

    def reached(self) -> int:
        """Return the last block whose inputs are whole, for who keeps no record; the number of blocks where the text is through."""
        return self.hidden.last(len(self.dense))

    def blocks(self, start: int, settled: Callable[[], None] = lambda: None) -> Iterator[StreamedBlock]:
        """Yield the blocks from `start` on, one after the other; when the next one is asked for, the last one is recorded, or will be when
        `settled` returns.
        """
        for index in range(start - self._keep + 1):
            self.hidden.drop(index)  # left by who recorded a block and was ended before it asked for the next one
        self.hidden.embed(self.decoders, self.batches, start)
        saved = time.monotonic()
        for index in range(start, len(self.dense)):
            yield StreamedBlock(self, index)
            give_back_freed()  # else a block's weights find no room in those that the block before it left, and a model is held whole
            if self.hidden.place is Place.DISK:
                settled()  # a run that is killed goes on from what is dropped next
            if index + 1 >= self._keep:
                self.hidden.drop(index + 1 - self._keep)
            if self.hidden.place is not Place.DISK and time.monotonic() - saved > _SAVED_EVERY:
                settled()
                self.hidden.save(self._kept_at(index + 1))
                saved = time.monotonic()

    def block(self, index: int) -> StreamedBlock:
        """Return one block, as on a way back; the text must have been there (`blocks`)."""
        return StreamedBlock(self, index)
