"""Bytes of weights that a rank of vLLM holds after loading: how matrices are cut by tensor parallelism, and repacked.

Cutting follows Megatron (arXiv 1909.08053) as vLLM does it: q/k/v, gate/up by output, o and down by input, experts by their
intermediate size (or whole experts under expert parallelism), embedding and head by vocabulary padded to a multiple of 64;
norms, routers and latent down-projections are whole on every rank; a KV head that several ranks need is on each of them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

from passes.formats.dense import Dense
from passes.formats.tensor import Tensor
from passes.ir.model import Block, Linear, ModelIR, Role
from passes.ir.state import FullKV, LayerState
from targets.engines.engine import Parallel

_BY_OUTPUT = {Role.Q, Role.QKV, Role.Q_UP, Role.KV_UP, Role.GATE, Role.UP, Role.GATE_UP, Role.MIXER_IN, Role.MIXER_GATE}
_BY_INPUT = {Role.O, Role.DOWN, Role.MIXER_OUT}
_BY_VOCABULARY = {Role.EMBEDDING, Role.HEAD}
#: Rows that vLLM pads a vocabulary to (`DEFAULT_VOCAB_PADDING_SIZE` in vocab_parallel_embedding.py).
VOCABULARY_PADDING = 64
#: What a checkpoint stores that no rank keeps: shapes, and the group index of matrices without activation order.
_DROPPED = (".weight_shape", ".g_idx", ".k_scale", ".v_scale")


@dataclass(frozen=True, slots=True)
class Ranks:
    """Cutting degrees that matter to one rank."""

    tp: int
    ep: int

    @classmethod
    def of(cls, parallel: Parallel) -> Ranks:
        """The degrees of a parallel layout."""
        return cls(parallel.tp, parallel.ep)


def local_shape(linear: Linear, ranks: Ranks, state: LayerState) -> tuple[int, int, int]:
    """(output rows, inputs, copies) of a matrix on one rank."""
    rows, inputs, copies, tp = linear.out_features, linear.in_features, linear.copies, ranks.tp
    if linear.role in _BY_VOCABULARY:
        padded = math.ceil(rows / VOCABULARY_PADDING) * VOCABULARY_PADDING
        return math.ceil(padded / tp), inputs, copies
    if copies > 1 and ranks.ep > 1:
        return rows, inputs, math.ceil(copies / ranks.ep)
    if linear.role in (Role.K, Role.V) and isinstance(state, FullKV):
        return rows // state.kv_heads * max(1, state.kv_heads // tp) if state.kv_heads else rows // tp, inputs, copies
    if linear.role is Role.QKV and isinstance(state, FullKV) and state.kv_heads < tp:
        head = state.head_dim + state.v_head_dim
        return (rows - state.kv_heads * head) // tp + head, inputs, copies
    if linear.role in _BY_OUTPUT:
        return math.ceil(rows / tp), inputs, copies
    if linear.role in _BY_INPUT:
        return rows, math.ceil(inputs / tp), copies
    return rows, inputs, copies


def _resident(tensor: Tensor) -> int:
    return 0 if tensor.name.endswith(_DROPPED) else tensor.bytes


@lru_cache(maxsize=1 << 15)
def linear_bytes(linear: Linear, ranks: Ranks, state: LayerState) -> int:
    """Bytes of one matrix (all its copies) on one rank."""
    rows, inputs, copies = local_shape(linear, ranks, state)
    local = replace(linear, out_features=rows, in_features=inputs, copies=1, bias=None, stacking=None)
    bias = rows * copies * 2 if linear.bias else 0
    if isinstance(linear.storage, Dense) or not linear.storage.illegal(rows, inputs):
        return copies * sum(_resident(tensor) for tensor in local.tensors()) + bias
    # A cut that the format cannot hold is refused elsewhere; its size is still answered, in proportion.
    share = rows * inputs / (linear.out_features * linear.in_features)
    whole = replace(linear, copies=1, bias=None, stacking=None)
    return int(copies * share * sum(_resident(tensor) for tensor in whole.tensors())) + bias


@lru_cache(maxsize=1 << 14)
def block_bytes(block: Block, ranks: Ranks) -> int:
    """Bytes of one layer on one rank."""
    matrices = sum(linear_bytes(linear, ranks, block.state) for linear in block.linears)
    return matrices + sum(_resident(tensor) for tensor in block.tensors)


def stage_layers(layers: int, pp: int) -> tuple[int, ...]:
    """Layers of each pipeline stage: even, the remainder one each from the last but one stage backwards (vLLM's
    `get_pp_indices`)."""
    base, rest = divmod(layers, pp)
    counts = [base] * pp
    for number in range(2, rest + 2):
        counts[-number] += 1
    return tuple(counts)


@lru_cache(maxsize=1 << 12)
def outer_bytes(ir_outer: tuple[Linear, ...], tied: bool, ranks: Ranks, roles: frozenset[Role]) -> int:
    """Bytes of the matrices outside the stacks that have one of these roles."""
    from passes.ir.state import NoState

    return sum(linear_bytes(linear, ranks, NoState()) for linear in ir_outer if linear.role in roles)


def weights_per_stage(ir: ModelIR, parallel: Parallel) -> tuple[int, ...]:
    """Resident weight bytes of one rank of each pipeline stage, first stage first."""
    ranks = Ranks.of(parallel)
    decoder = ir.decoder
    rest = sum(
        count * block_bytes(b, ranks) for s in ir.stacks if s.name not in ("decoder", "mtp") for b, count in s.counts
    )
    others = frozenset(Role) - _BY_VOCABULARY
    embedding = outer_bytes(ir.outer, ir.tied_embeddings, ranks, frozenset({Role.EMBEDDING}))
    head = outer_bytes(ir.outer, ir.tied_embeddings, ranks, frozenset({Role.HEAD}))
    rest += outer_bytes(ir.outer, ir.tied_embeddings, ranks, others)
    tail = sum(t.bytes for t in ir.outer_tensors) + (embedding if ir.tied_embeddings and parallel.pp > 1 else head)
    if parallel.pp == 1:
        stacked = sum(count * block_bytes(block, ranks) for block, count in decoder.counts)
        return (
            stacked + embedding + rest + (tail if not ir.tied_embeddings else sum(t.bytes for t in ir.outer_tensors)),
        )
    out, first = [], 0
    for number, count in enumerate(stage_layers(len(decoder.layers), parallel.pp)):
        size = sum(block_bytes(decoder.block(layer), ranks) for layer in range(first, first + count))
        size += embedding + rest if number == 0 else 0
        size += tail if number == parallel.pp - 1 else 0
        out.append(size)
        first += count
    return tuple(out)
