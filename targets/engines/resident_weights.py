"""Bytes of weights that a rank of vLLM holds after loading: how matrices are cut by tensor parallelism, and repacked.

Cutting follows Megatron (arXiv 1909.08053) as vLLM does it: q/k/v, gate/up by output, o and down by input, experts by their
intermediate size, over the cards of all replicas (or whole experts under expert parallelism), embedding and head by vocabulary
padded to a multiple of 64;
norms, routers and latent down-projections are whole on every rank; a KV head that several ranks need is on each of them.
"""

from __future__ import annotations

import math
from functools import lru_cache

from passes.formats.tensor import Tensor
from passes.ir.architectures.config import Config
from passes.ir.model import Block, Linear, ModelIR, Role, remembered
from passes.ir.state import FullKV, LayerState
from passes.record import dataclass, replace
from targets.engines.engine import Parallel
from targets.engines.vllm.memory.parameters import absorbed_bytes, allocated, rotary_bytes
from targets.engines.vllm.rules.versions import Rules

_BY_OUTPUT = {Role.Q, Role.QKV, Role.Q_UP, Role.KV_UP, Role.GATE, Role.UP, Role.GATE_UP, Role.MIXER_IN, Role.MIXER_GATE}
_BY_INPUT = {Role.O, Role.DOWN, Role.MIXER_OUT}
_BY_VOCABULARY = {Role.EMBEDDING, Role.HEAD}
#: Rows that vLLM pads a vocabulary to (`DEFAULT_VOCAB_PADDING_SIZE` in vocab_parallel_embedding.py).
VOCABULARY_PADDING = 64
#: Models whose encoders are transformers' own modules in vLLM, hence whole on every rank (`AutoModel.from_config` in `gemma3n_mm.py`,
#: `gemma4_mm.py`, `diffusion_gemma.py`; 0.21 to 0.33).
_WHOLE_TOWERS = ("diffusion_gemma", "gemma3n", "gemma4")
#: What a checkpoint stores that no rank keeps: shapes, and the group index of matrices without activation order.
_DROPPED = (".weight_shape", ".g_idx", ".k_scale", ".v_scale")


@dataclass(frozen=True, slots=True)
class Ranks:
    """What decides a rank's share: cutting degrees, and whether it is a CUDA device (torch's allocator, MLA's absorbed halves).

    `dp`: replicas, over whose ranks experts are cut too: since there is `--data-parallel-size` (`fused_moe/layer.py` of 0.8.0,
    `FusedMoEParallelConfig.flatten_tp_across_dp` later). `padded_hidden`, `padded_inner`: multiples that the 4-bit expert kernels pad a
    bank's sides to; `padded_dense`: that those of 16 bits pad its intermediate side to.
    """

    tp: int
    ep: int
    dp: int = 1
    cuda: bool = False
    absorbed: bool = False
    padded_hidden: int = 1
    padded_inner: int = 1
    padded_dense: int = 1

    @classmethod
    def of(cls, parallel: Parallel, rules: Rules | None = None) -> Ranks:
        """Return the degrees of a parallel layout; with a version's rules, as a CUDA rank of it."""
        if rules is None:
            return cls(parallel.tp, parallel.ep, parallel.dp)
        absorbed = rules.mla and rules.v1
        padding = (*rules.expert_padding, rules.dense_padding)
        return cls(parallel.tp, parallel.ep, parallel.dp, True, absorbed, *padding)

    def cut(self, linear: Linear) -> int:
        """Return over how many ranks each matrix is cut; whole experts over none."""
        if linear.copies == 1:
            return self.tp
        return 1 if self.ep > 1 else self.tp * self.dp


def _padded_bank(linear: Linear, ranks: Ranks, inner: int, hidden: int) -> tuple[int, int, int]:
    """A bank of experts: its intermediate side cut and padded to a multiple of `inner`, its other side to one of `hidden`."""

    def up(size: float, multiple: int) -> int:
        return math.ceil(size / multiple) * multiple

    cut = ranks.cut(linear)
    copies = math.ceil(linear.copies / ranks.ep)
    if linear.role is Role.DOWN:
        return up(linear.out_features, hidden), up(linear.in_features / cut, inner), copies
    halves = 2 if linear.role is Role.GATE_UP else 1
    return halves * up(linear.out_features / halves / cut, inner), up(linear.in_features, hidden), copies


@remembered
def ranks_of(ir: ModelIR, parallel: Parallel, rules: Rules | None) -> Ranks:
    """Return what decides a model's share: the kernels that pad experts in 16 bits are of those with SiLU, by version, or ReLU², which have
    no gates (`experts/trtllm_bf16_moe.py:_supports_activation`).
    """
    ranks, config = Ranks.of(parallel, rules), Config(ir.config, ir.name)
    text = config.part("text_config") if config.has("text_config") else config
    named = (text.values.get(key) for key in ("hidden_act", "hidden_activation", "mlp_hidden_act"))
    usual = "gelu" if "gemma" in ir.model_type else "swigluoai" if ir.model_type == "gpt_oss" else "silu"
    activation = next((str(name) for name in named if name), usual)
    gated = rules is not None and rules.pads_gated and usual != "swigluoai"
    padded = activation == "relu2" or (activation == "silu" and gated)
    return ranks if padded else replace(ranks, padded_dense=1)


