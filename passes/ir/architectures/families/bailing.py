"""Ling 3 (`BailingMoeV3`): Kimi delta attention without low ranks, latent attention with gates at every group's end, routed experts.

Names and shapes as vLLM 0.32 loads them (`models/bailing_moe_v3.py`, `bailing_moe_v3_mtp.py`); transformers 5.23 renames them
(`bailing_hybrid`). Ling-3.0-flash comes out at the 127,486,405,600 parameters that its repository has.
"""

from __future__ import annotations

from dataclasses import replace

from passes.ir.architectures.config import Config, not_understood
from passes.ir.architectures.draft import Description, Names, by_architecture, decoder, ends, is_tied, make_stack
from passes.ir.architectures.mla import latent_attention, latent_state
from passes.ir.architectures.moe import is_sparse
from passes.ir.architectures.parts import Experts, Heads, Maker, Part, total
from passes.ir.model import Role
from passes.ir.state import Recurrent, StatePart

#: What gates a latent layer's output: one value a head, or one an element.
_GATES = ("head_wise", "element_wise")


def bailing_v3(config: Config, m: Maker, names: Names) -> Description:
    """Describe Ling 3: the last layer of each group, and what is left of a group at the end, attend; the others keep a state."""
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    norms = m.norms(hidden, "input_layernorm", "post_attention_layernorm")
    latent, delta = _latent(config, m).at("attention."), _delta(config, m).at("attention.")
    sparse = _experts(config, m).at("mlp.")
    dense = m.gated_mlp(hidden, config.integer("intermediate_size")).at("mlp.")
    layers, group = config.layer_numbers(), config.integer("layer_group_size", at_least=1)
    whole = len(layers) // group * group
    blocks = []
    for i in layers:
        mlp = sparse if is_sparse(config, i) else dense
        if (i + 1) % group == 0 or i >= whole:
            blocks.append((norms + latent + mlp).block(latent_state(config, indexed=False), heads))
        else:
            blocks.append((norms + delta + mlp).block(_state(config), heads))
    base = replace(names, embedding="word_embeddings")
    mtp = []
    if count := config.integer("num_nextn_predict_layers", default=0):
        extras = m.norms(hidden, "enorm", "hnorm", "final_layernorm")
        extras += m.linear("eh_proj", Role.PROJECTOR, hidden, 2 * hidden, quantizable=False)
        block = (norms + latent + sparse + extras).block(latent_state(config, indexed=False), heads)
        mtp.append(make_stack("mtp", names.base + "layers.{i}.", [block] * count, first_index=len(layers)))
    return decoder(base, blocks, ends(m, config, base, is_tied(config, False)), mtp)


def _latent(config: Config, m: Maker) -> Part:
    """Latent attention whose output matrix is called `dense`, and the gate before it."""
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    made = latent_attention(config, m)
    linears = tuple(replace(lin, name="dense") if lin.name == "o_proj" else lin for lin in made.linears)
    kind = config.text("gated_attention_proj_granularity_type", "")
    if not kind:
        return Part(linears, made.tensors)
    if kind not in _GATES:
        raise not_understood(config.name, f"{config.path}: gates that are {kind!r} are not known")
    rows = heads if kind == "head_wise" else heads * config.integer("v_head_dim")
    gate = m.linear("g_proj", Role.MIXER_GATE, rows, hidden, reads="attn_in", quantizable=kind == "element_wise")
    return Part(linears, made.tensors) + gate


def _delta(config: Config, m: Maker) -> Part:
    """Kimi delta attention with forget and output gates of full rank."""
    if not config.flag("no_kda_lora", default=True):
        raise not_understood(config.name, f"{config.path}: no_kda_lora false is not known")
    hidden, (heads, dim) = config.integer("hidden_size"), _delta_heads(config)
    size, kernel, stored = heads * dim, config.integer("short_conv_kernel_size"), m.find(".A_log")
    return total(
        m.attention(hidden, Heads(heads, heads, dim)),
        *(m.tensor(f"{x}_conv1d.weight", size, 1, kernel) for x in "qkv"),
        m.tensor("A_log", *((heads,) if stored is None else stored.shape), dtype="F32"),
        m.tensor("dt_bias", size, dtype="F32"),
        m.linear("b_proj", Role.MIXER_GATE, heads, hidden, reads="attn_in", quantizable=False),
        m.linear("f_proj", Role.MIXER_GATE, size, hidden, reads="attn_in", quantizable=False),
        m.linear("g_proj", Role.MIXER_GATE, size, hidden, reads="attn_in", quantizable=False),
        m.norms(dim, "o_norm"),
    )


def _delta_heads(config: Config) -> tuple[int, int]:
    """Heads of delta attention and their size, as transformers calls them, else as the repository does."""
    return config.integer("linear_num_heads", "num_attention_heads"), config.integer("linear_head_dim", "head_dim")


def _state(config: Config) -> Recurrent:
    """What a layer of delta attention keeps."""
    (heads, dim), kernel = _delta_heads(config), config.integer("short_conv_kernel_size")
    conv = tuple(StatePart(f"conv_{x}", (heads * dim, kernel - 1)) for x in "qkv")
    return Recurrent("kda", (*conv, StatePart("recurrent", (heads, dim, dim), "F32")))


def _experts(config: Config, m: Maker) -> Part:
    hidden, inner, count = (config.integer(key) for key in ("hidden_size", "moe_intermediate_size", "num_experts"))
    shared = config.integer("moe_shared_expert_intermediate_size", default=inner)
    return total(
        m.router("gate", count, hidden),
        m.tensor("gate.expert_bias", count, dtype="F32"),
        m.experts(Experts(hidden, inner, count, config.integer("num_experts_per_tok", "num_experts_per_token")), prefix="experts."),
        m.gated_mlp(
            hidden, shared * config.integer("num_shared_experts", default=1), shared=True, key="shared"
        ).at("shared_experts."),
    )  # fmt: skip


describe = by_architecture({"BailingMoeV3ForCausalLM": bailing_v3})
