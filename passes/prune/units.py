"""What width pruning takes out together: an MLP's channels, an attention's key/value groups with their query heads."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from passes.algorithms.removal.importance import Units
from passes.ir.fused import split_fused
from passes.ir.model import Block, Linear, Role
from passes.ir.state import FullKV

if TYPE_CHECKING:
    import torch

_ATTENTION = (Role.Q, Role.K, Role.V, Role.QKV, Role.O)
_MLP = (Role.GATE, Role.UP, Role.GATE_UP, Role.DOWN)


def attention(block: Block) -> tuple[Linear, ...]:
    """Return the matrices of a block's attention whose rows or columns belong to heads."""
    return tuple(linear for linear in block.linears if linear.role in _ATTENTION)


def dense_mlp(block: Block) -> tuple[Linear, ...]:
    """Return the matrices of a block's MLP that every token uses, a shared expert's left out."""
    return tuple(lin for lin in block.linears if lin.role in _MLP and lin.copies == 1 and not lin.shared_expert)


def units_of(block: Block, intermediate: int, kv_heads: int) -> tuple[Units, ...]:
    """Return what goes together in a block, in the order in which it runs: groups of heads, then channels; none of what stays whole."""
    kinds = []
    if kv_heads and attention(block):
        kinds.append(_heads(block, kv_heads))
    if intermediate and dense_mlp(block):
        kinds.append(_channels(block, intermediate))
    return tuple(kinds)


def _channels(block: Block, kept: int) -> Units:
    import torch

    mlp = dense_mlp(block)
    [down] = [linear for linear in mlp if linear.role is Role.DOWN]
    every = torch.arange(down.in_features)[:, None]
    rows = {}
    for linear in mlp:
        if linear is not down:
            rows[linear.name] = [every + half for half in range(0, linear.out_features, down.in_features)]
    return Units(kept, down.name, every, rows)


def _heads(block: Block, kept: int) -> Units:
    import torch

    state = block.state
    assert isinstance(state, FullKV)
    [reader] = [linear for linear in block.linears if linear.role is Role.O]
    groups = state.kv_heads

    def parts(linear: Linear, start: int = 0) -> torch.Tensor:
        return start + torch.arange(linear.out_features).view(groups, -1)

    rows: dict[str, Sequence[torch.Tensor]] = {}
    for linear in attention(block):
        if linear is reader:
            continue
        pieces, start = [], 0
        for piece in split_fused(block.replace(linears=(linear,))).linears:
            pieces.append(parts(piece, start))
            start += piece.out_features
        rows[linear.name] = pieces
    return Units(kept, reader.name, torch.arange(reader.in_features).view(groups, -1), rows)


def narrowed(
    weights: Mapping[str, torch.Tensor], kinds: Sequence[tuple[Units, torch.Tensor, torch.Tensor]]
) -> dict[str, torch.Tensor]:
    """Return a block's tensors with the units that stay alone, by relative name.

    `kinds`: units, the numbers of those that stay, and the reader's new weight `[N, S]`. Dtypes stay.
    """
    changed = dict(weights)
    for units, kept, reader in kinds:
        name = f"{units.reader}.weight"
        changed[name] = reader.to(weights[name].dtype)
        for matrix in units.rows:
            rows = units.rows_of(matrix, kept)
            for end in ("weight", "bias"):
                if (tensor := weights.get(f"{matrix}.{end}")) is not None:
                    changed[f"{matrix}.{end}"] = tensor[rows]
    return changed
