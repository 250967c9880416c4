"""Decoders with grouped-query attention and experts: Mixtral, Phi-3.5-MoE, Qwen MoE, MiniMax, GLM 4.5, gpt-oss, MiMo 2, Step, …

A layer is norms + attention + either a dense MLP or a router with experts (and shared experts). Names and shapes: transformers
5.x and the families' repositories on the Hub.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from passes.ir.architectures.config import Config
from passes.ir.architectures.decoder import Style, attention, head_sizes, layer_types
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
from passes.ir.architectures.parts import Experts, Heads, Maker, Part, total
from passes.ir.model import Block, Role, Stack, Stacking
from passes.ir.state import FullKV, SlidingKV

_W = ("w1", "w3", "w2")


def is_sparse(config: Config, layer: int) -> bool:
    """Tell whether a layer has experts, by whichever field the family says it with."""
    layers = len(config.layer_numbers())
    if config.has("mlp_layer_types"):
        return config.names("mlp_layer_types", layers)[layer] == "sparse"
    if isinstance(config.get("moe_layer_freq"), list):
        return config.flags("moe_layer_freq", layers)[layer]
    if config.has("first_k_dense_replace"):
        frequency = config.integer("moe_layer_freq", default=1)
        return layer >= config.integer("first_k_dense_replace") and layer % frequency == 0
    if layer in config.counts("mlp_only_layers", default=()):
        return False
    return (layer + 1) % config.integer("decoder_sparse_step", default=1) == 0


def decoder_of(
    config: Config,
    names: Names,
    layer: Callable[[int], Part],
    style: Style,
    outer: Part,
    mtp: tuple[Stack, ...] = (),
) -> Description:
    """Describe a decoder whose layer `i` is `layer(i)`, with the usual attention states."""
    heads, kv_heads, head_dim = head_sizes(config)
    kv = FullKV(kv_heads, head_dim, head_dim)
    kinds = layer_types(config, style.window)
    blocks = [layer(i).block(attention_state(config, kind, kv), heads) for i, kind in enumerate(kinds)]
    return decoder(names, blocks, outer, mtp)


def mixtral(config: Config, m: Maker, names: Names, style: Style | None = None, head_bias: bool = False) -> Description:
    """Describe Mixtral (arXiv 2401.04088): every layer has experts, `block_sparse_moe.experts.{e}.w1|w2|w3`."""
    style = style or Style(qkv_bias=False, o_bias=False, window="all")
    hidden, count = config.integer("hidden_size"), config.integer("num_local_experts")
    bank = Experts(hidden, config.integer("intermediate_size"), count, config.integer("num_experts_per_tok"))
    layer = total(
        m.norms(hidden, *style.norms, bias=style.norm_bias),
        attention(config, m, style),
        m.router("block_sparse_moe.gate", count, hidden),
        m.experts(bank, prefix="block_sparse_moe.experts.", names=_W),
    )  # fmt: skip
    outer = ends(m, config, names, is_tied(config, False), norm_bias=style.norm_bias, head_bias=head_bias)
    return decoder_of(config, names, lambda _: layer, style, outer)


def phi_moe(config: Config, m: Maker, names: Names) -> Description:
    """Describe Phi-3.5-MoE (arXiv 2404.14219): Mixtral with biased norms, attention and head."""
    style = Style(norm_bias=True, window="all")
    return mixtral(config, m, names, style, head_bias=config.flag("lm_head_bias", default=True))


def minimax_m2(config: Config, m: Maker, names: Names) -> Description:
    """Describe MiniMax-M2: Mixtral with norms over whole q and k, and a routing bias."""
    style = Style(qkv_bias=False, o_bias=False, qk_norm="full" if config.flag("use_qk_norm", default=True) else "")
    hidden, count = config.integer("hidden_size"), config.integer("num_local_experts")
    bank = Experts(hidden, config.integer("intermediate_size"), count, config.integer("num_experts_per_tok"))
    layer = total(
        m.norms(hidden, *style.norms),
        attention(config, m, style),
        m.router("block_sparse_moe.gate", count, hidden),
        m.tensor("block_sparse_moe.e_score_correction_bias", count),
        m.experts(bank, prefix="block_sparse_moe.experts.", names=_W),
    )  # fmt: skip
    return decoder_of(config, names, lambda _: layer, style, ends(m, config, names, is_tied(config, False)))


def minimax_m3(config: Config, m: Maker, names: Names) -> Description:
    """Describe MiniMax-M3: dense layers first, a shared expert, and an index branch in layers with sparse attention."""
    style = Style(qkv_bias=False, o_bias=False, mlp_bias=False, qk_norm="head" if config.flag("use_qk_norm") else "")
    hidden, count = config.integer("hidden_size"), config.integer("num_local_experts")
    common = m.norms(hidden, *style.norms) + attention(config, m, style)
    dense = m.gated_mlp(hidden, config.integer("dense_intermediate_size")).at("mlp.")
    shared = config.integer("shared_intermediate_size") * config.integer("n_shared_experts", default=1)
    bank = Experts(hidden, config.integer("intermediate_size"), count, config.integer("num_experts_per_tok"))
    sparse = total(
        m.router("block_sparse_moe.gate", count, hidden),
        m.tensor("block_sparse_moe.e_score_correction_bias", count),
        m.experts(bank, prefix="block_sparse_moe.experts.", names=_W),
        m.gated_mlp(hidden, shared, shared=True, key="shared").at("block_sparse_moe.shared_experts."),
    )  # fmt: skip
    sparse_attention = config.part("sparse_attention_config")
    indexed = sparse_attention.flags("sparse_attention_freq", len(config.layer_numbers()))
    dim = sparse_attention.integer("sparse_index_dim")
    index = total(
        m.linear(
            "index_q_proj",
            Role.INDEXER,
            sparse_attention.integer("sparse_num_index_heads") * dim,
            hidden,
            reads="attn_in",
        ),
        m.linear("index_k_proj", Role.INDEXER, dim, hidden, reads="attn_in"),
        m.norms(dim, "index_q_norm", "index_k_norm"),
    ).at("self_attn.")

    def layer(i: int) -> Part:
        return common + (sparse if is_sparse(config, i) else dense) + (index if indexed[i] else Part())

    return decoder_of(config, names, layer, style, ends(m, config, names, is_tied(config, False)))


def qwen_moe_mlp(config: Config, m: Maker, *, stacked: bool = False, transposed: bool = False) -> Part:
    """Make router, experts and (where the config has one) a gated shared expert, as Qwen names them."""
    hidden, count = config.integer("hidden_size"), config.integer("num_experts", "num_local_experts")
    bank = Experts(hidden, config.integer("moe_intermediate_size"), count, config.integer("num_experts_per_tok"))
    part = m.router("gate", count, hidden) + m.experts(bank, prefix="experts.", stacked=stacked, transposed=transposed)
    if shared := config.integer("shared_expert_intermediate_size", default=0):
        part += m.gated_mlp(hidden, shared, shared=True, key="shared").at("shared_expert.")
        part += m.linear("shared_expert_gate", Role.SHARED_GATE, 1, hidden, quantizable=False)
    return part.at("mlp.")


def qwen_moe(config: Config, m: Maker, names: Names, *, style: Style, transposed: bool = False) -> Description:
    """Describe Qwen 1.5/2 MoE and Qwen3 MoE (arXiv 2505.09388); the VL sibling stacks its experts, transposed."""
    hidden = config.integer("hidden_size")
    common = m.norms(hidden, *style.norms) + attention(config, m, style)
    sparse = qwen_moe_mlp(config, m, stacked=transposed, transposed=transposed)
    dense = m.gated_mlp(hidden, config.integer("intermediate_size", default=0)).at("mlp.")
    outer = ends(m, config, names, is_tied(config, False))
    return decoder_of(config, names, lambda i: common + (sparse if is_sparse(config, i) else dense), style, outer)


def olmoe(config: Config, m: Maker, names: Names) -> Description:
    """Describe OLMoE (arXiv 2409.02060): norms over whole q and k, `intermediate_size` is the experts'."""
    style = Style(qk_norm="full")
    hidden, count = config.integer("hidden_size"), config.integer("num_experts", "num_local_experts")
    layer = total(
        m.norms(hidden, *style.norms),
        attention(config, m, style),
        m.router("mlp.gate", count, hidden),
        m.experts(Experts(hidden, config.integer("intermediate_size"), count, config.integer("num_experts_per_tok"))),
    )
    return decoder_of(config, names, lambda _: layer, style, ends(m, config, names, is_tied(config, False)))


