"""Gemma 3n: per-layer embeddings, AltUp's parallel streams (arXiv 2301.13310), LAuReL (arXiv 2411.07501), layers that share a cache."""

from __future__ import annotations

from passes.ir.architectures.config import Config, not_understood
from passes.ir.architectures.decoder import head_sizes
from passes.ir.architectures.draft import Description, Names, attention_state, decoder, ends, is_tied
from passes.ir.architectures.parts import Heads, Maker, Part, total
from passes.ir.model import Block, Role
from passes.ir.state import FullKV, SharedKV

_NORMS = ("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")


def describe(config: Config, architecture: str, m: Maker, names: Names) -> Description:
    """Describe a Gemma 3n text decoder."""
    hidden, layers = config.integer("hidden_size"), config.layer_numbers()
    kinds = config.names("layer_types", len(layers))
    if isinstance(config.get("intermediate_size"), list):
        widths = config.counts("intermediate_size", len(layers), at_least=1)
    else:
        widths = [config.integer("intermediate_size")] * len(layers)
    first_shared = len(layers) - config.integer("num_kv_shared_layers", default=0, at_most=len(layers))
    heads, kv_heads, dim = head_sizes(config)
    streams, rank, per_layer = (
        config.integer("altup_num_inputs", at_most=64),
        config.integer("laurel_rank"),
        config.integer("hidden_size_per_layer_input"),
    )
    common = total(
        m.norms(hidden, *_NORMS),
        m.tensor("altup.correct_output_scale", hidden),
        _small(m, "altup.correction_coefs", streams, streams)
        + _small(m, "altup.prediction_coefs", streams**2, streams),
        _small(m, "altup.modality_router", streams, hidden) + m.norms(hidden, "altup.router_norm"),
        _small(m, "laurel.linear_left", rank, hidden) + _small(m, "laurel.linear_right", hidden, rank),
        m.norms(hidden, "laurel.post_laurel_norm"),
        _small(m, "per_layer_input_gate", per_layer, hidden) + _small(m, "per_layer_projection", hidden, per_layer),
        m.norms(hidden, "post_per_layer_input_norm"),
    )
    own = m.attention(hidden, Heads(heads, kv_heads, dim)) + m.norms(dim, "q_norm", "k_norm")
    shared = total(
        m.linear("q_proj", Role.Q, heads * dim, hidden, reads="attn_in"),
        m.linear("o_proj", Role.O, hidden, heads * dim, reads="attn_out"),
        m.norms(dim, "q_norm"),
    )

    def block(i: int) -> Block:
        """Describe layer `i`: its own keys and values, or those of the last layer of its kind that has some."""
        rest = common + m.gated_mlp(hidden, int(widths[i])).at("mlp.")
        if i < first_shared:
            return (rest + own.at("self_attn.")).block(
                attention_state(config, kinds[i], FullKV(kv_heads, dim, dim)), heads
            )
        source = max((j for j in range(first_shared) if kinds[j] == kinds[i]), default=-1)
        if source < 0:
            raise not_understood(config.name, f"{config.path}: layer {i} shares the cache of no earlier layer")
        return (rest + shared.at("self_attn.")).block(SharedKV(source), heads)

    every = per_layer * len(layers)
    outer = ends(m, config, names, is_tied(config, True)) + total(
        m.embedding("embed_tokens_per_layer", config.integer("vocab_size_per_layer_input"), every),
        _small(m, "per_layer_model_projection", every, hidden) + m.norms(per_layer, "per_layer_projection_norm"),
        *(
            _small(m, f"altup_{way}projections.{k}", hidden, hidden)
            for way in ("", "unembed_")
            for k in range(streams - 1)
        ),
    ).at(names.base)
    return decoder(names, [block(i) for i in layers], outer)


def _small(m: Maker, name: str, out: int, into: int) -> Part:
    """A matrix that recipes leave dense."""
    return m.linear(name, Role.PROJECTOR, out, into, quantizable=False)
