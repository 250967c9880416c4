"""A quantized checkpoint read as dense weights: each matrix is decoded from what is on disk when it is asked for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from passes.blocks.dense_model import DenseModel
from passes.blocks.matrices import members, packed
from passes.files.checkpoint import Checkpoint
from passes.formats.dense import Dense
from passes.ir.model import Linear, ModelIR

if TYPE_CHECKING:
    import torch


class DecodedCheckpoint:
    """Dense weights of a checkpoint whose storage `ir` describes. `X.weight` of a stored matrix `X` is its decoded value."""

    def __init__(self, checkpoint: Checkpoint, ir: ModelIR, dtype: torch.dtype) -> None:
        self._checkpoint = checkpoint
        self._dtype = dtype
        self._stored: dict[str, Linear] = {f"{linear.name}.weight": linear for linear in ir.outer if packed(linear)}
        self._biases: dict[str, int] = {}
        for stack in ir.stacks:
            for layer in range(len(stack.layers)):
                prefix = stack.layer_prefix(layer)
                for linear in members(stack.block(layer)):
                    if packed(linear):
                        self._stored[f"{prefix}{linear.name}.weight"] = linear
                        self._biases[f"{prefix}{linear.name}.bias"] = linear.out_features

    @property
    def folder(self) -> Path:
        """The folder of the checkpoint that is shown."""
        return self._checkpoint.folder

    def __contains__(self, name: str) -> bool:
        return name in self._stored or name in self._checkpoint

    def read(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """Return the named tensors, stored matrices decoded."""
        return {name: self._one(name) for name in names}

    def _one(self, name: str) -> torch.Tensor:
        linear = self._stored.get(name)
        # Some formats pad the outputs; what is beyond them belongs to no one.
        if linear is None:
            return self._checkpoint.read([name])[name][: self._biases.get(name)]
        module = name.removesuffix(".weight")
        parts = [tensor.name for tensor in linear.storage.tensors(module, linear.out_features, linear.in_features)]
        return linear.storage.decode(module, self._checkpoint.read(parts), self._dtype)[: linear.out_features]


def decoded_model(source: ModelIR, planned: ModelIR, folder: Path, dtype: torch.dtype) -> DenseModel:
    """Return what is stored in a folder as `planned` says, read back as the dense model that `source` describes."""
    return DenseModel(_as_dense(source, planned), DecodedCheckpoint(Checkpoint(folder), planned, dtype))


def _as_dense(dense: ModelIR, planned: ModelIR) -> ModelIR:
    """The result as a dense model: what its decoded weights are. A head stored apart is no longer tied to the embedding."""
    if len(planned.outer) == len(dense.outer):
        return dense
    apart = [linear for linear in planned.outer if linear.name not in {matrix.name for matrix in dense.outer}]
    head = tuple(replace(linear, storage=Dense(dense.dtype)) for linear in apart)
    config = {**dense.config, "tie_word_embeddings": False}
    return replace(dense, outer=(*dense.outer, *head), tied_embeddings=False, config=config)