def granite_moe(config: Config, m: Maker, names: Names) -> Description:
    """Describe Granite 3 MoE: experts in two 3-D tensors, `input_linear` (gate and up) and `output_linear`."""
    style = Style()
    hidden, inner = config.integer("hidden_size"), config.integer("intermediate_size")
    count = config.integer("num_local_experts")
    bank = Experts(hidden, inner, count, config.integer("num_experts_per_tok"))
    prefix = "block_sparse_moe."
    expert = prefix + "experts.{e}."
    gate_up = Stacking(prefix + "input_linear.weight", False, ((expert + "w1", inner), (expert + "w3", inner)))
    down = Stacking(prefix + "output_linear.weight", False, ((expert + "w2", hidden),))
    layer = total(
        m.norms(hidden, *style.norms),
        attention(config, m, style),
        m.router(prefix + "router.layer", count, hidden),
        m.bank(expert + "w13", Role.GATE_UP, 2 * inner, hidden, bank, stacking=gate_up),
        m.bank(expert + "w2", Role.DOWN, hidden, inner, bank, stacking=down),
    )
    return decoder_of(config, names, lambda _: layer, style, ends(m, config, names, is_tied(config, True)))


def routed_with_bias(config: Config, m: Maker, *, bias: bool = True) -> Part:
    """Make DeepSeek-style experts: router with a correction bias in F32, experts, shared experts in one wider MLP."""
    hidden, inner, count = (
        config.integer("hidden_size"),
        config.integer("moe_intermediate_size"),
        config.integer("n_routed_experts", "num_experts"),
    )
    part = m.router("gate", count, hidden)
    if bias:
        part += m.tensor("gate.e_score_correction_bias", count, dtype="F32")
    part += m.experts(Experts(hidden, inner, count, config.integer("num_experts_per_tok")), prefix="experts.")
    if shared := config.integer("n_shared_experts", "num_shared_experts", default=0):
        part += m.gated_mlp(hidden, inner * shared, shared=True, key="shared").at("shared_experts.")
    return part.at("mlp.")


