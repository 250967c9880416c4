"""Describes a model as an engine holds it: quantized while loading, or in another dtype than the checkpoint."""

from __future__ import annotations

from functools import lru_cache

from passes.formats.at_load import resident
from passes.formats.dense import Dense
from passes.formats.tensor import Tensor
from passes.ir.model import Block, Linear, ModelIR, remembered
from passes.record import replace

_FLOATS = frozenset({"BF16", "F16", "F32"})


def resident_model(ir: ModelIR) -> ModelIR:
    """Describe what the engine holds: `ir` itself without a load-time scheme. For memory and speed, not for files."""
    return ir if ir.load_time.name == "none" else _resident(ir)


@remembered
def _resident(ir: ModelIR) -> ModelIR:
    return ir.with_decoder(ir.decoder.map_blocks(lambda block: _held(block, ir.load_time.name)))


@lru_cache(maxsize=1 << 12)
def _held(block: Block, scheme: str) -> Block:
    def hold(linear: Linear) -> Linear:
        return replace(linear, storage=resident(scheme)) if linear.quantizable else linear

    return block.map_linears(hold)


def cast_dense(ir: ModelIR, dtype: str) -> ModelIR:
    """Cast the 16- and 32-bit tensors of a model to another dtype (safetensors' name)."""
    return ir if dtype == ir.dtype else _cast(ir, dtype)


@remembered
def _cast(ir: ModelIR, dtype: str) -> ModelIR:
    return replace(
        ir,
        dtype=dtype,
        stacks=tuple(stack.map_blocks(lambda block: _cast_block(block, dtype)) for stack in ir.stacks),
        outer=tuple(_cast_linear(linear, dtype) for linear in ir.outer),
        outer_tensors=tuple(_cast_tensor(tensor, dtype) for tensor in ir.outer_tensors),
    )


@lru_cache(maxsize=1 << 12)
def _cast_block(block: Block, dtype: str) -> Block:
    tensors = tuple(_cast_tensor(tensor, dtype) for tensor in block.tensors)
    return block.map_linears(lambda linear: _cast_linear(linear, dtype)).replace(tensors=tensors)


def _cast_linear(linear: Linear, dtype: str) -> Linear:
    storage = linear.storage if linear.storage.is_quantized else Dense(dtype)
    return replace(linear, storage=storage, bias=dtype if linear.bias in _FLOATS else linear.bias)


def _cast_tensor(tensor: Tensor, dtype: str) -> Tensor:
    return Tensor(tensor.name, dtype, tensor.shape) if tensor.dtype in _FLOATS else tensor
