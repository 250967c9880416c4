"""DeepSeek V4: compressed sparse attention, hyper-connections, hash-routed first layers. Names are those of its own checkpoints."""

from __future__ import annotations

from passes.ir.architectures.config import Config, not_understood
from passes.ir.architectures.draft import Description, Names, make_stack
from passes.ir.architectures.parts import Experts, Maker, Part, total
from passes.ir.model import Block, Role
from passes.ir.state import CompressedKV

#: Compression ratio of the layers that overlap windows and have an indexer.
_INDEXED_RATIO = 4


def describe(config: Config, architecture: str, m: Maker, names: Names) -> Description:
    """Describe a DeepSeek V4 model; its MTP layers are taken from headers only."""
    layers = config.layer_numbers()
    ratios = config.counts("compress_ratios")
    if len(ratios) < len(layers):
        raise not_understood(config.name, f"compress_ratios has {len(ratios)} entries for {len(layers)} layers")
    hidden, vocab, streams = config.integer("hidden_size"), config.integer("vocab_size"), config.integer("hc_mult")
    outer = total(
        m.embedding("embed", vocab, hidden),
        m.norms(hidden, "norm"),
        m.head("head", vocab, hidden),
        m.tensor("hc_head_fn", streams, streams * hidden, dtype="F32"),
        m.tensor("hc_head_base", streams, dtype="F32"),
        m.tensor("hc_head_scale", 1, dtype="F32"),
    )
    blocks = [_block(config, m, ratios[i], hashed=i < config.integer("num_hash_layers")) for i in layers]
    return Description((make_stack("decoder", "layers.{i}.", blocks),), outer)


def _block(config: Config, m: Maker, ratio: int, *, hashed: bool) -> Block:
    hidden, streams = config.integer("hidden_size"), config.integer("hc_mult")
    mixes = (2 + streams) * streams
    connections = total(
        *(
            m.tensor(f"hc_{place}_fn", mixes, streams * hidden, dtype="F32")
            + m.tensor(f"hc_{place}_base", mixes, dtype="F32")
            + m.tensor(f"hc_{place}_scale", 3, dtype="F32")
            for place in ("attn", "ffn")
        )
    )
    part = total(
        m.norms(hidden, "attn_norm", "ffn_norm"), connections, _attention(config, m, ratio), _experts(config, m, hashed)
    )
    index_dim = config.integer("index_head_dim") if ratio == _INDEXED_RATIO else 0
    state = CompressedKV(config.integer("head_dim"), config.integer("sliding_window"), ratio, index_dim)
    return part.block(state, config.integer("num_attention_heads"))


def _attention(config: Config, m: Maker, ratio: int) -> Part:
    hidden, heads, dim = (
        config.integer("hidden_size"),
        config.integer("num_attention_heads"),
        config.integer("head_dim"),
    )
    q_rank, o_rank, groups = config.integer("q_lora_rank"), config.integer("o_lora_rank"), config.integer("o_groups")
    part = total(
        m.tensor("attn_sink", heads, dtype="F32"),
        m.linear("wq_a", Role.Q_DOWN, q_rank, hidden, agree="qkv_down", reads="attn_in"),
        m.norms(q_rank, "q_norm"),
        m.linear("wq_b", Role.Q_UP, heads * dim, q_rank, reads="q_latent"),
        m.linear("wkv", Role.KV_DOWN, dim, hidden, agree="qkv_down", reads="attn_in"),
        m.norms(dim, "norm"),
        m.linear("wo_a", Role.O, groups * o_rank, heads * dim // groups, quantizable=False),
        m.linear("wo_b", Role.O, hidden, groups * o_rank, reads="attn_out"),
    )
    if ratio:
        part += _compressor(m, hidden, dim, ratio).at("compressor.")
    if ratio == _INDEXED_RATIO:
        index_heads, index_dim = config.integer("index_n_heads"), config.integer("index_head_dim")
        part += total(
            m.linear("wq_b", Role.INDEXER, index_heads * index_dim, q_rank, quantizable=False),
            m.linear("weights_proj", Role.INDEXER, index_heads, hidden, quantizable=False),
            _compressor(m, hidden, index_dim, ratio).at("compressor."),
        ).at("indexer.")
    return part.at("attn.")


def _compressor(m: Maker, hidden: int, dim: int, ratio: int) -> Part:
    width = dim * (2 if ratio == _INDEXED_RATIO else 1)
    return total(
        m.linear("wkv", Role.KV_DOWN, width, hidden, quantizable=False),
        m.linear("wgate", Role.KV_DOWN, width, hidden, quantizable=False),
        m.tensor("ape", ratio, width, dtype="F32"),
        m.norms(dim, "norm"),
    )


def _experts(config: Config, m: Maker, hashed: bool) -> Part:
    hidden, inner, count = (
        config.integer("hidden_size"),
        config.integer("moe_intermediate_size"),
        config.integer("n_routed_experts"),
    )
    active, names = config.integer("num_experts_per_tok"), ("w1", "w3", "w2")
    bias = m.tensor("gate.bias", count, dtype="F32")
    return total(
        m.router("gate", count, hidden),
        m.tensor("gate.tid2eid", config.integer("vocab_size"), active, dtype="I64") if hashed else bias,
        m.experts(Experts(hidden, inner, count, active), prefix="experts.", names=names),
        m.gated_mlp(
            hidden, inner * config.integer("n_shared_experts"), names=names, shared=True, key="shared"
        ).at("shared_experts."),
    ).at("ffn.")  # fmt: skip
