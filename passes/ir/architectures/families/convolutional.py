"""Decoders that mix attention with short convolutions or other gated mixers: LFM2 (arXiv 2511.23404), OLMo Hybrid.

Names and shapes are those of transformers 5.23; states those of vLLM 0.32 (`layers/mamba/mamba_utils.py`).
"""

from __future__ import annotations

from dataclasses import replace

from passes.ir.architectures.config import Config, not_understood
from passes.ir.architectures.decoder import head_sizes
from passes.ir.architectures.draft import Description, Names, by_architecture, decoder, ends, is_tied
from passes.ir.architectures.parts import Experts, Heads, Maker, Part, total
from passes.ir.model import Role
from passes.ir.state import FullKV, Recurrent, StatePart


def lfm2(config: Config, m: Maker, names: Names, *, sparse: bool) -> Description:
    """Describe LFM2: gated short convolutions with a few layers of attention; its MoE sibling has experts behind dense layers."""
    hidden, layers = config.integer("hidden_size"), config.layer_numbers()
    heads, kv_heads, dim = head_sizes(config)
    kernel, bias = config.integer("conv_L_cache"), config.flag("conv_bias")
    conv = total(
        m.linear("in_proj", Role.MIXER_IN, 3 * hidden, hidden, bias=bias, reads="mixer_in"),
        m.tensor("conv.weight", hidden, 1, kernel),
        m.tensor("conv.bias", hidden) if bias else Part(),
        m.linear("out_proj", Role.MIXER_OUT, hidden, hidden, bias=bias, reads="mixer_out"),
    ).at("conv.")
    state = Recurrent("short_conv", (StatePart("conv", (hidden, kernel - 1)),))
    attention = total(
        m.attention(hidden, Heads(heads, kv_heads, dim), names=("q_proj", "k_proj", "v_proj", "out_proj")),
        m.norms(dim, "q_layernorm", "k_layernorm"),
    ).at("self_attn.")
    norms, names_of = m.norms(hidden, "operator_norm", "ffn_norm"), ("w1", "w3", "w2")
    dense = m.gated_mlp(hidden, config.integer("intermediate_size") if sparse else _width(config), names=names_of)
    routed, first = Part(), len(layers)
    if sparse:
        count, first = config.integer("num_experts"), config.integer("num_dense_layers")
        bank = Experts(hidden, config.integer("moe_intermediate_size"), count, config.integer("num_experts_per_tok"))
        routed = m.router("gate", count, hidden) + m.experts(bank, prefix="experts.", names=names_of)
        if config.flag("use_expert_bias", default=True):
            routed += m.tensor("expert_bias", count, dtype="F32")
    full = config.counts("full_attn_idxs", default=())
    by_number = ["full_attention" if i in full else "conv" for i in layers]
    kinds = config.names("layer_types", len(layers), by_number)
    blocks = []
    for i, kind in enumerate(kinds):
        if kind not in ("conv", "full_attention"):
            raise not_understood(config.name, f"{config.path}: layer type {kind!r} is not known")
        rest = norms + (dense if i < first else routed).at("feed_forward.")
        part = rest + (conv if kind == "conv" else attention)
        blocks.append(part.block(state) if kind == "conv" else part.block(FullKV(kv_heads, dim, dim), heads))
    return decoder(names, blocks, ends(m, config, replace(names, norm="embedding_norm"), is_tied(config, True)))


def _width(config: Config) -> int:
    """Rows of gate and up: two thirds of what the config says, times a factor, rounded up (LFM2's MLP)."""
    inner = config.integer("intermediate_size", "block_ff_dim")
    if not config.flag("block_auto_adjust_ff_dim", default=True):
        return inner
    multiple = config.integer("block_multiple_of", default=256)
    inner = int(config.number("block_ffn_dim_multiplier", default=1.0) * int(2 * inner / 3))
    return multiple * -(-inner // multiple)


def olmo_hybrid(config: Config, m: Maker, names: Names) -> Description:
    """Describe OLMo Hybrid: three gated delta nets, whose projections and convolutions stand apart, to one attention."""
    hidden = config.integer("hidden_size")
    heads, kv_heads, dim = head_sizes(config)
    keys, values = config.integer("linear_num_key_heads"), config.integer("linear_num_value_heads")
    key_dim, value_dim, kernel = (
        config.integer("linear_key_head_dim"),
        config.integer("linear_value_head_dim"),
        config.integer("linear_conv_kernel_dim"),
    )
    sizes = {"q": keys * key_dim, "k": keys * key_dim, "v": values * value_dim}
    mixer = total(
        *(m.linear(f"{x}_proj", Role.MIXER_IN, sizes[x], hidden, agree="qkvz", reads="mixer_in") for x in "qkv"),
        m.linear("g_proj", Role.MIXER_IN, sizes["v"], hidden, agree="qkvz", reads="mixer_in"),
        *(m.linear(f"{x}_proj", Role.MIXER_GATE, values, hidden, reads="mixer_in", quantizable=False) for x in "ab"),
        *(m.tensor(f"{x}_conv1d.weight", sizes[x], 1, kernel) for x in "qkv"),
        m.tensor("A_log", values) + m.tensor("dt_bias", values),
        m.norms(value_dim, "o_norm"),
        m.linear("o_proj", Role.MIXER_OUT, hidden, sizes["v"], reads="mixer_out"),
    ).at("linear_attn.")
    channels = sum(sizes.values())
    state = Recurrent(
        "gdn", (StatePart("conv", (channels, kernel - 1)), StatePart("recurrent", (values, value_dim, key_dim)))
    )
    bias = config.flag("attention_bias")
    attention = total(
        m.attention(hidden, Heads(heads, kv_heads, dim), qkv_bias=bias, o_bias=bias),
        m.norms(heads * dim, "q_norm") + m.norms(kv_heads * dim, "k_norm"),
    ).at("self_attn.")
    mlp = m.gated_mlp(hidden, config.integer("intermediate_size")).at("mlp.")
    linear = m.norms(hidden, "attention_layer_norm", "feedforward_layer_norm") + mixer + mlp
    full = m.norms(hidden, "post_attention_layernorm", "post_feedforward_layernorm") + attention + mlp
    blocks = [
        full.block(FullKV(kv_heads, dim, dim), heads) if kind == "full_attention" else linear.block(state, values)
        for kind in config.names("layer_types", len(config.layer_numbers()))
    ]
    return decoder(names, blocks, ends(m, config, names, is_tied(config, False)))


describe = by_architecture(
    {
        "Lfm2ForCausalLM": lambda c, m, n: lfm2(c, m, n, sparse=False),
        "Lfm2MoeForCausalLM": lambda c, m, n: lfm2(c, m, n, sparse=True),
        "OlmoHybridForCausalLM": olmo_hybrid,
    }
)
