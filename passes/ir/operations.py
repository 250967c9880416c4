"""Counts the floating-point operations of what is done to a model: forwards, Hessians, error compensation."""

from __future__ import annotations

from passes.ir.model import Block, ModelIR


def forward_operations(ir: ModelIR) -> float:
    """Return the operations of a token through the decoder's blocks."""
    return 2 * sum(count * _active(block) for block, count in ir.decoder.counts)


def head_operations(ir: ModelIR) -> int:
    """Return the operations of a token through the output head."""
    return 2 * ir.vocab_size * ir.hidden_size


def hessian_operations(ir: ModelIR) -> float:
    """Return the operations by which a token adds to the Hessians of all inputs."""
    return 2 * sum(count * _inputs_squared(block) for block, count in ir.decoder.counts)


def compensation_operations(ir: ModelIR) -> float:
    """Return the operations that compensate the errors of every column of every matrix, once."""
    return 2 * sum(count * _compensated(block) for block, count in ir.decoder.counts)


def columns_in_turn(ir: ModelIR) -> float:
    """Return the columns that are compensated one after the other: of each distinct input, whatever number of matrices reads it."""
    return sum(count * _columns(block) for block, count in ir.decoder.counts)


def error_operations(ir: ModelIR) -> float:
    """Return the operations of tr(E H Eᵀ) over all quantizable matrices."""
    return 2 * sum(count * _errors(block) for block, count in ir.decoder.counts)


def quantizable_weights(ir: ModelIR) -> float:
    """Return how many weights of the decoder are quantizable."""
    return sum(count * lin.weights for block, count in ir.decoder.counts for lin in block.linears if lin.quantizable)


def _active(block: Block) -> float:
    return sum(lin.out_features * lin.in_features * min(lin.active, lin.copies) for lin in block.linears)


def _inputs_squared(block: Block) -> float:
    """K² of each distinct input, half of it: the product is symmetric."""
    inputs = {
        lin.reads or lin.name: lin.in_features**2 * min(lin.active, lin.copies)
        for lin in block.linears
        if lin.quantizable
    }
    return sum(inputs.values()) / 2


def _columns(block: Block) -> float:
    inputs = {lin.reads or lin.name: lin.in_features * lin.copies for lin in block.linears if lin.quantizable}
    return sum(inputs.values())


def _errors(block: Block) -> float:
    return sum(lin.copies * lin.out_features * lin.in_features**2 for lin in block.linears if lin.quantizable)


def _compensated(block: Block) -> float:
    return sum(
        lin.copies * (lin.out_features * lin.in_features**2 + lin.in_features**3)
        for lin in block.linears
        if lin.quantizable
    )
