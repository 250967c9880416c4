"""Decoders whose parts have names of their own: GPT-2, GPT-NeoX, StarCoder, ChatGLM, EXAONE 3, TeleChat 2, PLaMo 3, Ling and Ring.

Facts: transformers 5.23 (`gpt2`, `gpt_neox`, `gpt_bigcode`), vLLM 0.32 (`models/chatglm.py`, `exaone.py`, `telechat2.py`, `plamo3.py`,
`bailing_moe.py`, `sarvam.py`) for those whose code is in their repositories.
"""

from __future__ import annotations

from dataclasses import replace

from passes.ir.architectures.config import Config
from passes.ir.architectures.decoder import head_sizes, layer_types
from passes.ir.architectures.draft import (
    Description,
    Names,
    attention_state,
    by_architecture,
    decoder,
    ends,
    is_tied,
    make_stack,
)
from passes.ir.architectures.moe import is_sparse
from passes.ir.architectures.parts import Experts, Heads, Maker, Part, total
from passes.ir.model import Block, Role, Stacking
from passes.ir.state import FullKV


def _layers(prefix: str, blocks: list[Block], outer: Part) -> Description:
    return Description((make_stack("decoder", prefix, blocks),), outer)


def gpt_2(config: Config, m: Maker, names: Names, *, kv_heads: int | None = None) -> Description:
    """Describe GPT-2, and with `multi_query` StarCoder 1 (arXiv 2305.06161): learned positions, fused projections, biases everywhere.

    GPT-2's files hold its matrices transposed.
    """
    hidden, heads = config.integer("n_embd"), config.integer("n_head")
    kv_heads = heads if kv_heads is None else kv_heads
    inner = config.integer("n_inner", default=4 * hidden)
    names_of = ("c_attn", "c_proj")
    layer = total(
        m.norms(hidden, "ln_1", "ln_2", bias=True),
        m.fused_attention(
            hidden, Heads(heads, kv_heads, hidden // heads), names=names_of, qkv_bias=True, o_bias=True
        ).at("attn."),
        m.plain_mlp(hidden, inner, names=("c_fc", "c_proj"), bias=True).at("mlp."),
    )
    outer = ends(
        m, config, Names("transformer.", "lm_head", embedding="wte", norm="ln_f"), is_tied(config, True), norm_bias=True
    ) + m.linear("transformer.wpe", Role.POSITION, config.integer("n_positions"), hidden, quantizable=False)
    block = layer.block(FullKV(kv_heads, hidden // heads, hidden // heads), heads)
    return _layers("transformer.h.{i}.", [block] * config.integer("n_layer"), outer)


def gpt_bigcode(config: Config, m: Maker, names: Names) -> Description:
    """Describe StarCoder 1 and SantaCoder."""
    return gpt_2(config, m, names, kv_heads=1 if config.flag("multi_query", default=True) else None)


def gpt_neox(config: Config, m: Maker, names: Names) -> Description:
    """Describe GPT-NeoX (arXiv 2204.06745) and Pythia: fused query_key_value, biased norms, a head named `embed_out`."""
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    bias = config.flag("attention_bias", default=True)
    attention = m.fused_attention(
        hidden, Heads(heads, heads, hidden // heads), names=("query_key_value", "dense"), qkv_bias=bias, o_bias=bias
    )
    layer = total(
        m.norms(hidden, "input_layernorm", "post_attention_layernorm", bias=True),
        attention.at("attention."),
        m.plain_mlp(
            hidden, config.integer("intermediate_size"), names=("dense_h_to_4h", "dense_4h_to_h"), bias=True
        ).at("mlp."),
    )
    outer = ends(
        m,
        config,
        Names("gpt_neox.", "embed_out", embedding="embed_in", norm="final_layer_norm"),
        is_tied(config, False),
        norm_bias=True,
    )
    block = layer.block(FullKV(heads, hidden // heads, hidden // heads), heads)
    return _layers("gpt_neox.layers.{i}.", [block] * config.integer("num_hidden_layers"), outer)


def chatglm(config: Config, m: Maker, names: Names) -> Description:
    """Describe ChatGLM 2 and 3, GLM-4 9B in its own code: grouped queries, gate and up in one matrix."""
    hidden, heads, dim = (
        config.integer("hidden_size"),
        config.integer("num_attention_heads"),
        config.integer("kv_channels", default=128),
    )
    kv_heads = config.integer("multi_query_group_num") if config.flag("multi_query_attention") else heads
    bias, qkv_bias = config.flag("add_bias_linear"), config.flag("add_qkv_bias")
    attention = m.fused_attention(
        hidden, Heads(heads, kv_heads, dim), names=("query_key_value", "dense"), qkv_bias=bias or qkv_bias, o_bias=bias
    )
    layer = total(
        m.norms(hidden, "input_layernorm", "post_attention_layernorm", bias=not config.flag("rmsnorm", default=True)),
        attention.at("self_attention."),
        m.fused_mlp(hidden, config.integer("ffn_hidden_size"), names=("dense_h_to_4h", "dense_4h_to_h"), bias=bias).at(
            "mlp."
        ),
    )
    vocab = config.integer("padded_vocab_size", "vocab_size")
    outer = m.embedding("transformer.embedding.word_embeddings", vocab, hidden)
    if config.flag("post_layer_norm", default=True):
        outer += m.norms(hidden, "transformer.encoder.final_layernorm")
    if not is_tied(config, False):
        outer += m.head("transformer.output_layer", vocab, hidden)
    block = layer.block(FullKV(kv_heads, dim, dim), heads)
    return _layers("transformer.encoder.layers.{i}.", [block] * config.integer("num_layers"), outer)


def exaone3(config: Config, m: Maker, names: Names) -> Description:
    """Describe EXAONE 3 and 3.5 (arXiv 2408.03541): Llama under GPT-2's names."""
    hidden = config.integer("hidden_size")
    heads, kv_heads, dim = head_sizes(config)
    layer = total(
        m.norms(hidden, "ln_1", "ln_2"),
        m.attention(hidden, Heads(heads, kv_heads, dim), names=("q_proj", "k_proj", "v_proj", "out_proj")).at(
            "attn.attention."
        ),
        m.gated_mlp(hidden, config.integer("intermediate_size"), names=("c_fc_0", "c_fc_1", "c_proj")).at("mlp."),
    )
    outer = ends(m, config, Names("transformer.", "lm_head", embedding="wte", norm="ln_f"), is_tied(config, False))
    return _layers(
        "transformer.h.{i}.", [layer.block(FullKV(kv_heads, dim, dim), heads)] * len(config.layer_numbers()), outer
    )


def telechat2(config: Config, m: Maker, names: Names) -> Description:
    """Describe TeleChat 2: keys and values in one matrix; biases on what writes to the residual stream."""
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads", "n_head")
    kv_heads, dim, inner = (
        config.integer("num_key_value_heads", default=heads),
        hidden // heads,
        config.integer("intermediate_size", "ffn_hidden_size"),
    )
    layer = total(
        m.norms(hidden, "input_layernorm", "post_attention_layernorm"),
        m.linear("self_attention.query", Role.Q, heads * dim, hidden, agree="qkv", reads="attn_in"),
        m.linear("self_attention.key_value", Role.K, 2 * kv_heads * dim, hidden, agree="qkv", reads="attn_in"),
        m.linear("self_attention.dense", Role.O, hidden, heads * dim, bias=True, reads="attn_out"),
        m.linear("mlp.gate_proj", Role.GATE, inner, hidden, agree="mlp_gate_up", reads="mlp_in"),
        m.linear("mlp.up_proj", Role.UP, inner, hidden, agree="mlp_gate_up", reads="mlp_in"),
        m.linear("mlp.down_proj", Role.DOWN, hidden, inner, bias=True, reads="mlp_mid"),
    )
    outer = ends(m, config, Names("transformer.", "lm_head", embedding="word_embeddings", norm="ln_f"), is_tied(config, False))  # fmt: skip
    return _layers(
        "transformer.h.{i}.", [layer.block(FullKV(kv_heads, dim, dim), heads)] * len(config.layer_numbers()), outer
    )


def plamo3(config: Config, m: Maker, names: Names) -> Description:
    """Describe PLaMo 3: fused projections, norms before and behind each half of a layer."""
    hidden = config.integer("hidden_size")
    heads, kv_heads, dim = head_sizes(config)
    layer = total(
        m.norms(hidden, "pre_mixer_norm", "post_mixer_norm", "pre_mlp_norm", "post_mlp_norm"),
        (m.fused_attention(hidden, Heads(heads, kv_heads, dim)) + m.norms(dim, "q_norm", "k_norm")).at("mixer."),
        m.fused_mlp(hidden, config.integer("intermediate_size")).at("mlp."),
    )
    kinds = layer_types(config, "every 8" if config.has("sliding_window") else "layer_types")
    blocks = [layer.block(attention_state(config, kind, FullKV(kv_heads, dim, dim)), heads) for kind in kinds]
    return _layers("model.layers.layers.{i}.", blocks, ends(m, config, names, is_tied(config, False)))


def bailing(config: Config, m: Maker, names: Names) -> Description:
    """Describe Ling and Ring 1 and 2 (arXiv 2503.05139), Sarvam: fused projections, experts behind dense layers."""
    hidden, inner, count = (
        config.integer("hidden_size"),
        config.integer("moe_intermediate_size"),
        config.integer("num_experts"),
    )
    heads, kv_heads, dim = head_sizes(config)
    bias = config.flag("use_bias")
    attention = m.fused_attention(
        hidden,
        Heads(heads, kv_heads, dim),
        names=("query_key_value", "dense"),
        qkv_bias=bias or config.flag("use_qkv_bias"),
        o_bias=bias,
    )
    if config.flag("use_qk_norm"):
        attention += m.norms(dim, "query_layernorm", "key_layernorm", bias=not config.flag("use_rmsnorm", default=True))
    common = m.norms(hidden, "input_layernorm", "post_attention_layernorm") + attention.at("attention.")
    dense = m.gated_mlp(hidden, config.integer("intermediate_size"), bias=bias).at("mlp.")
    sparse = m.router("gate", count, hidden) + m.experts(
        Experts(hidden, inner, count, config.integer("num_experts_per_tok")), prefix="experts."
    )
    if config.flag("moe_router_enable_expert_bias"):
        sparse += m.tensor("gate.expert_bias", count, dtype="F32")
    width = config.integer("moe_shared_expert_intermediate_size", default=inner)
    if shared := config.integer("num_shared_experts", default=0):
        sparse += m.gated_mlp(hidden, width * shared, bias=bias, shared=True, key="shared").at("shared_experts.")
    kv = FullKV(kv_heads, dim, dim)
    blocks = [
        (common + (sparse.at("mlp.") if is_sparse(config, i) else dense)).block(kv, heads)
        for i in config.layer_numbers()
    ]
    return decoder(names, blocks, ends(m, config, replace(names, embedding="word_embeddings"), is_tied(config, False)))


def aria(config: Config, m: Maker, names: Names) -> Description:
    """Describe Aria's decoder (arXiv 2410.05993): Llama with experts in two 3-D tensors, transposed, and shared experts."""
    hidden, inner, count = (
        config.integer("hidden_size"),
        config.integer("intermediate_size"),
        config.integer("moe_num_experts"),
    )
    heads, kv_heads, dim = head_sizes(config)
    bank, expert = Experts(hidden, inner, count, config.integer("moe_topk")), "experts.{e}."
    gate_up = Stacking("experts.fc1.weight", True, ((expert + "gate_proj", inner), (expert + "up_proj", inner)))
    down = Stacking("experts.fc2.weight", True, ((expert + "down_proj", hidden),))
    layer = total(
        m.norms(hidden, "input_layernorm", "post_attention_layernorm"),
        m.attention(hidden, Heads(heads, kv_heads, dim)).at("self_attn."),
        total(
            m.router("router", count, hidden),
            m.bank(expert + "gate_up_proj", Role.GATE_UP, 2 * inner, hidden, bank, stacking=gate_up),
            m.bank(expert + "down_proj", Role.DOWN, hidden, inner, bank, stacking=down),
            m.gated_mlp(hidden, inner * config.integer("moe_num_shared_experts"), shared=True, key="shared").at(
                "shared_experts."
            ),
        ).at("mlp."),
    )
    block = layer.block(FullKV(kv_heads, dim, dim), heads)
    return decoder(names, [block] * len(config.layer_numbers()), ends(m, config, names, is_tied(config, False)))


def voxtral_realtime(config: Config, m: Maker, names: Names) -> Description:
    """Describe Voxtral Realtime's decoder: Mistral with norms that a delay scales through two matrices of rank 32."""
    hidden, inner = config.integer("hidden_size"), config.integer("intermediate_size")
    heads, kv_heads, dim = head_sizes(config)
    layer = total(
        m.norms(hidden, "input_layernorm", "post_attention_layernorm"),
        m.attention(hidden, Heads(heads, kv_heads, dim)).at("self_attn."),
        m.gated_mlp(hidden, inner).at("mlp."),
        m.linear("ada_rms_norm.linear1", Role.PROJECTOR, 32, hidden, quantizable=False),
        m.linear("ada_rms_norm.linear2", Role.PROJECTOR, hidden, 32, quantizable=False),
    )
    kinds = layer_types(config, "all")
    blocks = [layer.block(attention_state(config, kind, FullKV(kv_heads, dim, dim)), heads) for kind in kinds]
    return decoder(names, blocks, ends(m, config, names, is_tied(config, True)))


describe = by_architecture(
    {
        "GPT2LMHeadModel": gpt_2,
        "GPTBigCodeForCausalLM": gpt_bigcode,
        "GPTNeoXForCausalLM": gpt_neox,
        "ChatGLMModel": chatglm,
        "ChatGLMForConditionalGeneration": chatglm,
        "ExaoneForCausalLM": exaone3,
        "TeleChat2ForCausalLM": telechat2,
        "Plamo3ForCausalLM": plamo3,
        "BailingMoeForCausalLM": bailing,
        "BailingMoeV2ForCausalLM": bailing,
        "SarvamMoEForCausalLM": bailing,
        "AriaTextForCausalLM": aria,
        "VoxtralRealtimeTextModel": voxtral_realtime,
    }
)
