"""What becomes of one block: its matrices stored group after group, what stays as it was, the block's tensors as they go to disk."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from passes.algorithms.method import Matrix, Method, Stored
from passes.blocks.devices import pinned_copy
from passes.blocks.input_statistics import InputStatistics
from passes.blocks.matrices import copy_names, members, packed, restacked
from passes.errors import TightfitError
from passes.formats.exllama.exl2 import Exl2, inputs_in_place, reordered_outputs
from passes.formats.format import Quantized
from passes.formats.tensor import float_dtype
from passes.ir.model import Block, Linear, Role
from passes.walk.scale_folding import ScaleFold, rows_divided
from passes.walk.state import BlockReport

if TYPE_CHECKING:
    import torch


class BlockResult:
    """What becomes of one block: its matrices stored group after group, the scales of their inputs taken over by what is before."""

    def __init__(
        self, method: Method, weights: Mapping[str, torch.Tensor], prefix: str, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.method, self.weights, self.prefix, self.device, self.dtype = method, weights, prefix, device, dtype
        self.tuned = False
        self.folds: Mapping[str, ScaleFold] = {}
        self.stored: dict[str, torch.Tensor] = {}
        self._losses: dict[str, float] = {}
        self._unseen: list[str] = []
        self.done: dict[str, tuple[Linear, Stored]] = {}
        """The matrices that are stored, by relative name, while somebody may want to store one anew."""
        self._taken: list[tuple[ScaleFold, torch.Tensor]] = []
        self._peaks: dict[Role, float] = {}

    def store(self, group: Sequence[Linear], inputs: InputStatistics | None) -> dict[str, torch.Tensor]:
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
            self.stored |= on_the_processor(done.tensors)
            self._losses[linear.name] = done.loss
            if self.folds or self.tuned:
                self.done[linear.name] = (linear, done)
            decoded[linear.name] = done.decoded if scale is None else done.decoded / scale
        return decoded

    def store_again(self, name: str, quantized: Quantized) -> torch.Tensor:
        """Store a matrix with other codes and scales; returns the decoded weight."""
        linear, _ = self.done[name]
        tensors = linear.storage.encode(self.prefix + name, quantized)
        self.stored |= on_the_processor(tensors)
        return linear.storage.decode(self.prefix + name, tensors, self.dtype)

    def _input_peak(self, role: Role, inputs: InputStatistics | None, scale: torch.Tensor | None) -> float:
        """The largest input seen, as smoothed; of an expert that no token reached, that of the block's others (1, were there none)."""
        if inputs is None:
            return self._peaks.get(role, 1.0)
        peak = float((inputs.peak if scale is None else inputs.peak / scale).max())
        self._peaks[role] = max(peak, self._peaks.get(role, 0.0))
        return peak

    def _smoothed(
        self, matrices: Sequence[Matrix], inputs: InputStatistics | None, hessian: torch.Tensor | None
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
            if fold.name in self.done:
                linear, done = self.done[fold.name]
                assert done.quantized is not None
                stored |= on_the_processor(linear.storage.encode(name, rows_divided(done.quantized, scale)))
            else:
                stored[f"{name}.weight"] = fold.folded(stored[f"{name}.weight"], scale.cpu())
            if f"{name}.bias" in stored:
                stored[f"{name}.bias"] = replace(fold, kind="norm").folded(stored[f"{name}.bias"], scale.cpu())

    def report(self, number: int, began: float) -> BlockReport:
        """Report what the walk saw, the clock having started at `began`."""
        seconds = round(time.monotonic() - began, 3)
        return BlockReport(number, self._losses, seconds, tuple(self._unseen))


def on_the_processor(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return tensors as they go to disk: nothing finished stays on a card, which copies fast to pinned memory."""
    import torch

    out, cards = {}, set()
    for name, tensor in tensors.items():
        if tensor.device.type == "cuda":
            cards.add(tensor.device)
            out[name] = pinned_copy(tensor)
        else:
            out[name] = tensor.cpu()
    for card in cards:
        torch.cuda.current_stream(card).synchronize()
    return out


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


def kept(before: Block, after: Block, prefix: str, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Keep what is stored as it was: norms, biases, matrices that stay dense."""
    known = {tensor.name for tensor in before.tensors}
    names = [tensor.name for tensor in after.tensors if tensor.name in known]
    names += [tensor.name for linear in after.linears if not packed(linear) for tensor in linear.tensors()]
    biases = {f"{linear.name}.bias": linear for linear in members(after) if packed(linear) and linear.bias}
    return {prefix + name: weights[name] for name in names} | {
        prefix + name: _stored_bias(weights[name], linear) for name, linear in biases.items()
    }


def _stored_bias(bias: torch.Tensor, linear: Linear) -> torch.Tensor:
    """The bias of a stored matrix `[N]` as its format has it: its dtype, and zeros for the outputs that the format pads."""
    import torch

    pad = linear.storage.stored_rows(linear.out_features) - linear.out_features
    return torch.nn.functional.pad(bias, (0, pad)).to(float_dtype(linear.bias or ""))


def channels_in_place(block: Block, prefix: str, stored: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return `stored` with the inner channels of a dense EXL2 MLP that has biases renumbered in the order in which down reads them.

    ExLlamaV2 folds down's permutation into the outputs of gate and up when it loads them, but not into their biases: here nothing
    is left to fold.
    """
    inner = [linear for linear in block.linears if linear.role in (Role.GATE, Role.UP) and _exl2_alone(linear)]
    if not any(linear.bias for linear in inner):
        return dict(stored)
    [down] = [linear for linear in block.linears if linear.role is Role.DOWN and _exl2_alone(linear)]
    renamed, order = inputs_in_place(prefix + down.name, stored)
    out = {**stored, **renamed}
    for linear in inner:
        out |= reordered_outputs(prefix + linear.name, stored, order)
    return out


def _exl2_alone(linear: Linear) -> bool:
    return (
        linear.storage.quant_method == Exl2.quant_method
        and linear.copies == 1
        and linear.stacking is None
        and not linear.shared_expert
    )


def banks_whole(
    block: Block, prefix: str, weights: Mapping[str, torch.Tensor], stored: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """Return `stored` with the experts that were worked on but stay dense back in their banks."""
    out = dict(stored)
    for linear in block.linears:
        if linear.stacking is None or packed(linear):
            continue
        names = [f"{name}.weight" for name in copy_names(linear)]
        parts = {name: out.pop(prefix + name) for name in names if prefix + name in out}
        if parts:
            tensor = linear.stacking.tensor
            out[prefix + tensor] = restacked(linear, weights[tensor].cpu(), parts)
    return out


def check(block: Block, prefix: str, stored: Mapping[str, torch.Tensor]) -> None:
    """Raise TightfitError unless a block's tensors are those that its description names."""
    expected = {prefix + t.name for linear in block.linears for t in linear.tensors()} | {
        prefix + t.name for t in block.tensors
    }
    if expected != set(stored):
        odd = sorted(expected ^ set(stored))[:3]
        raise TightfitError(
            f"{prefix}: tensors differ from the plan: {', '.join(odd)}", remedy="this is a defect of tightfit"
        )