def mtp_stack(m: Maker, config: Config, names: Names, layer: Part, heads: int, state: FullKV) -> tuple[Stack, ...]:
    """Make the MTP layers that follow the decoder's (DeepSeek-V3, arXiv 2412.19437, section 2.2), where the config counts any."""
    count, first = config.integer("num_nextn_predict_layers", default=0), config.integer("num_hidden_layers")
    if not count:
        return ()
    block = (layer + mtp_extras(m, config)).block(state, heads)
    return (make_stack("mtp", names.base + "layers.{i}.", [block] * count, first_index=first),)


def mtp_extras(m: Maker, config: Config) -> Part:
    """Make what an MTP layer has besides a decoder layer: its own embedding and head, two norms, the joining projection."""
    hidden, vocab = config.integer("hidden_size"), config.integer("vocab_size")
    return total(
        m.embedding("embed_tokens", vocab, hidden),
        m.norms(hidden, "enorm", "hnorm", "shared_head.norm"),
        m.linear("eh_proj", Role.PROJECTOR, hidden, 2 * hidden, quantizable=False),
        m.head("shared_head.head", vocab, hidden),
    )


def glm4_moe(config: Config, m: Maker, names: Names) -> Description:
    """Describe GLM 4.5 and 4.6 (arXiv 2508.06471)."""
    style = Style(o_bias=False, mlp_bias=False, qk_norm="head" if config.flag("use_qk_norm") else "")
    hidden = config.integer("hidden_size")
    common = m.norms(hidden, *style.norms) + attention(config, m, style)
    sparse, dense = routed_with_bias(config, m), m.gated_mlp(hidden, config.integer("intermediate_size")).at("mlp.")
    heads, kv_heads, head_dim = head_sizes(config)
    mtp = mtp_stack(m, config, names, common + sparse, heads, FullKV(kv_heads, head_dim, head_dim))
    outer = ends(m, config, names, is_tied(config, False))
    return decoder_of(config, names, lambda i: common + (sparse if is_sparse(config, i) else dense), style, outer, mtp)


def gpt_oss(config: Config, m: Maker, names: Names) -> Description:
    """Describe gpt-oss (arXiv 2508.10925): attention sinks, biases everywhere, experts stacked with gate and up rows interleaved."""
    style = Style(qkv_bias="attention_bias", o_bias="attention_bias", window="layer_types")
    hidden, count = config.integer("hidden_size"), config.integer("num_local_experts")
    active = config.integer("num_experts_per_tok", "experts_per_token")
    bank = Experts(hidden, config.integer("intermediate_size"), count, active, bias=True)
    layer = total(
        m.norms(hidden, *style.norms),
        attention(config, m, style),
        m.tensor("self_attn.sinks", config.integer("num_attention_heads")),
        m.router("mlp.router", count, hidden, bias=True),
        m.experts(bank, stacked=True, transposed=True, interleaved=True),
    )  # fmt: skip
    return decoder_of(config, names, lambda _: layer, style, ends(m, config, names, is_tied(config, False)))


