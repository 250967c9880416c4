"""`quantization_config` of config.json, from the description of the finished model: what engines read to load a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from passes.ir.fused import absent_parts
from passes.ir.model import ModelIR
from passes.ir.quant_config.quant_config import NamedMatrix, incompatible, quant_config

#: Whose config says of a dense checkpoint that it holds scales of the KV cache.
_SCALES_OF_DENSE = "compressed-tensors"


def quantization_config(ir: ModelIR) -> dict[str, Any] | None:
    """Write the `quantization_config` of a model whose matrices are stored as `ir` says; None for a dense one without KV scales.

    Raises TightfitError where the formats of its matrices cannot stand in one checkpoint.
    """
    matrices = list(_matrices(ir))
    methods = {matrix.form.quant_method for matrix in matrices if matrix.form.is_quantized}
    if not methods and not ir.kv_cache.scales:
        return None
    if len(methods) > 1 or None in methods:
        raise incompatible(matrices)
    method = next(iter(methods), None) or _SCALES_OF_DENSE
    return quant_config(method, ir).write(ir, matrices)


def _matrices(ir: ModelIR) -> Iterator[NamedMatrix]:
    for stack in ir.stacks:
        for layer in range(len(stack.layers)):
            prefix, block = stack.layer_prefix(layer), stack.block(layer)
            for beside, name in absent_parts(block):
                yield NamedMatrix(prefix, name, beside.storage, beside.quantizable, absent=True)
            for linear in block.linears:
                apart = linear.stacking is not None and linear.storage.is_quantized
                for part, _ in linear.stacking.parts if apart and linear.stacking else ((linear.name, 0),):
                    yield NamedMatrix(prefix, part, linear.storage, linear.quantizable and stack.name == "decoder")
    for linear in ir.outer:
        yield NamedMatrix("", linear.name, linear.storage, False)
