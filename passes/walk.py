"""One streaming walk over the blocks that serves every calibrated pass at once.

    for block in blocks:                     # weights of ONE block in memory, mapped from safetensors
        every calibration batch runs into the block and stops at the next matrix to be quantized
        that matrix is quantized with what the stopped batches bring, decoded, put back
        the batches go on with the decoded weight; …; their outputs are the inputs of the next block
        the block's shard is written, then the walk's state        # kill -9 here: resume at this block

One forward a block: a batch is a greenlet, paused inside the family's own forward code when it reaches a matrix. Matrices
that read the same input (q/k/v, gate/up) are quantized at one stop with one Hessian. Peak memory is one block, its
statistics and the hidden states of the calibration text, whatever the depth of the model. Runs the same on CPU and CUDA.

On several cards a block is on all of them: batch b runs on card b mod n, the statistics of a stop are summed on the first
card, which quantizes, and every card goes on with the decoded weights.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from passes.adapters import CacheMaxima, Decoder
from passes.checkpoint import Weights, write_shard
from passes.folds import Fold, find_folds, rows_divided
from passes.inputs import Inputs, summed
from passes.ir.model import Block, Linear, ModelIR, Role
from passes.kv_cache import attention_name, scale_tensors
from passes.members import copy_names, dense_block, members, packed, restacked
from passes.quantize.methods import Matrix, Method, Stored
from passes.reason import TightfitError
from passes.stops import Lane, Stops
from passes.walk_state import BlockReport, WalkState

if TYPE_CHECKING:
    import torch

#: Tokens that are enough to see whether a change to a block changes its output.
_PROBE_TOKENS = 16


@dataclass(frozen=True)
class Walk:
    """What is walked: dense `weights` described by `source`, to be stored as `target` says (same blocks, same names).

    `tokens`: calibration token ids `[S, T]`. `batch_tokens`: tokens that go through a block together.
    """

    source: ModelIR
    target: ModelIR
    weights: Weights
    method: Method
    tokens: torch.Tensor
    folder: Path
    devices: Sequence[torch.device]
    dtype: torch.dtype
    batch_tokens: int = 4096
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
        hidden = self._embedded(decoders)
        for number, batch in enumerate(state.hidden() or ()):
            hidden[number] = batch.to(hidden[number].device)
        for index in range(state.done, blocks):
            began = time.monotonic()
            report = self._block(index, decoders, hidden, state).report(index, began)
            state.finish_block(report, hidden)
            self.progress(report, total)
        if state.done < total:
            began = time.monotonic()
            report = self._heads(decoders, hidden, state).report(blocks, began)
            state.finish_block(report, [])
            self.progress(report, total)
        state.drop_hidden()
        return state

    @property
    def _calibrated(self) -> bool:
        return self.method.needs_hessian or self.target.calibrated_scales

    def _embedded(self, decoders: Sequence[Decoder]) -> list[torch.Tensor]:
        """The hidden states before the first block, batch after batch, each on its own card."""
        if not decoders:
            return []
        import torch

        batches = torch.split(self.tokens, max(1, self.batch_tokens // self.tokens.shape[1]))
        shares = [decoder.embed(batches[card :: len(decoders)]) for card, decoder in enumerate(decoders)]
        return [shares[number % len(shares)][number // len(shares)] for number in range(len(batches))]

    def _block(
        self, index: int, decoders: Sequence[Decoder], hidden: list[torch.Tensor], state: WalkState
    ) -> BlockWork:
        """Store one block, write its shard, replace `hidden` by the block's outputs."""
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
                stops = Stops(lanes, index, cache, todo, self.method.needs_hessian, sizes)
                stops.run(hidden, work.store)
        stored = _kept(before, after, prefix, weights) | _banks_whole(after, prefix, weights, work.stored)
        work.fold(stored)
        if cache is not None:
            stored |= scale_tensors(after, prefix, cache.keys, cache.values)
        _check_block(after, prefix, stored)
        write_shard(state.shards / f"model-{index + 1:05d}.safetensors", stored)
        return work

    def _folds(self, lane: Lane, index: int, groups: Sequence[Sequence[Linear]]) -> Mapping[str, Fold]:
        """What takes over the scales of each group; the same for all blocks of a class."""
        block = self.target.decoder.block(index)
        if block not in self._found_folds:
            [probe] = lane.decoder.embed([self.tokens[:1, :_PROBE_TOKENS]])
            self._found_folds[block] = find_folds(lane.decoder, lane.layer, index, block, groups, probe)
        return self._found_folds[block]

    def _heads(self, decoders: Sequence[Decoder], hidden: list[torch.Tensor], state: WalkState) -> BlockWork:
        """Store the matrices outside the blocks that are not left dense: an output head. Its input is the final norm's output."""
        inputs = None
        heads = packed_outer(self.target)
        if decoders and self.method.needs_hessian:
            seen = [Inputs(heads[0].in_features, decoder.device) for decoder in decoders]
            for card, decoder in enumerate(decoders):
                for batch in decoder.final(hidden[card :: len(decoders)]):
                    seen[card].add(batch)
            inputs = summed(seen, self.devices[0])
        names = {linear.name: _head_source(self.source, self.weights, linear) for linear in heads}
        read = self.weights.read(names.values())
        weights = {f"{name}.weight": read[origin] for name, origin in names.items()}
        work = BlockWork(self.method, weights, "", self.devices[0], self.dtype)
        work.store(heads, inputs)
        write_shard(state.shards / f"model-{len(self.source.decoder.layers) + 1:05d}.safetensors", work.stored)
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


