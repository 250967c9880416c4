"""A walk that makes a dense model of smaller blocks, or of other values, one block after the other: an ordinary checkpoint, as a step.

    for block in blocks:
        the edit sees the block as it was, with what the edited blocks before bring into it, and returns its new tensors
        they are written, read back, and every batch goes through the new block: the inputs of the next
        the block is recorded                     # kill -9 here: resume at the next block

    <folder>/state.json, hidden/, shards/         as a walk keeps them (`passes.walk.state`); the shards become a model's folder
    <folder>/targets/                             what the source's blocks put out, where the edit asks for it

Memory is one block as it was and as it is, whatever the depth.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import field, replace
from functools import partial
from typing import TYPE_CHECKING, Protocol

from passes.blocks.decoder import Decoder
from passes.blocks.dense_model import DenseModel
from passes.blocks.devices import memory_bytes
from passes.blocks.hidden_states import HiddenStates
from passes.blocks.memory import BATCH_TOKENS, live_batches, waiting_room
from passes.blocks.stream import BlockReplica, BlockStream
from passes.files.atomic import readable, write_json
from passes.files.checkpoint import INDEX, Checkpoint, copy_side_files, write_index, write_shard
from passes.ir.model import Block, ModelIR
from passes.record import dataclass
from passes.steps.context import RunContext
from passes.steps.key import content_key
from passes.steps.step import Report
from passes.text.source import tokens_digest
from passes.walk.block import on_the_processor
from passes.walk.source_outputs import Targets
from passes.walk.state import BlockReport, WalkState

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class BlockInputs:
    """A block as it was, with its weights, and what a text brings into it from the edited blocks before.

    `in_memory`: batches that may wait inside it at once. `wanted`: gives what the source's block puts out, and under which number of its
    blocks that is kept; the source is run for who asks only.
    """

    replica: BlockReplica
    hidden: HiddenStates
    in_memory: int
    wanted: Callable[[], tuple[HiddenStates, int]]


@dataclass(frozen=True)
class EditedBlock:
    """A block's new tensors by relative name, as the description after the edit has them, and what each edited matrix loses."""

    tensors: Mapping[str, torch.Tensor]
    losses: dict[str, float] = field(default_factory=dict)


class BlockEdit(Protocol):
    """What becomes of a block."""

    @property
    def looks(self) -> bool:
        """Whether it looks at what a text brings into the blocks."""
        ...

    def __call__(self, index: int, weights: Mapping[str, torch.Tensor], inputs: BlockInputs | None) -> EditedBlock:
        """Return the new block. `weights`: by relative name, whole and in parts (`DenseModel.block`); `inputs`: None without text."""
        ...


@dataclass(frozen=True)
class EditingWalk:
    """What is walked: `dense`, to become the dense model `planned` (as many blocks, the same names), block by block by `edit`."""

    dense: DenseModel
    planned: ModelIR
    edit: BlockEdit
    batch_tokens: int = BATCH_TOKENS

    def result(self, step: str, key: str, run: RunContext) -> DenseModel:
        """Return the edited model, made as a step by that name; `key` says what the edit depends on beside the model and the text."""
        key = content_key(*self.dense.identity, step, key, tokens_digest(run.text) if self.edit.looks else "")
        folder = run.folder / f"edited-{key}"
        made = folder / "shards"
        run.steps.run(step, key, readable(made / INDEX), lambda report: self._make(run.part(folder, report)))
        for states in ("hidden", "targets"):
            shutil.rmtree(folder / states, ignore_errors=True)
        return DenseModel(self.planned, Checkpoint(made), (*self.dense.identity, step, key))

    def _make(self, run: RunContext) -> None:
        state, depth = WalkState(run.folder), len(self.dense)
        inside = replace(run.part(run.folder / "hidden"), devices=run.devices[:1] if self.edit.looks else ())
        stream = BlockStream(DenseModel(self.planned, self.dense.weights), inside, self.batch_tokens)
        before = self._as_it_was(stream, inside) if stream.decoders else None
        targets = Targets(self.dense, replace(inside, folder=run.folder / "targets"), self.batch_tokens)
        state.back_to(stream.resume(state.done))
        for block in stream.blocks(state.done):
            began, index = time.monotonic(), block.index
            edited = self._edited(index, before, stream.hidden, targets, inside)
            prefix = self.planned.decoder.layer_prefix(index)
            stored = on_the_processor({prefix + name: edited.tensors[name] for name in _names(self._after(index))})
            write_shard(state.shard(index), stored)
            del stored
            written = DenseModel(self.planned, Checkpoint.of_files([state.shard(index)]))
            if before is not None:
                with block.loaded(written.block(index)) as replicas:
                    block.run(replicas)
            state.finish_block(BlockReport(index, edited.losses, round(time.monotonic() - began, 3)))
            run.report(state.done, depth)
        self._finish(state, run.report)

    def _as_it_was(self, stream: BlockStream, run: RunContext) -> Decoder:
        """The family's code around the blocks as they were, which has noted how they are called."""
        decoder = Decoder(self.dense, run.dtype, run.devices[0])
        for _ in decoder.embed(stream.batches):
            pass
        return decoder

    def _edited(
        self, index: int, before: Decoder | None, hidden: HiddenStates, targets: Targets, run: RunContext
    ) -> EditedBlock:
        weights = self.dense.block(index)
        if before is None:
            return self.edit(index, weights, None)
        room = waiting_room(memory_bytes(run.devices[0]), card=run.devices[0].type == "cuda")
        tokens = max(self.batch_tokens, run.text.shape[1])
        block = self.dense.ir.decoder.block(index)
        waiting = live_batches(block, self.dense.ir.hidden_size, tokens, run.dtype.itemsize, room)
        with before.block(index, weights) as layer:
            replica = BlockReplica(before, layer, index)
            return self.edit(index, weights, BlockInputs(replica, hidden, waiting, partial(targets.behind, index)))

    def _after(self, index: int) -> Block:
        return self.planned.decoder.block(index)

    def _finish(self, state: WalkState, report: Report) -> None:
        """What makes a model's folder of the shards; the index comes last."""
        write_shard(state.shards / "model-00000.safetensors", self.dense.outer(self.planned))
        copy_side_files(self.dense.weights.folder, state.shards)
        write_json(state.shards / "config.json", dict(self.planned.config))
        write_index(state.shards)


def _names(block: Block) -> list[str]:
    """The tensors of a block as the description has them, by relative name."""
    return [tensor.name for linear in block.linears for tensor in linear.tensors()] + [t.name for t in block.tensors]
