"""Older decoders with names of their own: OPT, Falcon, GPT-J, BLOOM, MPT, Qwen 1, Baichuan, InternLM 2, Phi-3 Vision."""

from __future__ import annotations

from dataclasses import replace

from passes.ir.architectures.config import Config, not_understood
from passes.ir.architectures.decoder import STYLES, decoder_blocks, head_sizes
from passes.ir.architectures.draft import Description, Names, by_architecture, decoder, ends, is_tied, make_stack
from passes.ir.architectures.parts import Heads, Maker, Part, total
from passes.ir.model import Role, Stack
from passes.ir.state import CrossKV, FullKV


def _layers(name: str, count: int, part: Part, heads: int, kv_heads: int, head_dim: int) -> Stack:
    return make_stack("decoder", name, [part.block(FullKV(kv_heads, head_dim, head_dim), heads)] * count)


def opt(config: Config, m: Maker, names: Names) -> Description:
    """Describe OPT (arXiv 2205.01068): learned positions with two extra rows, biases everywhere, embedding width of its own."""
    hidden, heads, inner = (
        config.integer("hidden_size"),
        config.integer("num_attention_heads"),
        config.integer("ffn_dim"),
    )
    width, before = (
        config.integer("word_embed_proj_dim", default=hidden),
        config.flag("do_layer_norm_before", default=True),
    )
    bias = config.flag("enable_bias", default=True)
    base = "model.decoder."
    qkvo = ("q_proj", "k_proj", "v_proj", "out_proj")
    layer = total(
        m.norms(hidden, "self_attn_layer_norm", "final_layer_norm", bias=True),
        m.attention(hidden, Heads(heads, heads, hidden // heads), qkv_bias=bias, o_bias=bias, names=qkvo).at(
            "self_attn."
        ),
        m.plain_mlp(hidden, inner, names=("fc1", "fc2"), bias=bias),
    )
    outer = m.embedding(base + "embed_tokens", config.integer("vocab_size"), width) + m.linear(
        base + "embed_positions",
        Role.POSITION,
        config.integer("max_position_embeddings") + 2,
        hidden,
        quantizable=False,
    )
    if width != hidden:
        outer += m.linear(base + "project_in", Role.PROJECTOR, hidden, width, quantizable=False)
        outer += m.linear(base + "project_out", Role.PROJECTOR, width, hidden, quantizable=False)
    if before and not config.flag("_remove_final_layer_norm"):
        outer += m.norms(hidden, base + "final_layer_norm", bias=True)
    if not is_tied(config, True) or m.has("lm_head.weight", default=False):
        outer += m.head("lm_head", config.integer("vocab_size"), width)
    count = config.integer("num_hidden_layers")
    return Description((_layers(base + "layers.{i}.", count, layer, heads, heads, hidden // heads),), outer)


def falcon(config: Config, m: Maker, names: Names) -> Description:
    """Describe Falcon (arXiv 2311.16867): fused query_key_value; one KV head, a few (new architecture), or as many as heads."""
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads", "n_head")
    new = config.flag("new_decoder_architecture")
    multi_query = config.flag("multi_query", default=True)
    kv_heads = config.integer("num_kv_heads", default=heads) if new else 1 if multi_query else heads
    bias, two_norms = config.flag("bias"), new and config.integer("num_ln_in_parallel_attn", default=2) == 2
    norms = ("ln_attn", "ln_mlp") if two_norms else ("input_layernorm",)
    if not new and not config.flag("parallel_attn", default=True):
        norms = ("input_layernorm", "post_attention_layernorm")
    inner = config.integer("ffn_hidden_size", default=4 * hidden)
    attention = m.fused_attention(
        hidden, Heads(heads, kv_heads, hidden // heads), names=("query_key_value", "dense"), qkv_bias=bias, o_bias=bias
    )
    layer = total(
        m.norms(hidden, *norms, bias=True),
        attention.at("self_attention."),
        m.plain_mlp(hidden, inner, names=("dense_h_to_4h", "dense_4h_to_h"), bias=bias).at("mlp."),
    )
    base = Names("transformer.", "lm_head")
    outer = ends(
        m, config, replace(base, embedding="word_embeddings", norm="ln_f"), is_tied(config, True), norm_bias=True
    )
    count = config.integer("num_hidden_layers", "n_layer")
    return Description((_layers("transformer.h.{i}.", count, layer, heads, kv_heads, hidden // heads),), outer)


def gpt_j(config: Config, m: Maker, names: Names) -> Description:
    """Describe GPT-J: parallel blocks, biases only in the MLP and the head."""
    hidden, heads = config.integer("n_embd"), config.integer("n_head")
    inner = config.integer("n_inner", default=4 * hidden)
    layer = total(
        m.norms(hidden, "ln_1", bias=True),
        m.attention(hidden, Heads(heads, heads, hidden // heads), names=("q_proj", "k_proj", "v_proj", "out_proj")).at(
            "attn."
        ),
        m.plain_mlp(hidden, inner, names=("fc_in", "fc_out"), bias=True).at("mlp."),
    )
    outer = ends(
        m,
        config,
        Names("transformer.", "lm_head", embedding="wte", norm="ln_f"),
        is_tied(config, False),
        norm_bias=True,
        head_bias=True,
    )
    return Description(
        (_layers("transformer.h.{i}.", config.integer("n_layer"), layer, heads, heads, hidden // heads),), outer
    )


def bloom(config: Config, m: Maker, names: Names) -> Description:
    """Describe BLOOM (arXiv 2211.05100): ALiBi, biases everywhere, a norm after the embedding; stored without a `transformer.` prefix."""
    hidden, heads = config.integer("hidden_size", "n_embed"), config.integer("n_head", "num_attention_heads")
    base = "transformer." if m.has("transformer.word_embeddings.weight", default=False) else ""
    attention = m.fused_attention(
        hidden, Heads(heads, heads, hidden // heads), names=("query_key_value", "dense"), qkv_bias=True, o_bias=True
    )
    layer = total(
        m.norms(hidden, "input_layernorm", "post_attention_layernorm", bias=True),
        attention.at("self_attention."),
        m.plain_mlp(hidden, 4 * hidden, names=("dense_h_to_4h", "dense_4h_to_h"), bias=True).at("mlp."),
    )
    outer = ends(
        m,
        config,
        Names(base, "lm_head", embedding="word_embeddings", norm="ln_f"),
        is_tied(config, True),
        norm_bias=True,
    ) + m.norms(hidden, base + "word_embeddings_layernorm", bias=True)
    count = config.integer("n_layer", "num_hidden_layers")
    return Description((_layers(base + "h.{i}.", count, layer, heads, heads, hidden // heads),), outer)


def mpt(config: Config, m: Maker, names: Names) -> Description:
    """Describe MPT: ALiBi, no biases at all, head always tied."""
    hidden, heads = config.integer("d_model"), config.integer("n_heads")
    if not config.flag("no_bias", default=True):
        raise not_understood(config.name, f"{config.path}: MPT with biases is not known")
    layer = total(
        m.norms(hidden, "norm_1", "norm_2"),
        m.fused_attention(hidden, Heads(heads, heads, hidden // heads), names=("Wqkv", "out_proj")).at("attn."),
        m.plain_mlp(hidden, hidden * config.integer("expansion_ratio", default=4), names=("up_proj", "down_proj")).at(
            "ffn."
        ),
    )
    outer = ends(m, config, Names("transformer.", "lm_head", embedding="wte", norm="norm_f"), True)
    count = config.integer("n_layers")
    return Description((_layers("transformer.blocks.{i}.", count, layer, heads, heads, hidden // heads),), outer)


def qwen1(config: Config, m: Maker, names: Names) -> Description:
    """Describe Qwen 1 (arXiv 2309.16609): fused c_attn with bias; w2 is the gate; `intermediate_size` counts gate and up together."""
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    inner = config.integer("intermediate_size") // 2
    layer = total(
        m.norms(hidden, "ln_1", "ln_2"),
        m.fused_attention(hidden, Heads(heads, heads, hidden // heads), names=("c_attn", "c_proj"), qkv_bias=True).at(
            "attn."
        ),
        m.gated_mlp(hidden, inner, names=("w2", "w1", "c_proj")).at("mlp."),
    )
    outer = ends(m, config, Names("transformer.", "lm_head", embedding="wte", norm="ln_f"), is_tied(config, False))
    count = config.integer("num_hidden_layers")
    return Description((_layers("transformer.h.{i}.", count, layer, heads, heads, hidden // heads),), outer)


def baichuan(config: Config, m: Maker, names: Names) -> Description:
    """Describe Baichuan 1 and 2 (arXiv 2309.10305): Llama with q, k and v in one matrix, `W_pack`."""
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    layer = total(
        m.norms(hidden, "input_layernorm", "post_attention_layernorm"),
        m.fused_attention(hidden, Heads(heads, heads, hidden // heads), names=("W_pack", "o_proj")).at("self_attn."),
        m.gated_mlp(hidden, config.integer("intermediate_size")).at("mlp."),
    )
    outer = ends(m, config, names, is_tied(config, False))
    count = config.integer("num_hidden_layers")
    return Description((_layers(names.base + "layers.{i}.", count, layer, heads, heads, hidden // heads),), outer)


def internlm2(config: Config, m: Maker, names: Names) -> Description:
    """Describe InternLM 2 (arXiv 2403.17297): fused wqkv, interleaved by KV head; w1 gate, w3 up, w2 down."""
    hidden, bias = config.integer("hidden_size"), config.flag("bias")
    heads, kv_heads, head_dim = head_sizes(config)
    layer = total(
        m.norms(hidden, "attention_norm", "ffn_norm"),
        m.fused_attention(hidden, Heads(heads, kv_heads, head_dim), names=("wqkv", "wo"), qkv_bias=bias, o_bias=bias).at("attention."),
        m.gated_mlp(hidden, config.integer("intermediate_size"), names=("w1", "w3", "w2")).at("feed_forward."),
    )  # fmt: skip
    head = names.head.replace("lm_head", "output")
    outer = ends(m, config, Names(names.base, head, embedding="tok_embeddings"), is_tied(config, False))
    count = config.integer("num_hidden_layers")
    return Description((_layers(names.base + "layers.{i}.", count, layer, heads, kv_heads, head_dim),), outer)


def deci(config: Config, m: Maker, names: Names) -> Description:
    """Describe Llama-Nemotron (Puzzle, arXiv 2411.19146): every layer has its own attention (or none) and MLP width."""
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    head_dim = config.integer("head_dim", default=hidden // heads)
    layers = config.integer("num_hidden_layers")
    blocks = []
    for plan in config.entries("block_configs", layers):
        attention, ffn = plan.inside("attention"), plan.inside("ffn")
        if attention.flag("replace_with_linear") or ffn.flag("replace_with_linear"):
            raise not_understood(config.name, f"{plan.path} replaces a part by a linear layer")
        part = Part()
        kv_heads = 0
        if not attention.flag("no_op"):
            kv_heads = heads // attention.integer("n_heads_in_group", at_least=1, at_most=heads)
            part += m.norms(hidden, "input_layernorm")
            part += m.attention(hidden, Heads(heads, kv_heads, head_dim)).at("self_attn.")
        if not ffn.flag("no_op"):
            part += m.norms(hidden, "post_attention_layernorm")
            part += m.gated_mlp(hidden, _puzzle_width(ffn.number("ffn_mult"), hidden)).at("mlp.")
        blocks.append(part.block(FullKV(kv_heads, head_dim, head_dim), heads) if kv_heads else part.block())
    return decoder(names, blocks, ends(m, config, names, is_tied(config, False)))


def _puzzle_width(multiplier: float, hidden: int) -> int:
    """Rows of gate and up: 2/3 of multiplier x hidden, rounded up to a multiple of 256 (DeciLM's `_ffn_mult_to_intermediate_size`)."""
    return -(-int(2 * multiplier * hidden / 3) // 256) * 256


def mllama(config: Config, m: Maker, names: Names) -> Description:
    """Describe Llama 3.2 Vision's decoder: Llama 3.1 with gated cross-attention layers; eight more rows in the embedding than in the
    head.
    """
    hidden, inner, vocab = (
        config.integer("hidden_size"),
        config.integer("intermediate_size"),
        config.integer("vocab_size"),
    )
    heads, kv_heads, head_dim = head_sizes(config)
    cross = set(config.counts("cross_attention_layers"))
    attention = m.attention(hidden, Heads(heads, kv_heads, head_dim))
    common = m.norms(hidden, "input_layernorm", "post_attention_layernorm") + m.gated_mlp(hidden, inner).at("mlp.")
    seeing = total(
        common,
        (attention + m.norms(head_dim, "q_norm", "k_norm")).at("cross_attn."),
        m.tensor("cross_attn_attn_gate", 1) + m.tensor("cross_attn_mlp_gate", 1),
    ).block(CrossKV(kv_heads, head_dim, head_dim, _MLLAMA_IMAGE_TOKENS), heads)
    reading = (common + attention.at("self_attn.")).block(FullKV(kv_heads, head_dim, head_dim), heads)
    outer = total(
        m.embedding(names.base + "embed_tokens", vocab + 8, hidden),
        m.norms(hidden, names.base + "norm"),
        m.head(names.head, vocab, hidden),
    )
    return decoder(names, [seeing if i in cross else reading for i in config.layer_numbers()], outer)


#: Four tiles of 40 x 40 patches and a class token each (Llama 3.2 Vision at 560 pixels).
_MLLAMA_IMAGE_TOKENS = 4 * 1601


def phi3_vision(config: Config, m: Maker, names: Names) -> Description:
    """Describe Phi-3 Vision: a Phi-3 decoder; CLIP ViT-L/14 and its projector under `vision_embed_tokens`."""
    from passes.ir.architectures.vision import phi3_image

    outer = ends(m, config, names, is_tied(config, False))
    blocks = decoder_blocks(config, m, STYLES["Phi3ForCausalLM"])
    return decoder(names, blocks, outer) + phi3_image(config, m, names.base + "vision_embed_tokens.")


describe = by_architecture(
    {
        "OPTForCausalLM": opt,
        "FalconForCausalLM": falcon,
        "RWForCausalLM": falcon,
        "GPTJForCausalLM": gpt_j,
        "BloomForCausalLM": bloom,
        "MptForCausalLM": mpt,
        "MPTForCausalLM": mpt,
        "QWenLMHeadModel": qwen1,
        "BaichuanForCausalLM": baichuan,
        "BaiChuanForCausalLM": baichuan,
        "InternLM2ForCausalLM": internlm2,
        "DeciLMForCausalLM": deci,
        "Phi3VForCausalLM": phi3_vision,
        "MllamaForCausalLM": mllama,
    }
)
