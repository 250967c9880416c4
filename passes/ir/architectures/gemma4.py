"""Gemma 4: sliding and global layers with heads of their own, layers that share an earlier cache, per-layer embeddings, experts."""

from __future__ import annotations

from passes.ir.architectures.config import Config, not_understood
from passes.ir.architectures.draft import Description, Names, decoder, ends, is_tied
from passes.ir.architectures.parts import Experts, Heads, Maker, Part, total
from passes.ir.model import Block, Role
from passes.ir.state import FullKV, LayerState, SharedKV, SlidingKV

_NORMS = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")


def describe(config: Config, architecture: str, m: Maker, names: Names) -> Description:
    """Describe a Gemma 4 text decoder."""
    layers = config.layer_numbers()
    kinds = config.names("layer_types", len(layers))
    first_shared = len(layers) - config.integer("num_kv_shared_layers", default=0, at_most=len(layers))
    blocks = []
    for i, kind in enumerate(kinds):
        if kind not in ("full_attention", "sliding_attention"):
            raise not_understood(config.name, f"{config.path}: layer type {kind!r} is not known")
        source = max((j for j in range(first_shared) if kinds[j] == kind), default=0) if i >= first_shared else None
        blocks.append(_block(config, m, i, kind == "full_attention", source))
    outer = ends(m, config, names, is_tied(config, True))
    if width := config.integer("hidden_size_per_layer_input", default=0):
        every = width * len(layers)
        outer += total(
            m.embedding(names.base + "embed_tokens_per_layer", config.integer("vocab_size_per_layer_input"), every),
            m.linear(
                names.base + "per_layer_model_projection",
                Role.PROJECTOR,
                every,
                config.integer("hidden_size"),
                quantizable=False,
            ),
            m.norms(width, names.base + "per_layer_projection_norm"),
        )
    return decoder(names, blocks, outer)


def _heads(config: Config, layer: int, full: bool) -> tuple[int, int]:
    """KV heads and head dimension of a layer; newer configs spell out what differs in `per_layer_config`."""
    own = config.inside("per_layer_config", {}).inside(str(layer), {})
    if not full or not config.has("global_head_dim"):
        kv_heads = own.integer("num_key_value_heads", default=config.integer("num_key_value_heads"), at_least=1)
        return kv_heads, own.integer("head_dim", default=config.integer("head_dim"), at_least=1)
    same = config.flag("attention_k_eq_v")
    kv_heads = config.integer("num_global_key_value_heads") if same else config.integer("num_key_value_heads")
    return kv_heads, config.integer("global_head_dim")


def _block(config: Config, m: Maker, layer: int, full: bool, source: int | None) -> Block:
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    same = config.flag("attention_k_eq_v") and full
    kv_heads, dim = _heads(config, layer, full)
    bias = config.flag("attention_bias")
    state: LayerState
    if source is None:
        attention = m.attention(
            hidden,
            Heads(heads, kv_heads, dim),
            qkv_bias=bias,
            o_bias=bias,
            names=("q_proj", "k_proj", "" if same else "v_proj", "o_proj"),
        )
        attention += m.norms(dim, "q_norm", "k_norm")
        state = FullKV(kv_heads, dim, dim) if full else SlidingKV(kv_heads, dim, dim, config.integer("sliding_window"))
    else:
        attention = total(
            m.linear("q_proj", Role.Q, heads * dim, hidden, bias=bias, reads="attn_in"),
            m.linear("o_proj", Role.O, hidden, heads * dim, bias=bias, reads="attn_out"),
            m.norms(dim, "q_norm"),
        )
        state = SharedKV(source)
    inner = config.integer("intermediate_size") * (
        2 if source is not None and config.flag("use_double_wide_mlp") else 1
    )
    part = total(
        m.norms(hidden, *_NORMS),
        attention.at("self_attn."),
        m.gated_mlp(hidden, inner).at("mlp."),
        m.tensor("layer_scalar", 1),
        _experts(config, m) if config.flag("enable_moe_block") else Part(),
        _per_layer_input(config, m),
    )
    return part.block(state, heads)


def _experts(config: Config, m: Maker) -> Part:
    hidden, count = config.integer("hidden_size"), config.integer("num_experts")
    return total(
        m.tensor("router.scale", hidden),
        m.tensor("router.per_expert_scale", count),
        m.router("router.proj", count, hidden),
        m.experts(
            Experts(hidden, config.integer("moe_intermediate_size"), count, config.integer("top_k_experts")),
            prefix="experts.",
            stacked=True,
        ),
        m.norms(hidden, "post_feedforward_layernorm_1", "post_feedforward_layernorm_2", "pre_feedforward_layernorm_2"),
    )


def _per_layer_input(config: Config, m: Maker) -> Part:
    hidden, width = config.integer("hidden_size"), config.integer("hidden_size_per_layer_input", default=0)
    if not width:
        return Part()
    return total(
        m.linear("per_layer_input_gate", Role.PROJECTOR, width, hidden, quantizable=False),
        m.linear("per_layer_projection", Role.PROJECTOR, hidden, width, quantizable=False),
        m.norms(hidden, "post_per_layer_input_norm"),
    )