def mimo_v2(config: Config, m: Maker, names: Names, *, fused: bool = False) -> Description:
    """Describe MiMo-V2: sliding layers with heads of their own and sink biases; keys and values of different widths.

    `fused`: q, k and v are one matrix (MiMo-V2.5).
    """
    hidden, layers = config.integer("hidden_size"), config.layer_numbers()
    pattern = config.flags("hybrid_layer_pattern", len(layers))
    sparse = routed_with_bias(config, m)
    dense = m.gated_mlp(hidden, config.integer("intermediate_size")).at("mlp.")

    def block(i: int) -> Block:
        """Describe layer `i`, by the kind of its attention."""
        swa = "swa_" if pattern[i] else ""
        heads, kv_heads = config.integer(swa + "num_attention_heads"), config.integer(swa + "num_key_value_heads")
        dim, v_dim = config.integer(swa + "head_dim"), config.integer(swa + "v_head_dim")
        bias = config.flag("attention_bias")
        part = m.norms(hidden, "input_layernorm", "post_attention_layernorm")
        if fused:
            rows = heads * dim + kv_heads * (dim + v_dim)
            part += m.linear("self_attn.qkv_proj", Role.QKV, rows, hidden, bias=bias, reads="attn_in")
            part += m.linear("self_attn.o_proj", Role.O, hidden, heads * v_dim, reads="attn_out")
        else:
            part += m.attention(hidden, Heads(heads, kv_heads, dim, v_dim), qkv_bias=bias).at("self_attn.")
        if config.flag("add_swa_attention_sink_bias" if swa else "add_full_attention_sink_bias"):
            part += m.tensor("self_attn.attention_sink_bias", heads)
        part += sparse if is_sparse(config, i) else dense
        state = (
            SlidingKV(kv_heads, dim, v_dim, config.integer("sliding_window")) if swa else FullKV(kv_heads, dim, v_dim)
        )
        return part.block(state, heads)

    return decoder(names, [block(i) for i in layers], ends(m, config, names, is_tied(config, False)))


def step3(config: Config, m: Maker, names: Names) -> Description:
    """Describe Step-3.x Flash: a gate a head on the attention output, experts in three 3-D tensors, one shared expert.

    Step-3.5 Flash: sliding layers have heads of their own (`attention_other_setting`), `moe_layers_enum` lists the sparse ones.
    """
    style = Style(qkv_bias=False, o_bias=False, mlp_bias=False, qk_norm="head")
    hidden, count = config.integer("hidden_size"), config.integer("num_experts", "moe_num_experts", "n_routed_experts")
    inner, active = config.integer("moe_intermediate_size"), config.integer("num_experts_per_tok", "moe_top_k")
    own = {**config.values, **config.mapping("attention_other_setting", {})}
    sliding = Config(own, config.name, config.path, config.kind)
    dense = m.gated_mlp(hidden, config.integer("intermediate_size")).at("mlp.")
    sparse = m.router("moe.gate", count, hidden) + m.gated_mlp(
        hidden, config.integer("share_expert_dim"), shared=True, key="shared"
    ).at("share_expert.")
    if config.flag("use_moe_router_bias", default=True):
        sparse += m.tensor("moe.router_bias", count)
    bank = Experts(hidden, inner, count, active)
    for name, role, out, into in (
        ("gate_proj", Role.GATE, inner, hidden),
        ("up_proj", Role.UP, inner, hidden),
        ("down_proj", Role.DOWN, hidden, inner),
    ):
        apart = f"moe.experts.{{e}}.{name}"
        stacking = Stacking(f"moe.{name}.weight", False, ((apart, out),))
        sparse += m.bank(apart, role, out, into, bank, stacking=stacking)
    listed = config.text("moe_layers_enum", "")
    if not re.fullmatch(r"(\d{1,4}(,\d{1,4})*)?", listed):
        raise config.wrong("moe_layers_enum", "numbers of layers, such as 3,4,5", listed)
    has_experts = set(map(int, listed.split(","))) if listed else None

    def block(i: int, kind: str) -> Block:
        """Describe layer `i`, by the kind of its attention."""
        here = sliding if kind == "sliding_attention" else config
        heads, kv_heads, dim = head_sizes(here)
        part = m.norms(hidden, *style.norms) + attention(here, m, style)
        if config.flag("use_head_wise_attn_gate", default=True):
            part += m.linear("self_attn.g_proj", Role.MIXER_GATE, heads, hidden, quantizable=False)
        part += sparse if (is_sparse(config, i) if has_experts is None else i in has_experts) else dense
        return part.block(attention_state(config, kind, FullKV(kv_heads, dim, dim)), heads)

    # Layers behind the decoder's are those of its MTP heads.
    kinds, count_of = config.names("layer_types"), len(config.layer_numbers())
    if len(kinds) < count_of:
        raise config.wrong("layer_types", f"a list of at least {count_of}", kinds)
    blocks = [block(i, kind) for i, kind in enumerate(kinds[:count_of])]
    return decoder(names, blocks, ends(m, config, names, is_tied(config, False)))