class BlockWork:
    """What becomes of one block: its matrices stored group after group, the scales of their inputs taken over by what is before."""

    def __init__(
        self, method: Method, weights: Mapping[str, torch.Tensor], prefix: str, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.method, self.weights, self.prefix, self.device, self.dtype = method, weights, prefix, device, dtype
        self.folds: Mapping[str, Fold] = {}
        self.stored: dict[str, torch.Tensor] = {}
        self._losses: dict[str, float] = {}
        self._unseen: list[str] = []
        self._done: dict[str, tuple[Linear, Stored]] = {}
        self._taken: list[tuple[Fold, torch.Tensor]] = []
        self._peaks: dict[Role, float] = {}

    def store(self, group: Sequence[Linear], inputs: Inputs | None) -> dict[str, torch.Tensor]:
        """Store a group that reads one input; returns the decoded weights by relative name."""
        matrices = [_matrix(linear, self.weights, self.prefix, self.device) for linear in group]
        looks = self.method.needs_hessian
        hessian = inputs.hessian(matrices[0].name) if inputs is not None and looks else None
        static = any(linear.storage.static_inputs for linear in group)
        if inputs is None and (looks or static):
            self._unseen += [linear.name for linear in group]
        scale = self._smoothed(matrices, inputs, hessian)
        if scale is not None and hessian is not None:
            matrices = [replace(matrix, weight=matrix.weight * scale) for matrix in matrices]
            hessian = hessian / scale / scale[:, None]
        if static:
            peak = self._input_peak(group[0].role, inputs, scale)
            matrices = [replace(matrix, input_peak=peak) for matrix in matrices]
        decoded = {}
        for linear, done in zip(group, self.method.store(matrices, hessian, self.dtype), strict=True):
            self.stored.update(done.tensors)
            self._losses[linear.name] = done.loss
            self._done[linear.name] = (linear, done)
            decoded[linear.name] = done.decoded if scale is None else done.decoded / scale
        return decoded

    def _input_peak(self, role: Role, inputs: Inputs | None, scale: torch.Tensor | None) -> float:
        """The largest input seen, as smoothed; of an expert that no token reached, that of the block's others (1, were there none)."""
        if inputs is None:
            return self._peaks.get(role, 1.0)
        peak = float((inputs.peak if scale is None else inputs.peak / scale).max())
        self._peaks[role] = max(peak, self._peaks.get(role, 0.0))
        return peak

    def _smoothed(
        self, matrices: Sequence[Matrix], inputs: Inputs | None, hessian: torch.Tensor | None
    ) -> torch.Tensor | None:
        fold, smoothing = self.folds.get(matrices[0].linear.name), self.method.smoothing
        grids = [grid for matrix in matrices if (grid := matrix.linear.storage.grid) is not None]
        if fold is None or smoothing is None or inputs is None or hessian is None or len(grids) < len(matrices):
            return None
        scale = smoothing.scales([matrix.weight for matrix in matrices], grids, inputs, hessian)
        self._taken.append((fold, scale))
        return scale

    def fold(self, stored: dict[str, torch.Tensor]) -> None:
        """Have what comes before each smoothed group take its scale over, in the tensors that go to disk."""
        for fold, scale in self._taken:
            name = self.prefix + fold.name
            if fold.name in self._done:
                linear, done = self._done[fold.name]
                assert done.quantized is not None
                stored |= linear.storage.encode(name, rows_divided(done.quantized, scale))
            else:
                stored[f"{name}.weight"] = fold.folded(stored[f"{name}.weight"], scale)
            if f"{name}.bias" in stored:
                stored[f"{name}.bias"] = replace(fold, kind="norm").folded(stored[f"{name}.bias"], scale)

    def report(self, number: int, began: float) -> BlockReport:
        """What the walk saw, the clock having started at `began`."""
        seconds = round(time.monotonic() - began, 3)
        return BlockReport(number, self._losses, seconds, tuple(self._unseen))


def _groups(block: Block, method: Method) -> list[list[Linear]]:
    """The matrices to be worked on, those that read the same input together, in execution order of the description."""
    groups: dict[str, list[Linear]] = {}
    for linear in members(block):
        if method.touches(linear):
            groups.setdefault(linear.reads or linear.name, []).append(linear)
    return list(groups.values())


def _matrix(linear: Linear, weights: Mapping[str, torch.Tensor], prefix: str, device: torch.device) -> Matrix:
    """One matrix ready for an algorithm. Raises TightfitError for weights that are not finite."""
    import torch

    name = prefix + linear.name
    weight = weights[f"{linear.name}.weight"].to(device, torch.float32)
    if not bool(torch.isfinite(weight).all()):
        raise TightfitError(
            f"the weights of {name} hold NaN or infinity", remedy="the source model is damaged; get it again"
        )
    return Matrix(name, linear, weight)


def _kept(before: Block, after: Block, prefix: str, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """What is stored as it was: norms, biases, matrices that stay dense."""
    known = {tensor.name for tensor in before.tensors}
    names = [tensor.name for tensor in after.tensors if tensor.name in known]
    names += [tensor.name for linear in after.linears if not packed(linear) for tensor in linear.tensors()]
    names += [f"{linear.name}.bias" for linear in members(after) if packed(linear) and linear.bias]
    return {prefix + name: weights[name] for name in names}


def _banks_whole(
    block: Block, prefix: str, weights: Mapping[str, torch.Tensor], stored: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """`stored` with the experts that were worked on but stay dense back in their banks."""
    out = dict(stored)
    for linear in block.linears:
        if linear.stacking is None or packed(linear):
            continue
        names = [f"{name}.weight" for name in copy_names(linear)]
        parts = {name: out.pop(prefix + name) for name in names if prefix + name in out}
        if parts:
            tensor = linear.stacking.tensor
            out[prefix + tensor] = restacked(linear, weights[tensor], parts)
    return out


def _check_block(block: Block, prefix: str, stored: Mapping[str, torch.Tensor]) -> None:
    expected = {prefix + t.name for linear in block.linears for t in linear.tensors()} | {
        prefix + t.name for t in block.tensors
    }
    if expected != set(stored):
        odd = sorted(expected ^ set(stored))[:3]
        raise TightfitError(
            f"{prefix}: tensors differ from the plan: {', '.join(odd)}", remedy="this is a defect of tightfit"
        )
