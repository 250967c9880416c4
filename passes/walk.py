"""One streaming walk over the blocks that serves every calibrated pass at once.

    for block in blocks:                     # weights of ONE block in memory, mapped from safetensors
        every calibration batch runs into the block and stops at the next matrix to be quantized
        that matrix is quantized with what the stopped batches bring, decoded, put back
        the batches go on with the decoded weight; …; their outputs are the inputs of the next block
        the block's shard is written, then the walk's state        # kill -9 here: resume at this block

One forward a block: a batch is a greenlet, paused inside the family's own forward code when it reaches a matrix. Matrices
that read the same input (q/k/v, gate/up) are quantized at one stop with one Hessian. Peak memory is one block, its
statistics and the hidden states of the calibration text, whatever the depth of the model. Runs the same on CPU and CUDA.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from passes.adapters import CacheMaxima, Decoder, Weights
from passes.checkpoint import write_shard
from passes.evaluate import dense_block
from passes.formats.dense import Dense
from passes.hessian import Hessian
from passes.ir.model import Block, Linear, ModelIR, Role
from passes.kv_cache import scale_tensors
from passes.quantize.methods import Matrix, Method
from passes.reason import TightfitError
from passes.walk_state import BlockReport, WalkState

if TYPE_CHECKING:
    import torch


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
    device: torch.device
    dtype: torch.dtype
    batch_tokens: int = 4096
    progress: Callable[[BlockReport, int], None] = field(default=lambda report, blocks: None)

    def run(self) -> WalkState:
        """Walk from the first unfinished block to the last. The shards are in the state's folder afterwards."""
        state = WalkState(self.folder)
        total, blocks = units(self.target), len(self.source.decoder.layers)
        if state.done >= total:
            return state
        decoder = Decoder(self.source, self.weights, self.dtype, self.device) if self._calibrated else None
        hidden: list[torch.Tensor] = []
        if decoder is not None:
            hidden = decoder.embed(self._batches())
            hidden = state.hidden() or hidden
        for index in range(state.done, blocks):
            began = time.monotonic()
            losses = self._block(index, decoder, hidden, state)
            report = BlockReport(index, losses, round(time.monotonic() - began, 3), peak_bytes(self.device))
            state.finish_block(report, hidden)
            self.progress(report, total)
        if state.done < total:
            began = time.monotonic()
            losses = self._heads(decoder, hidden, state)
            report = BlockReport(blocks, losses, round(time.monotonic() - began, 3), peak_bytes(self.device))
            state.finish_block(report, [])
            self.progress(report, total)
        state.drop_hidden()
        return state

    @property
    def _calibrated(self) -> bool:
        return self.method.needs_hessian or self.target.kv_cache.scales

    def _batches(self) -> Iterator[torch.Tensor]:
        import torch

        rows = max(1, self.batch_tokens // self.tokens.shape[1])
        return iter(torch.split(self.tokens, rows))

    def _block(
        self, index: int, decoder: Decoder | None, hidden: list[torch.Tensor], state: WalkState
    ) -> dict[str, float]:
        """Quantize one block, write its shard, replace `hidden` by the block's outputs. Returns the losses."""
        before, after = self.source.decoder.block(index), self.target.decoder.block(index)
        prefix = self.source.decoder.layer_prefix(index)
        weights = dense_block(self.source, index, self.weights)
        todo = _groups(after)
        stored: dict[str, torch.Tensor] = {}
        losses: dict[str, float] = {}
        cache = CacheMaxima()

        def quantize(group: Sequence[Linear], hessian: torch.Tensor | None) -> dict[str, torch.Tensor]:
            return self._store(group, hessian, weights, prefix, stored, losses)

        if decoder is None:
            for group in todo:
                quantize(group, None)
        else:
            with decoder.block(index, weights) as layer:
                stops = Stops(decoder, layer, index, cache, todo, self.device, self.method.needs_hessian)
                stops.run(hidden, quantize)
        stored |= _kept(before, after, prefix, weights)
        if self.target.kv_cache.scales:
            stored |= scale_tensors(after, prefix, cache.keys, cache.values)
        _check_block(after, prefix, stored)
        write_shard(state.shards / f"model-{index + 1:05d}.safetensors", stored)
        return losses

    def _store(
        self,
        group: Sequence[Linear],
        hessian: torch.Tensor | None,
        weights: Mapping[str, torch.Tensor],
        prefix: str,
        stored: dict[str, torch.Tensor],
        losses: dict[str, float],
    ) -> dict[str, torch.Tensor]:
        """Store a group that reads one input, into `stored`; returns the decoded weights by relative name."""
        matrices = [_matrix(linear, weights, prefix, self.device) for linear in group]
        decoded = {}
        for linear, done in zip(group, self.method.store(matrices, hessian, self.dtype), strict=True):
            stored.update(done.tensors)
            losses[linear.name] = done.loss
            decoded[linear.name] = done.decoded
        return decoded

    def _heads(self, decoder: Decoder | None, hidden: list[torch.Tensor], state: WalkState) -> dict[str, float]:
        """Store the matrices outside the blocks that are not left dense: an output head. Its input is the final norm's output."""
        hessian = None
        heads = packed_outer(self.target)
        if decoder is not None and self.method.needs_hessian:
            total = Hessian(heads[0].in_features, self.device)
            for inputs in decoder.final(hidden):
                total.add(inputs)
            hessian = total.value(heads[0].name)
        names = {linear.name: _head_source(self.source, self.weights, linear) for linear in heads}
        read = self.weights.read(names.values())
        weights = {f"{name}.weight": read[origin] for name, origin in names.items()}
        stored: dict[str, torch.Tensor] = {}
        losses: dict[str, float] = {}
        self._store(heads, hessian, weights, "", stored, losses)
        write_shard(state.shards / f"model-{len(self.source.decoder.layers) + 1:05d}.safetensors", stored)
        return losses


def units(target: ModelIR) -> int:
    """What a walk counts: blocks, and one more where a head is quantized."""
    return len(target.decoder.layers) + (1 if packed_outer(target) else 0)


def packed_outer(target: ModelIR) -> list[Linear]:
    """The matrices outside the stacks that are not stored dense."""
    return [linear for linear in target.outer if not isinstance(linear.storage, Dense)]


def _head_source(source: ModelIR, weights: Weights, head: Linear) -> str:
    """The stored tensor that a head is made of: its own, or the embedding it is tied to."""
    if f"{head.name}.weight" in weights:
        return f"{head.name}.weight"
    return next(f"{linear.name}.weight" for linear in source.outer if linear.role is Role.EMBEDDING)


class Stops:
    """Runs the calibration batches through one block, stopping all of them at each group of matrices to be quantized."""

    def __init__(
        self,
        decoder: Decoder,
        layer: torch.nn.Module,
        index: int,
        cache: CacheMaxima,
        groups: Sequence[Sequence[Linear]],
        device: torch.device,
        needs_hessian: bool,
    ) -> None:
        self._decoder, self._layer, self._index, self._cache = decoder, layer, index, cache
        self._groups, self._device, self._needs_hessian = groups, device, needs_hessian
        self._finished: set[int] = set()
        self._hessians: dict[int, Hessian] = {}

    def run(
        self,
        hidden: list[torch.Tensor],
        quantize: Callable[[Sequence[Linear], torch.Tensor | None], Mapping[str, torch.Tensor]],
    ) -> None:
        """Replace each batch in `hidden` by the block's output; `quantize` returns the decoded weights of a group."""
        from greenlet import getcurrent, greenlet

        scheduler = getcurrent()
        handles = [
            self._layer.get_submodule(linear.name).register_forward_pre_hook(self._hook(number, scheduler))
            for number, group in enumerate(self._groups) for linear in group
        ]  # fmt: skip
        try:
            waiting: dict[int, tuple[Any, int]] = {}
            for batch in range(len(hidden)):
                self._advance(greenlet(self._forward), hidden, batch, waiting, (hidden[batch],))
            while waiting:
                number = min(group for _, group in waiting.values())
                group = self._groups[number]
                hessian = (
                    self._hessians.pop(number).value(f"block {self._index} {group[0].name}")
                    if self._needs_hessian
                    else None
                )
                self._install(quantize(group, hessian))
                self._finished.add(number)
                for batch, (run, at) in sorted(waiting.items()):
                    if at == number:
                        self._advance(run, hidden, batch, waiting, ())
            for number in set(range(len(self._groups))) - self._finished:
                self._install(quantize(self._groups[number], None))
        finally:
            for handle in handles:
                handle.remove()

    def _forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self._decoder.run(self._layer, self._index, hidden, self._cache)

    def _advance(
        self,
        run: Any,
        hidden: list[torch.Tensor],
        batch: int,
        waiting: dict[int, tuple[Any, int]],
        args: tuple[Any, ...],
    ) -> None:
        """Let one batch run to its next stop or to the end of the block."""
        outcome = run.switch(*args)
        if run.dead:
            waiting.pop(batch, None)
            hidden[batch] = outcome
        else:
            waiting[batch] = (run, outcome)

    def _hook(self, number: int, scheduler: Any) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], None]:
        def pause(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            if number in self._finished:
                return
            if self._needs_hessian:
                if number not in self._hessians:
                    self._hessians[number] = Hessian(args[0].shape[-1], self._device)
                self._hessians[number].add(args[0])
            scheduler.switch(number)

        return pause

    def _install(self, decoded: Mapping[str, torch.Tensor]) -> None:
        for name, weight in decoded.items():
            self._layer.get_submodule(name).weight.data = weight.to(self._device)


def _groups(block: Block) -> list[list[Linear]]:
    """The matrices to be quantized, those that read the same input together, in execution order of the description."""
    groups: dict[str, list[Linear]] = {}
    for linear in block.linears:
        if not isinstance(linear.storage, Dense):
            groups.setdefault(linear.reads or linear.name, []).append(linear)
    return list(groups.values())


def _matrix(linear: Linear, weights: Mapping[str, torch.Tensor], prefix: str, device: torch.device) -> Matrix:
    """One matrix ready for an algorithm. Raises TightfitError for weights that are not finite."""
    import torch

    name = prefix + linear.name
    if f"{linear.name}.weight" not in weights:
        raise TightfitError(
            f"{name} is part of a fused matrix in the source", remedy="this family is not split in the walk yet"
        )
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
    for linear in after.linears:
        dense = isinstance(linear.storage, Dense)
        names += [t.name for t in linear.tensors() if dense or t.name == f"{linear.name}.bias"]
    return {prefix + name: weights[name] for name in names}


def _check_block(block: Block, prefix: str, stored: Mapping[str, torch.Tensor]) -> None:
    expected = {prefix + t.name for linear in block.linears for t in linear.tensors()} | {
        prefix + t.name for t in block.tensors
    }
    if expected != set(stored):
        odd = sorted(expected ^ set(stored))[:3]
        raise TightfitError(
            f"{prefix}: tensors differ from the plan: {', '.join(odd)}", remedy="this is a defect of tightfit"
        )


def peak_bytes(device: torch.device) -> int:
    """Peak memory of this process so far: allocated on the CUDA device, or resident on a CPU."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
