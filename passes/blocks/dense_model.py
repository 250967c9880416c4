"""A model with dense weights, as everything that computes with it takes it.

Its weights are a checkpoint's, or a view of one: with blocks dropped (`passes.blocks.renumbered`), or decoded from what a walk has stored
(`passes.blocks.decoded_weights`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from passes.blocks.matrices import expert_parts, fused_parts, unstacked
from passes.files.atomic import readable, write_json
from passes.files.checkpoint import INDEX, Checkpoint, Weights, copy_side_files, write_index, write_shard
from passes.formats.tensor import Tensor, float_dtype
from passes.ir.model import Block, Linear, ModelIR
from passes.ir.readers.headers import is_whole
from passes.record import dataclass
from passes.steps.context import RunContext
from passes.steps.key import content_key
from passes.steps.step import Report

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class DenseModel:
    """A model with dense weights: its description, where its tensors are read from, what it was made of.

    Every key of a step on it begins with `identity`; it is empty where no step is made of the model. `origin`: the model that the chain
    began with, None where it is this one. `origin_blocks`: which of that one's blocks its own are; None where it has all of them.
    """

    ir: ModelIR
    weights: Weights
    identity: tuple[Any, ...] = ()
    origin: DenseModel | None = None
    origin_blocks: tuple[int, ...] | None = None

    def __len__(self) -> int:
        """The number of decoder blocks."""
        return len(self.ir.decoder.layers)

    def descends_from(self, before: DenseModel) -> DenseModel:
        """Return it with what a pass made it of noted: the chain's first model, and which of that one's blocks its own are."""
        kept = self.origin_blocks
        if kept is None:
            kept = before.origin_blocks
        elif before.origin_blocks is not None:
            kept = tuple(before.origin_blocks[block] for block in kept)
        return replace(self, origin=before.origin or before, origin_blocks=kept)

    def block(self, index: int) -> dict[str, torch.Tensor]:
        """Return all tensors of a block by relative name; banks and fused matrices whole and in parts, however they are stored.

        A bank that is stored expert by expert is not stacked.
        """
        block, prefix = self.ir.decoder.block(index), self.ir.decoder.layer_prefix(index)
        names = [tensor.name for tensor in block.tensors]
        for linear in block.linears:
            names += _stored_names(linear, block, lambda name: prefix + name in self.weights)
        stored = self.weights.read(prefix + name for name in names)
        tensors = {name.removeprefix(prefix): tensor for name, tensor in stored.items()}
        for linear in block.linears:
            if linear.stacking is not None and linear.stacking.tensor in tensors:
                tensors |= unstacked(linear, tensors)
        for whole, parts in fused_parts(block).items():
            tensors |= _fused_and_split(whole, parts, tensors)
        return tensors

    def outer(self, planned: ModelIR) -> dict[str, torch.Tensor]:
        """Return what lies outside of the decoder's blocks and stays as it is where the model becomes `planned`, by full name."""
        return self.weights.read(planned.outer_names())

    def folder(self, run: RunContext) -> Path:
        """Return the folder of its files, for outside tools: the checkpoint's own; a view is written to one of its own, as a step."""
        if isinstance(self.weights, Checkpoint):
            return self.weights.folder
        key = content_key(*self.identity, "dense")
        folder = run.folder / f"dense-{key}"
        run.steps.run("dense model", key, readable(folder / INDEX), lambda report: self.write(folder, report))
        return folder

    def write(self, folder: Path, report: Report) -> None:
        """Write its files into a folder, each tensor in the dtype of the description: a shard for each block, one for the rest.

        What is whole already is not written again, and the index comes last.
        """
        folder.mkdir(parents=True, exist_ok=True)
        decoder = self.ir.decoder
        for index in range(len(self)):
            path = folder / f"model-{index + 1:05d}.safetensors"
            block, prefix = decoder.block(index), decoder.layer_prefix(index)
            tensors = [*block.tensors, *(tensor for linear in block.linears for tensor in linear.tensors())]
            if not is_whole(path):
                write_shard(path, self._described([replace(tensor, name=prefix + tensor.name) for tensor in tensors]))
            report(index + 1, len(self))
        outer = [*(tensor for linear in self.ir.outer for tensor in linear.tensors()), *self.ir.outer_tensors]
        beside = set(self.ir.outer_names()) - {tensor.name for tensor in outer}
        write_shard(folder / "model-00000.safetensors", self._described(outer) | self.weights.read(sorted(beside)))
        copy_side_files(self.weights.folder, folder)
        config = {key: value for key, value in self.ir.config.items() if key != "quantization_config"}
        write_json(folder / "config.json", config)
        write_index(folder)

    def _described(self, tensors: Sequence[Tensor]) -> dict[str, torch.Tensor]:
        """Tensors by full name, plain numbers in the dtypes of the description."""
        dtypes = {tensor.name: tensor.dtype for tensor in tensors}
        stored = self.weights.read(dtypes)
        return {
            name: tensor.to(float_dtype(dtypes[name])) if tensor.is_floating_point() else tensor
            for name, tensor in stored.items()
        }


def _stored_names(linear: Linear, block: Block, stored: Callable[[str], bool]) -> list[str]:
    """The tensors that hold a dense matrix: as described, or in parts where the whole is not stored."""
    whole = list(linear.tensors())
    if linear.stacking is not None and not stored(linear.stacking.tensor):
        whole = [t for expert in range(linear.copies) for part in expert_parts(linear, expert) for t in part.tensors()]
    elif linear.name in fused_parts(block) and not stored(f"{linear.name}.weight"):
        whole = [tensor for part in fused_parts(block)[linear.name] for tensor in part.tensors()]
    return [tensor.name for tensor in whole]


def _fused_and_split(
    whole: str, parts: Sequence[Linear], tensors: Mapping[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """A fused matrix (qkv, gate_up) whole and in parts, from whichever is stored."""
    import torch

    pieces_and_whole: dict[str, torch.Tensor] = {}
    for end in ("weight", "bias"):
        if (tensor := tensors.get(f"{whole}.{end}")) is not None:
            pieces = torch.split(tensor, [part.out_features for part in parts])
            pieces_and_whole |= {f"{part.name}.{end}": piece for part, piece in zip(parts, pieces, strict=True)}
        elif f"{parts[0].name}.{end}" in tensors:
            pieces_and_whole[f"{whole}.{end}"] = torch.cat([tensors[f"{part.name}.{end}"] for part in parts])
    return pieces_and_whole
