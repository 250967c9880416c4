"""One streaming walk over the blocks that serves every calibrated pass at once.

    for block in blocks:                     # weights of ONE block in memory, mapped from safetensors
        every calibration batch runs into the block and stops at the next matrix to be quantized
        that matrix is quantized with what the stopped batches bring, decoded, put back
        the batches go on with the decoded weight; …; their outputs are the inputs of the next block
        the block's shard is written, then the walk's state        # kill -9 here: resume at this block

One forward a block: a batch is a greenlet, paused inside the family's own forward code when it reaches a matrix. Matrices
that read the same input (q/k/v, gate/up) are quantized at one stop with one Hessian. Hidden states
lie on disk, or stay on a card (`passes.blocks.hidden_states`).
Peak memory is one block, its statistics and the batches that wait in it, whatever the depth of the
model: as many as a part of the memory holds; those that it does not hold run again from the block's input at each stop
(`passes.walk.paused_batches`; where there are experts all wait). Runs the same on CPU and CUDA.

On several cards a block is on all of them: batch b runs on card b mod n, the statistics of a stop are summed on the first
card, which quantizes, and every card goes on with the decoded weights.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from typing import TYPE_CHECKING

from passes.algorithms.learned.rounding import Tuning
from passes.algorithms.method import Method
from passes.blocks.decoder import CacheMaxima
from passes.blocks.dense_model import DenseModel
from passes.blocks.devices import memory_bytes
from passes.blocks.input_statistics import InputStatistics, summed
from passes.blocks.matrices import members, packed
from passes.blocks.memory import BATCH_TOKENS, live_batches, waiting_room
from passes.blocks.stream import BlockReplica, BlockStream, StreamedBlock
from passes.errors import TightfitError
from passes.files.checkpoint import write_shard
from passes.ir.model import Block, Linear, ModelIR, Role
from passes.record import dataclass
from passes.steps.context import RunContext
from passes.walk.beside import WeightsAhead, WrittenBehind
from passes.walk.block import BlockResult, banks_whole, channels_in_place, check, kept, on_the_processor
from passes.walk.block_tuning import BlockTuning, rows_a_step
from passes.walk.kv_scales import attention_name, scale_tensors
from passes.walk.paused_batches import PausedBatches
from passes.walk.scale_folding import ScaleFold, find_folds
from passes.walk.source_outputs import Targets
from passes.walk.state import BlockReport, WalkState

if TYPE_CHECKING:
    import torch

#: Tokens that are enough to see whether a change to a block changes its output.
_PROBE_TOKENS = 16


@dataclass(frozen=True)
class Walk:
    """What is walked: `dense`, to be stored as `planned` says (same blocks, same names), on the run's text.

    `batch_tokens`: tokens that go through a block together. `batches_in_memory`: batches that may wait inside a block at once, by default
    what a part of the memory holds; the result is the same with any number. `tuning`: how each stored block is tuned to the source's.
    """

    dense: DenseModel
    planned: ModelIR
    method: Method
    context: RunContext
    batch_tokens: int = BATCH_TOKENS
    batches_in_memory: int | None = None
    tuning: Tuning | None = None
    _found_folds: dict[Block, Mapping[str, ScaleFold]] = field(default_factory=dict, compare=False, repr=False)

    def run(self) -> WalkState:
        """Walk from the first unfinished block to the last. The shards are in the state's folder afterwards."""
        run = self.context
        state = WalkState(run.folder)
        total = units(self.planned)
        if state.done >= total:
            return state
        inside = replace(run.part(run.folder / "hidden"), devices=run.devices if self._calibrated else ())
        # What is tuned is run again from the block's input, so that has to stay until the block is done.
        stream = BlockStream(self.dense, inside, self.batch_tokens, stored=self.planned, moves=self.tuning is None)
        state.back_to(stream.resume(state.done))
        targets = self._targets(stream)
        with WeightsAhead(self.dense, run.devices[0]) as ahead, WrittenBehind(run.devices[0]) as behind:
            for block in stream.blocks(state.done, settled=behind.wait):
                began = time.monotonic()
                work, stored = self._block(block, ahead.take(block.index), targets)
                self._finish(work.report(block.index, began), stored, state, behind)
                del work, stored  # of one block, memory holds no more than what is still to be written
            behind.wait()
            if state.done < total:
                began = time.monotonic()
                work = self._heads(stream)
                self._finish(work.report(len(self.dense), began), work.stored, state, behind)
            behind.wait()
        stream.hidden.clear()
        if targets is not None:
            targets.clear()
        return state

    def _finish(
        self, report: BlockReport, stored: Mapping[str, torch.Tensor], state: WalkState, behind: WrittenBehind
    ) -> None:
        """Write a block's tensors; then record it, and tell of it."""

        def record() -> None:
            state.finish_block(report)
            loss = f"loss {sum(report.losses.values()):.4g}" if report.losses else ""
            self.context.report(state.done, units(self.planned), loss)

        behind.run(lambda: write_shard(state.shard(report.block), stored), record)

    @property
    def _calibrated(self) -> bool:
        return self.method.needs_hessian or self.planned.calibrated_scales or self.tuning is not None

    def _targets(self, stream: BlockStream) -> Targets | None:
        """What the blocks are tuned to, None where they are not; the family's code is told how many sequences a step takes."""
        if self.tuning is None:
            return None
        text = self.context.text
        rows = rows_a_step(self.tuning, *text.shape)
        for _ in stream.decoders[0].embed([text[:rows]]):
            pass
        return Targets(
            self.dense, self.context.part(self.context.folder / "targets").on_one_device(), self.batch_tokens
        )

    def _block(
        self, block: StreamedBlock, weights: Mapping[str, torch.Tensor], targets: Targets | None
    ) -> tuple[BlockResult, dict[str, torch.Tensor]]:
        """Store one block: its outputs go into the stream. Returns its tensors as they go to disk beside what was seen."""
        index, dtype, devices = block.index, self.context.dtype, self.context.devices
        before, after = self.dense.ir.decoder.block(index), self.planned.decoder.block(index)
        prefix = self.dense.ir.decoder.layer_prefix(index)
        todo = _groups(after, self.method)
        work = BlockResult(self.method, weights, prefix, devices[0], dtype)
        work.tuned = targets is not None
        tuned: Mapping[str, torch.Tensor] = {}
        cache = CacheMaxima() if self.planned.kv_cache.scales and attention_name(after) else None
        if not block.stream.decoders:
            for group in todo:
                work.store(group, None)
        else:
            with block.loaded(weights) as replicas:
                if self.method.smoothing is not None:
                    work.folds = self._folds(replicas[0], todo)
                sizes = self.method.smoothing is not None or any(lin.storage.static_inputs for lin in after.linears)
                waiting = self._in_memory(after)
                paused = PausedBatches(replicas, cache, todo, self.method.needs_hessian, sizes, waiting)
                paused.run(block.stream.hidden, work.store)
                if targets is not None and self.tuning is not None:
                    names = [name for name in kept(before, after, "", weights) if weights[name].is_floating_point()]
                    tuner = BlockTuning(self.tuning, replicas[0], work, names)
                    tuned = tuner.run(block.stream.hidden, targets.behind(index))
        stored = on_the_processor(kept(before, after, prefix, {**weights, **tuned})) | banks_whole(
            after, prefix, weights, work.stored
        )
        work.fold(stored)
        stored = channels_in_place(after, prefix, stored)
        if cache is not None:
            if not cache.seen:
                raise TightfitError(
                    f"no keys of {prefix.rstrip('.')} were seen: this family's class caches them in a way of its own",
                    remedy="leave the KV cache as it is (`kv_cache: [auto]`)",
                )
            stored |= scale_tensors(after, prefix, cache.keys, cache.values)
        check(after, prefix, stored)
        return work, stored

    def _in_memory(self, block: Block) -> int:
        """How many batches may wait inside a block at once; the others run again from its input."""
        if self.batches_in_memory is not None:
            return self.batches_in_memory
        run, width = self.context, self.dense.ir.hidden_size
        tokens = max(self.batch_tokens, run.text.shape[1])
        room = waiting_room(memory_bytes(run.devices[0]), card=run.devices[0].type == "cuda")
        return live_batches(block, width, tokens, run.dtype.itemsize, room)

    def _folds(self, replica: BlockReplica, groups: Sequence[Sequence[Linear]]) -> Mapping[str, ScaleFold]:
        """What takes over the scales of each group; the same for all blocks of a class."""
        block = self.planned.decoder.block(replica.index)
        if block not in self._found_folds:
            [probe] = replica.decoder.embed([self.context.text[:1, :_PROBE_TOKENS]])
            self._found_folds[block] = find_folds(replica, block, groups, probe)
        return self._found_folds[block]

    def _heads(self, stream: BlockStream) -> BlockResult:
        """Store the matrices outside the blocks that are not left dense: an output head. Its input is the final norm's output."""
        inputs = None
        heads, blocks, run = packed_outer(self.planned), len(self.dense), self.context
        if stream.decoders and self.method.needs_hessian:
            hidden, cards = stream.hidden, len(stream.decoders)
            seen = [InputStatistics(heads[0].in_features, decoder.device) for decoder in stream.decoders]
            for card, decoder in enumerate(stream.decoders):
                share = range(card, len(hidden), cards)
                for states in decoder.final(hidden.read(blocks, batch).to(decoder.device) for batch in share):
                    seen[card].add(states)
            inputs = summed(seen, run.devices[0])
        names = {linear.name: _head_source(self.dense, linear) for linear in heads}
        read = self.dense.weights.read(names.values())
        weights = {f"{name}.weight": read[origin] for name, origin in names.items()}
        work = BlockResult(self.method, weights, "", run.devices[0], run.dtype)
        work.store(heads, inputs)
        return work


def units(planned: ModelIR) -> int:
    """Count the units of a walk: blocks, and one more where a head is quantized."""
    return len(planned.decoder.layers) + (1 if packed_outer(planned) else 0)


def packed_outer(planned: ModelIR) -> list[Linear]:
    """List the matrices outside the stacks that are not stored dense."""
    return [linear for linear in planned.outer if packed(linear)]


def _head_source(dense: DenseModel, head: Linear) -> str:
    """The stored tensor that a head is made of: its own, or the embedding it is tied to."""
    if f"{head.name}.weight" in dense.weights:
        return f"{head.name}.weight"
    return next(f"{linear.name}.weight" for linear in dense.ir.outer if linear.role is Role.EMBEDDING)


def _groups(block: Block, method: Method) -> list[list[Linear]]:
    """The matrices to be worked on, those that read the same input together, in execution order of the description."""
    groups: dict[str, list[Linear]] = {}
    for linear in members(block):
        if method.touches(linear):
            groups.setdefault(linear.reads or linear.name, []).append(linear)
    return list(groups.values())
