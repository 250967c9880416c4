"""A block's matrices one by one: experts of a bank apart, fused matrices split where a format stores their parts.

Names are relative to the block. A bank of experts is one `Linear` with copies in the description, one 3-D tensor in many
checkpoints, and one matrix an expert wherever matrices are worked on; this module translates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import groupby
from typing import TYPE_CHECKING

from passes.ir.fused import split_fused
from passes.ir.model import Block, Linear, ModelIR, Role

if TYPE_CHECKING:
    import torch

    from passes.files.checkpoint import Weights


@lru_cache(maxsize=1 << 10)
def members(block: Block) -> tuple[Linear, ...]:
    """Every matrix of a block by itself, in the order in which they run: expert after expert, gate and up before down."""
    out: list[Linear] = []
    for copies, run in groupby(block.linears, key=lambda linear: linear.copies):
        bank = list(run)
        if copies == 1 and all(linear.stacking is None for linear in bank):
            out += bank
        else:
            out += [part for expert in range(copies) for linear in bank for part in expert_parts(linear, expert)]
    return tuple(out)


def expert_parts(linear: Linear, expert: int) -> Iterator[Linear]:
    """The matrices of one expert in one bank; `gate_up` banks have two."""
    stacking = linear.stacking
    parts = stacking.parts if stacking is not None else ((linear.name, linear.out_features),)
    roles = (Role.GATE, Role.UP) if len(parts) == 2 else (linear.role,)
    for (name, rows), role in zip(parts, roles, strict=True):
        yield replace(
            linear, name=name.replace("{e}", str(expert)), role=role, out_features=rows, copies=1, active=1,
            stacking=None, reads=f"{linear.reads}.{expert}",
        )  # fmt: skip


def copy_names(linear: Linear) -> list[str]:
    """The names of the matrices that a description's matrix stands for."""
    if linear.copies == 1 and linear.stacking is None:
        return [linear.name]
    return [part.name for expert in range(linear.copies) for part in expert_parts(linear, expert)]


def dense_block(ir: ModelIR, index: int, weights: Weights) -> dict[str, torch.Tensor]:
    """All tensors of one dense block by relative name; banks and fused matrices whole and in parts, however they are stored.

    A bank that is stored expert by expert is not stacked.
    """
    block, prefix = ir.decoder.block(index), ir.decoder.layer_prefix(index)
    wanted = [tensor.name for tensor in block.tensors]
    for linear in block.linears:
        wanted += _stored_names(linear, block, lambda name: prefix + name in weights)
    read = weights.read(prefix + name for name in wanted)
    found = {name.removeprefix(prefix): tensor for name, tensor in read.items()}
    for linear in block.linears:
        if linear.stacking is not None and linear.stacking.tensor in found:
            found |= _unstacked(linear, found)
    for whole, parts in fused_parts(block).items():
        found |= _fused_and_split(whole, parts, found)
    return found


def _stored_names(linear: Linear, block: Block, stored: Callable[[str], bool]) -> list[str]:
    """The tensors that hold a dense matrix: as described, or in parts where the whole is not stored."""
    whole = list(linear.tensors())
    if linear.stacking is not None and not stored(linear.stacking.tensor):
        whole = [t for expert in range(linear.copies) for part in expert_parts(linear, expert) for t in part.tensors()]
    elif linear.name in fused_parts(block) and not stored(f"{linear.name}.weight"):
        whole = [tensor for part in fused_parts(block)[linear.name] for tensor in part.tensors()]
    return [tensor.name for tensor in whole]


def restacked(linear: Linear, bank: torch.Tensor, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """A copy of a stacked bank in which the matrices of `parts` (by relative name) take the place of what it holds."""
    assert linear.stacking is not None
    whole = bank.clone()
    for name, place in _unstacked(linear, {linear.stacking.tensor: whole}).items():
        if name in parts:
            place.copy_(parts[name])
    return whole


def _unstacked(linear: Linear, found: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Views of a stacked bank `[experts, out, in]` (or transposed), expert by expert."""
    stacking = linear.stacking
    assert stacking is not None
    bank = found[stacking.tensor]
    out = {}
    for expert in range(linear.copies):
        matrix = bank[expert].T if stacking.transposed else bank[expert]
        biases = found.get(f"{stacking.tensor}_bias")
        bias = None if biases is None else biases[expert]
        start = 0
        parts = list(expert_parts(linear, expert))
        for number, part in enumerate(parts):
            step = len(parts) if stacking.interleaved else 1
            first = number if stacking.interleaved else start
            rows = slice(first, first + step * (part.out_features - 1) + 1, step)
            out[f"{part.name}.weight"] = matrix[rows]
            if bias is not None:
                out[f"{part.name}.bias"] = bias[rows]
            start += part.out_features
    return out


def _fused_and_split(whole: str, parts: Sequence[Linear], found: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A fused matrix (qkv, gate_up) whole and in parts, from whichever was found."""
    import torch

    out: dict[str, torch.Tensor] = {}
    for end in ("weight", "bias"):
        if (tensor := found.get(f"{whole}.{end}")) is not None:
            pieces = torch.split(tensor, [part.out_features for part in parts])
            out |= {f"{part.name}.{end}": piece for part, piece in zip(parts, pieces, strict=True)}
        elif f"{parts[0].name}.{end}" in found:
            out[f"{whole}.{end}"] = torch.cat([found[f"{part.name}.{end}"] for part in parts])
    return out


@lru_cache(maxsize=1 << 10)
def fused_parts(block: Block) -> dict[str, tuple[Linear, ...]]:
    """The fused matrices that formats may store in parts, each with its parts in the order of their rows."""
    own = {linear.name for linear in block.linears}
    out = {}
    for linear in block.linears:
        parts = split_fused(block.replace(linears=(linear,))).linears
        if parts[0].name not in own:
            out[linear.name] = parts
    return out


def packed(linear: Linear) -> bool:
    """Whether a matrix is stored in other than plain numbers."""
    return linear.storage.is_quantized
