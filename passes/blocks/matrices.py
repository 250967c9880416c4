"""A block's matrices one by one: experts of a bank apart, fused matrices split where a format stores their parts.

Names are relative to the block. A bank of experts is one `Linear` with copies in the description, one 3-D tensor in many
checkpoints, and one matrix an expert wherever matrices are worked on; this module translates.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from itertools import groupby
from typing import TYPE_CHECKING

from passes.ir.fused import split_fused
from passes.ir.model import Block, Linear, Role

if TYPE_CHECKING:
    import torch


@lru_cache(maxsize=1 << 10)
def members(block: Block) -> tuple[Linear, ...]:
    """Return every matrix of a block by itself, in the order in which they run: expert after expert, gate and up before down."""
    out: list[Linear] = []
    for copies, run in groupby(block.linears, key=lambda linear: linear.copies):
        bank = list(run)
        if copies == 1 and all(linear.stacking is None for linear in bank):
            out += bank
        else:
            out += [part for expert in range(copies) for linear in bank for part in expert_parts(linear, expert)]
    return tuple(out)


def expert_parts(linear: Linear, expert: int) -> Iterator[Linear]:
    """Return the matrices of one expert in one bank; `gate_up` banks have two."""
    stacking = linear.stacking
    parts = stacking.parts if stacking is not None else ((linear.name, linear.out_features),)
    roles = (Role.GATE, Role.UP) if len(parts) == 2 else (linear.role,)
    for (name, rows), role in zip(parts, roles, strict=True):
        yield replace(
            linear, name=name.replace("{e}", str(expert)), role=role, out_features=rows, copies=1, active=1,
            stacking=None, reads=f"{linear.reads}.{expert}",
        )  # fmt: skip


def copy_names(linear: Linear) -> list[str]:
    """Return the names of the matrices that a description's matrix stands for."""
    if linear.copies == 1 and linear.stacking is None:
        return [linear.name]
    return [part.name for expert in range(linear.copies) for part in expert_parts(linear, expert)]


def restacked(linear: Linear, bank: torch.Tensor, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return a copy of a stacked bank in which the matrices of `parts` (by relative name) take the place of what it holds."""
    assert linear.stacking is not None
    whole = bank.clone()
    for name, place in unstacked(linear, {linear.stacking.tensor: whole}).items():
        if name in parts:
            place.copy_(parts[name])
    return whole


def unstacked(linear: Linear, found: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return views of a stacked bank `[experts, out, in]` (or transposed), expert by expert."""
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


@lru_cache(maxsize=1 << 10)
def fused_parts(block: Block) -> dict[str, tuple[Linear, ...]]:
    """Return the fused matrices that formats may store in parts, each with its parts in the order of their rows."""
    own = {linear.name for linear in block.linears}
    out = {}
    for linear in block.linears:
        parts = split_fused(block.replace(linears=(linear,))).linears
        if parts[0].name not in own:
            out[linear.name] = parts
    return out


def packed(linear: Linear) -> bool:
    """Return whether a matrix is stored in other than plain numbers."""
    return linear.storage.is_quantized