def llama4(config: Config, m: Maker, names: Names) -> Description:
    """Describe Llama 4 text: chunked local layers, experts every `interleave_moe_layer_step` layers, stacked and transposed."""
    hidden, layers = config.integer("hidden_size"), config.layer_numbers()
    step, count = config.integer("interleave_moe_layer_step", default=1), config.integer("num_local_experts")
    sparse_layers = config.counts("moe_layers", default=[i for i in layers if (i + 1) % step == 0])
    heads, kv_heads, head_dim = head_sizes(config)
    inner = config.integer("intermediate_size")
    common = m.norms(hidden, "input_layernorm", "post_attention_layernorm") + m.attention(
        hidden,
        Heads(heads, kv_heads, head_dim),
        qkv_bias=config.flag("attention_bias"),
        o_bias=config.flag("attention_bias"),
    ).at("self_attn.")
    dense = m.gated_mlp(hidden, config.integer("intermediate_size_mlp")).at("feed_forward.")
    sparse = total(
        m.router("router", count, hidden),
        m.experts(
            Experts(hidden, inner, count, config.integer("num_experts_per_tok")),
            prefix="experts.",
            stacked=True,
            transposed=True,
        ),
        m.gated_mlp(hidden, inner, shared=True, key="shared").at("shared_expert."),
    ).at("feed_forward.")
    kv = FullKV(kv_heads, head_dim, head_dim)
    turned = config.flags("no_rope_layers", len(layers), [(i + 1) % 4 != 0 for i in layers])
    by_rope = ["chunked_attention" if rope else "full_attention" for rope in turned]
    kinds = config.names("layer_types", len(layers), by_rope)
    blocks = [
        (common + (sparse if i in sparse_layers else dense)).block(attention_state(config, kinds[i], kv), heads)
        for i in layers
    ]
    return decoder(names, blocks, ends(m, config, names, is_tied(config, False)))


describe = by_architecture(
    {
        "MixtralForCausalLM": mixtral,
        "PhiMoEForCausalLM": phi_moe,
        "PhimoeForCausalLM": phi_moe,
        "MiniMaxM2ForCausalLM": minimax_m2,
        "MiniMaxM3ForCausalLM": minimax_m3,
        "MiniMaxM3SparseForCausalLM": minimax_m3,
        "Qwen2MoeForCausalLM": lambda c, m, n: qwen_moe(
            c, m, n, style=Style(qkv_bias=True, o_bias=False, window="qwen")
        ),
        "Qwen3MoeForCausalLM": lambda c, m, n: qwen_moe(c, m, n, style=Style(qk_norm="head", window="qwen")),
        "Qwen3VLMoeTextModel": lambda c, m, n: qwen_moe(
            c, m, n, style=Style(qk_norm="head", window="qwen"), transposed=True
        ),
        "OlmoeForCausalLM": olmoe,
        "GraniteMoeForCausalLM": granite_moe,
        "Glm4MoeForCausalLM": glm4_moe,
        "GptOssForCausalLM": gpt_oss,
        "MiMoV2FlashForCausalLM": mimo_v2,
        "MiMoV2ForCausalLM": lambda c, m, n: mimo_v2(c, m, n, fused=True),
        "Step3p7FlashForCausalLM": step3,
        "Step3p5ForCausalLM": step3,
        "Llama4ForCausalLM": llama4,
    }
)