def local_shape(linear: Linear, ranks: Ranks, state: LayerState) -> tuple[int, int, int]:
    """Return (output rows, inputs, copies) of a matrix on one rank."""
    rows, inputs, copies, tp = linear.out_features, linear.in_features, linear.copies, ranks.cut(linear)
    if copies > 1 and linear.storage.expert_blocks:
        return _padded_bank(linear, ranks, max(32, ranks.padded_inner), ranks.padded_hidden)
    if copies > 1 and ranks.padded_dense > 1 and not linear.storage.is_quantized:
        return _padded_bank(linear, ranks, ranks.padded_dense, 1)
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
def linear_parts(linear: Linear, ranks: Ranks, state: LayerState) -> tuple[tuple[str, int], ...]:
    """Return the bytes of a matrix's tensors (all its copies) on one rank, by suffix; bias included."""
    rows, inputs, copies = local_shape(linear, ranks, state)
    local = replace(linear, name="", out_features=rows, in_features=inputs, copies=1, bias=None, stacking=None)
    share = 1.0
    if linear.storage.is_quantized and linear.storage.illegal(rows, inputs):
        # A cut that the format cannot hold is refused elsewhere; its size is still answered, in proportion.
        share = rows * inputs / (linear.out_features * linear.in_features)
        local = replace(local, out_features=linear.out_features, in_features=linear.in_features)
    parts = tuple((tensor.name, int(copies * share * _resident(tensor))) for tensor in local.tensors())
    return (*parts, (".bias", rows * copies * 2)) if linear.bias else parts


def linear_bytes(linear: Linear, ranks: Ranks, state: LayerState) -> int:
    """Return the bytes of one matrix (all its copies) on one rank, as allocated."""
    sizes = [size for _, size in linear_parts(linear, ranks, state)]
    return sum(map(allocated, sizes)) if ranks.cuda else sum(sizes)


@lru_cache(maxsize=1 << 14)
def block_bytes(block: Block, ranks: Ranks) -> int:
    """Return the bytes of one layer on one rank: matrices that the engine fuses (q/k/v, gate/up, banks of experts) are one tensor."""
    fused: dict[tuple[str, bool, str], int] = {}
    for linear in block.linears:
        for suffix, size in linear_parts(linear, ranks, block.state):
            key = (linear.agree or linear.name, linear.role is Role.DOWN, suffix)
            fused[key] = fused.get(key, 0) + size
    others = sum(_resident(tensor) for tensor in block.tensors)
    if not ranks.cuda:
        return sum(fused.values()) + others
    if ranks.absorbed:
        for linear in block.linears:
            if linear.role is Role.KV_UP:
                rows, inputs, _ = local_shape(linear, ranks, block.state)
                others += absorbed_bytes(rows, inputs)
    return sum(map(allocated, fused.values())) + others


def stage_layers(layers: int, pp: int) -> tuple[int, ...]:
    """Count the layers of each pipeline stage: even, the remainder one each from the last but one stage backwards (vLLM's
    `get_pp_indices`)."""
    base, rest = divmod(layers, pp)
    counts = [base] * pp
    for number in range(2, rest + 2):
        counts[-number] += 1
    return tuple(counts)


@remembered
def stage_blocks(ir: ModelIR, pp: int, stage: int) -> tuple[tuple[Block, int], ...]:
    """Return the decoder's layers of one pipeline stage, with their counts."""
    if pp == 1:
        return ir.decoder.counts
    counts, decoder = stage_layers(len(ir.decoder.layers), pp), ir.decoder
    first = sum(counts[:stage])
    return replace(decoder, layers=decoder.layers[first : first + counts[stage]]).counts


@lru_cache(maxsize=1 << 12)
def outer_bytes(ir_outer: tuple[Linear, ...], tied: bool, ranks: Ranks, roles: frozenset[Role]) -> int:
    """Return the bytes of the matrices outside the stacks that have one of these roles."""
    from passes.ir.state import NoState

    return sum(linear_bytes(linear, ranks, NoState()) for linear in ir_outer if linear.role in roles)


@remembered
def embedding_bytes(ir: ModelIR) -> int:
    """Return the bytes of the embedding as stored."""
    return outer_bytes(ir.outer, ir.tied_embeddings, Ranks(1, 1), frozenset({Role.EMBEDDING}))


@remembered
def weights_per_stage(ir: ModelIR, parallel: Parallel, rules: Rules | None = None) -> tuple[int, ...]:
    """Return resident weight bytes of one rank of each pipeline stage, first stage first; as a CUDA rank where `rules` are given."""
    ranks = ranks_of(ir, parallel, rules)
    rotary = rotary_bytes(ir) if rules is not None else 0
    decoder = ir.decoder
    towers = replace(ranks, tp=1) if ranks.cuda and ir.model_type in _WHOLE_TOWERS else ranks
    rest = sum(
        count * block_bytes(b, towers) for s in ir.stacks if s.name not in ("decoder", "mtp") for b, count in s.counts
    )
    others = frozenset(Role) - _BY_VOCABULARY
    embedding = outer_bytes(ir.outer, ir.tied_embeddings, ranks, frozenset({Role.EMBEDDING}))
    head = outer_bytes(ir.outer, ir.tied_embeddings, ranks, frozenset({Role.HEAD}))
    rest += outer_bytes(ir.outer, ir.tied_embeddings, ranks, others)
    tail = sum(t.bytes for t in ir.outer_tensors) + (embedding if ir.tied_embeddings and parallel.pp > 1 else head)
    if parallel.pp == 1:
        stacked = sum(count * block_bytes(block, ranks) for block, count in decoder.counts)
        return (
            rotary
            + stacked
            + embedding
            + rest
            + (tail if not ir.tied_embeddings else sum(t.bytes for t in ir.outer_tensors)),
        )
    out = []
    for number in range(parallel.pp):
        size = rotary + sum(count * block_bytes(block, ranks) for block, count in stage_blocks(ir, parallel.pp, number))
        size += embedding + rest if number == 0 else 0
        size += tail if number == parallel.pp - 1 else 0
        out.append(size)
    return tuple(out)
