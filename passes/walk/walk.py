"""One streaming walk over the blocks that serves every calibrated pass at once.

    for block in blocks:                     # weights of ONE block in memory, mapped from safetensors
        every calibration batch runs into the block and stops at the next matrix to be quantized
        that matrix is quantized with what the stopped batches bring, decoded, put back
        the batches go on with the decoded weight; …; their outputs are the inputs of the next block
        the block's shard is written, then the walk's state        # kill -9 here: resume at this block

One forward a block: a batch is a greenlet, paused inside the family's own forward code when it reaches a matrix. Matrices
that read the same input (q/k/v, gate/up) are quantized at one stop with one Hessian. Hidden states lie on disk
(`passes.blocks.hidden_states`). Peak memory is one block, its statistics and the batches that wait in it, whatever the depth of the
model: as many as a part of the memory holds; those that it does not hold run again from the block's input at each stop
(`passes.walk.paused_batches`; where there are experts all wait). Runs the same on CPU and CUDA.

On several cards a block is on all of them: batch b runs on card b mod n, the statistics of a stop are summed on the first
card, which quantizes, and every card goes on with the decoded weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from passes.algorithms.method import Method
from passes.blocks.decoder import CacheMaxima, Decoder
from passes.blocks.devices import memory_bytes
from passes.blocks.hidden_states import Hidden
from passes.blocks.input_statistics import Inputs, summed
from passes.blocks.matrices import dense_block, members, packed
from passes.blocks.memory import BATCH_TOKENS, live_batches
from passes.errors import TightfitError
from passes.files.checkpoint import Weights, write_shard
from passes.ir.model import Block, Linear, ModelIR, Role
from passes.walk.block import BlockWork, banks_whole, channels_in_place, check, kept
from passes.walk.kv_scales import attention_name, scale_tensors
from passes.walk.paused_batches import Lane, Stops
from passes.walk.scale_folding import Fold, find_folds
from passes.walk.state import BlockReport, WalkState

if TYPE_CHECKING:
    import torch

#: Tokens that are enough to see whether a change to a block changes its output.
_PROBE_TOKENS = 16


@dataclass(frozen=True)
class Walk:
    """What is walked: dense `weights` described by `source`, to be stored as `target` says (same blocks, same names).

    `tokens`: calibration token ids `[S, T]`. `batch_tokens`: tokens that go through a block together. `live`:
    batches that may wait inside a block at once, by default what a part of the memory holds; the result is the same with any number.
    """

    source: ModelIR
    target: ModelIR
    weights: Weights
    method: Method
    tokens: torch.Tensor
    folder: Path
    devices: Sequence[torch.device]
    dtype: torch.dtype
    batch_tokens: int = BATCH_TOKENS
    live: int | None = None
    progress: Callable[[BlockReport, int], None] = field(default=lambda report, blocks: None)
    _found_folds: dict[Block, Mapping[str, Fold]] = field(default_factory=dict, compare=False, repr=False)

    def run(self) -> WalkState:
        """Walk from the first unfinished block to the last. The shards are in the state's folder afterwards."""
        state = WalkState(self.folder)
        total, blocks = units(self.target), len(self.source.decoder.layers)
        if state.done >= total:
            return state
        devices = self.devices if self._calibrated else ()
        decoders = [Decoder(self.source, self.weights, self.dtype, device, self.target) for device in devices]
        hidden = self._hidden(decoders, state)
        for index in range(state.done, blocks):
            began = time.monotonic()
            report = self._block(index, decoders, hidden, state).report(index, began)
            state.finish_block(report)
            hidden.drop(index)
            self.progress(report, total)
        if state.done < total:
            began = time.monotonic()
            report = self._heads(decoders, hidden, state).report(blocks, began)
            state.finish_block(report)
            self.progress(report, total)
        hidden.clear()
        return state

    @property
    def _calibrated(self) -> bool:
        return self.method.needs_hessian or self.target.calibrated_scales

    def _hidden(self, decoders: Sequence[Decoder], state: WalkState) -> Hidden:
        """The text between the blocks, as far as the walk has come."""
        import torch

        batches = torch.split(self.tokens, max(1, self.batch_tokens // max(1, self.tokens.shape[1])))
        hidden = Hidden(self.folder / "hidden", len(batches))
        if decoders and state.done and not hidden.whole(state.done):
            state.restart()
        hidden.embed(decoders, batches, state.done)
        return hidden

    def _block(self, index: int, decoders: Sequence[Decoder], hidden: Hidden, state: WalkState) -> BlockWork:
        """Store one block: its outputs go into `hidden`, its tensors into a shard."""
        before, after = self.source.decoder.block(index), self.target.decoder.block(index)
        prefix = self.source.decoder.layer_prefix(index)
        weights = dense_block(self.source, index, self.weights)
        todo = _groups(after, self.method)
        work = BlockWork(self.method, weights, prefix, self.devices[0], self.dtype)
        cache = CacheMaxima() if self.target.kv_cache.scales and attention_name(after) else None
        if not decoders:
            for group in todo:
                work.store(group, None)
        else:
            with ExitStack() as stack:
                lanes = [Lane(each, stack.enter_context(each.block(index, weights))) for each in decoders]
                if self.method.smoothing is not None:
                    work.folds = self._folds(lanes[0], index, todo)
                sizes = self.method.smoothing is not None or any(lin.storage.static_inputs for lin in after.linears)
                stops = Stops(lanes, index, cache, todo, self.method.needs_hessian, sizes, self._live(after))
                stops.run(hidden, work.store)
        stored = kept(before, after, prefix, weights) | banks_whole(after, prefix, weights, work.stored)
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
        write_shard(state.shard(index), stored)
        return work

    def _live(self, block: Block) -> int:
        """How many batches may wait inside a block at once; the others run again from its input."""
        if self.live is not None:
            return self.live
        tokens = max(self.batch_tokens, self.tokens.shape[1])
        return live_batches(block, self.source.hidden_size, tokens, self.dtype.itemsize, memory_bytes(self.devices[0]))

    def _folds(self, lane: Lane, index: int, groups: Sequence[Sequence[Linear]]) -> Mapping[str, Fold]:
        """What takes over the scales of each group; the same for all blocks of a class."""
        block = self.target.decoder.block(index)
        if block not in self._found_folds:
            [probe] = lane.decoder.embed([self.tokens[:1, :_PROBE_TOKENS]])
            self._found_folds[block] = find_folds(lane.decoder, lane.layer, index, block, groups, probe)
        return self._found_folds[block]

    def _heads(self, decoders: Sequence[Decoder], hidden: Hidden, state: WalkState) -> BlockWork:
        """Store the matrices outside the blocks that are not left dense: an output head. Its input is the final norm's output."""
        inputs = None
        heads, blocks = packed_outer(self.target), len(self.source.decoder.layers)
        if decoders and self.method.needs_hessian:
            seen = [Inputs(heads[0].in_features, decoder.device) for decoder in decoders]
            for card, decoder in enumerate(decoders):
                share = range(card, len(hidden), len(decoders))
                for states in decoder.final(hidden.read(blocks, batch).to(decoder.device) for batch in share):
                    seen[card].add(states)
            inputs = summed(seen, self.devices[0])
        names = {linear.name: _head_source(self.source, self.weights, linear) for linear in heads}
        read = self.weights.read(names.values())
        weights = {f"{name}.weight": read[origin] for name, origin in names.items()}
        work = BlockWork(self.method, weights, "", self.devices[0], self.dtype)
        work.store(heads, inputs)
        write_shard(state.shard(blocks), work.stored)
        return work


def units(target: ModelIR) -> int:
    """What a walk counts: blocks, and one more where a head is quantized."""
    return len(target.decoder.layers) + (1 if packed_outer(target) else 0)


def packed_outer(target: ModelIR) -> list[Linear]:
    """The matrices outside the stacks that are not stored dense."""
    return [linear for linear in target.outer if packed(linear)]


def _head_source(source: ModelIR, weights: Weights, head: Linear) -> str:
    """The stored tensor that a head is made of: its own, or the embedding it is tied to."""
    if f"{head.name}.weight" in weights:
        return f"{head.name}.weight"
    return next(f"{linear.name}.weight" for linear in source.outer if linear.role is Role.EMBEDDING)


def _groups(block: Block, method: Method) -> list[list[Linear]]:
    """The matrices to be worked on, those that read the same input together, in execution order of the description."""
    groups: dict[str, list[Linear]] = {}
    for linear in members(block):
        if method.touches(linear):
            groups.setdefault(linear.reads or linear.name, []).append(linear)
    return list(groups.values())
