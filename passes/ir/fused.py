"""Fused matrices: which parts engines make one of, and what several quantizing passes change: parts split, a head in fewer bits."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

from passes.formats.format import Format
from passes.ir.model import Block, Linear, ModelIR, Role, untied_head
from passes.ir.state import FullKV

#: Fused names whose parts readers know under these names.
_QKV, _GATE_UP = "qkv_proj", "gate_up_proj"
_KEYS, _VALUES = "k_proj", "v_proj"


@lru_cache(maxsize=1 << 14)
def fused(block: Block) -> tuple[tuple[Linear, ...], ...]:
    """Group the matrices of a block as engines multiply them: those that they make one matrix of (q, k and v; gate and up) together."""
    groups: dict[tuple[str, bool], list[Linear]] = {}
    for linear in block.linears:
        groups.setdefault((linear.agree or linear.name, linear.role is Role.DOWN), []).append(linear)
    return tuple(map(tuple, groups.values()))


@lru_cache(maxsize=1 << 12)
def absent_parts(block: Block) -> tuple[tuple[Linear, str], ...]:
    """Find the parts of fused matrices that a block has no tensors of: (the part beside it whose values it takes, its name) each.

    Keys that serve as values too (Gemma 4's full attention) leave `v_proj` out; engines hold both.
    """
    roles = {linear.role: linear for linear in block.linears}
    keys = roles.get(Role.K)
    if keys is None or not isinstance(block.state, FullKV) or not {Role.V, Role.QKV}.isdisjoint(roles):
        return ()
    stem, _, name = keys.name.rpartition(_KEYS)
    return ((keys, stem + _VALUES + name),) if _KEYS in keys.name else ()


@lru_cache(maxsize=1 << 12)
def split_fused(block: Block) -> Block:
    """Split `qkv_proj` of a block into q, k and v and `gate_up_proj` into gate and up, rows in this order; others stay."""
    return block.replace(linears=tuple(part for linear in block.linears for part in _parts(linear, block)))


def _parts(linear: Linear, block: Block) -> tuple[Linear, ...]:
    if not linear.quantizable or linear.stacking is not None:
        return (linear,)
    if linear.role is Role.QKV and linear.name.endswith(_QKV) and isinstance(block.state, FullKV):
        k, v = block.state.kv_heads * block.state.head_dim, block.state.kv_heads * block.state.v_head_dim
        stem = linear.name.removesuffix(_QKV)
        sizes = ((Role.Q, "q_proj", linear.out_features - k - v), (Role.K, "k_proj", k), (Role.V, "v_proj", v))
        return tuple(replace(linear, name=stem + n, role=r, out_features=size, agree="qkv") for r, n, size in sizes)
    if linear.role is Role.GATE_UP and linear.name.endswith(_GATE_UP):
        stem, size = linear.name.removesuffix(_GATE_UP), linear.out_features // 2
        names = ((Role.GATE, "gate_proj"), (Role.UP, "up_proj"))
        return tuple(replace(linear, name=stem + n, role=r, out_features=size, agree="gate_up") for r, n in names)
    return (linear,)


def with_head(ir: ModelIR, storage: Format) -> ModelIR:
    """Store the output head of a model in `storage`. A tied head becomes a matrix of its own; the embedding stays as it is."""
    if any(linear.role is Role.HEAD for linear in ir.outer):
        outer = tuple(replace(lin, storage=storage) if lin.role is Role.HEAD else lin for lin in ir.outer)
        return replace(ir, outer=outer)
    return replace(ir, outer=(*ir.outer, untied_head(ir, storage)))


def head_shape(ir: ModelIR) -> tuple[int, int]:
    """Return outputs and inputs of the output head, tied or not."""
    roles = {linear.role: linear for linear in ir.outer}
    head = roles.get(Role.HEAD) or roles[Role.EMBEDDING]
    return head.out_features, head.in_features
