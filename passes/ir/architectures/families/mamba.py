"""State-space models and their mixtures with attention: Mamba (arXiv 2312.00752), Mamba 2 (arXiv 2405.21060), Jamba, Granite 4, Bamba.

Names and shapes are those of transformers 5.23; states those of vLLM 0.32 (`layers/mamba/mamba_utils.py`).
"""

from __future__ import annotations

from dataclasses import replace

from passes.ir.architectures.config import Config, not_understood
from passes.ir.architectures.decoder import head_sizes
from passes.ir.architectures.draft import Description, Names, by_architecture, decoder, ends, is_tied
from passes.ir.architectures.parts import Experts, Heads, Maker, Part, total
from passes.ir.model import Block, Role, Stacking
from passes.ir.state import FullKV, Recurrent, StatePart


def _or_auto(config: Config, *fields: str, auto: int) -> int:
    """A size that the config may leave to the rule."""
    return auto if config.get(*fields, default="auto") == "auto" else config.integer(*fields)


def mamba1(config: Config, m: Maker, *, norms: bool, prefix: str = "") -> tuple[Part, Recurrent]:
    """Make a Mamba 1 mixer and what it keeps; `norms`: on its step and on B and C (Jamba). Fields may begin with `prefix`."""
    hidden, inner = config.integer("hidden_size"), config.integer(f"{prefix}expand") * config.integer("hidden_size")
    inner = config.integer(f"{prefix}intermediate_size", default=inner) if not prefix else inner
    size, kernel = (
        config.integer(f"{prefix}state_size", f"{prefix}d_state"),
        config.integer(f"{prefix}conv_kernel", f"{prefix}d_conv"),
    )
    rank = _or_auto(config, f"{prefix}time_step_rank", f"{prefix}dt_rank", auto=-(-hidden // 16))
    bias = config.flag("use_bias", f"{prefix}proj_bias")
    part = total(
        m.linear("in_proj", Role.MIXER_IN, 2 * inner, hidden, bias=bias, reads="mixer_in"),
        m.tensor("conv1d.weight", inner, 1, kernel),
        m.tensor("conv1d.bias", inner) if config.flag("use_conv_bias", f"{prefix}conv_bias", default=True) else Part(),
        m.linear("x_proj", Role.MIXER_OUT, rank + 2 * size, inner, quantizable=False),
        m.linear("dt_proj", Role.MIXER_GATE, inner, rank, bias=True, quantizable=False),
        m.tensor("A_log", inner, size) + m.tensor("D", inner),
        m.linear("out_proj", Role.MIXER_OUT, hidden, inner, bias=bias, reads="mixer_out"),
    )
    if norms:
        part += m.norms(rank, "dt_layernorm") + m.norms(size, "b_layernorm", "c_layernorm")
    return part, Recurrent("mamba1", (StatePart("conv", (inner, kernel - 1)), StatePart("ssm", (inner, size))))


def mamba2(config: Config, m: Maker, prefix: str) -> tuple[Part, Recurrent, int]:
    """Make a Mamba 2 mixer, what it keeps, and its heads; its fields begin with `prefix` (`mamba_`), or are Mamba 2's own."""
    hidden = config.integer("hidden_size")
    heads = config.integer(f"{prefix}n_heads", "num_heads")
    inner = config.integer(f"{prefix}expand", default=2) * hidden
    dim = _or_auto(config, f"{prefix}d_head", "head_dim", auto=inner // heads)
    groups, size = config.integer(f"{prefix}n_groups", "n_groups"), config.integer(f"{prefix}d_state", "state_size")
    kernel, channels = config.integer(f"{prefix}d_conv", "conv_kernel"), heads * dim + 2 * groups * size
    bias = config.flag(f"{prefix}proj_bias", "use_bias")
    part = total(
        m.linear("in_proj", Role.MIXER_IN, heads * dim + channels + heads, hidden, bias=bias, reads="mixer_in"),
        m.tensor("conv1d.weight", channels, 1, kernel),
        m.tensor("conv1d.bias", channels)
        if config.flag(f"{prefix}conv_bias", "use_conv_bias", default=True)
        else Part(),
        m.tensor("dt_bias", heads) + m.tensor("A_log", heads) + m.tensor("D", heads),
        m.norms(heads * dim, "norm"),
        m.linear("out_proj", Role.MIXER_OUT, hidden, heads * dim, bias=bias, reads="mixer_out"),
    )
    return (
        part,
        Recurrent("mamba2", (StatePart("conv", (channels, kernel - 1)), StatePart("ssm", (heads, dim, size)))),
        heads,
    )


def mamba(config: Config, m: Maker, names: Names) -> Description:
    """Describe Mamba and Falcon Mamba: one mixer a layer, nothing else."""
    mixer, state = mamba1(config, m, norms=False)
    return _alone(config, m, (m.norms(config.integer("hidden_size"), "norm") + mixer.at("mixer.")).block(state))


def plain_mamba2(config: Config, m: Maker, names: Names) -> Description:
    """Describe Mamba 2 and Codestral Mamba: one mixer a layer, nothing else."""
    mixer, state, heads = mamba2(config, m, "")
    return _alone(config, m, (m.norms(config.integer("hidden_size"), "norm") + mixer.at("mixer.")).block(state, heads))


def _alone(config: Config, m: Maker, block: Block) -> Description:
    names = Names("backbone.", "lm_head")
    outer = ends(
        m,
        config,
        replace(names, embedding="embeddings", norm="norm_f"),
        is_tied(config, config.get("model_type") != "mamba2"),
    )
    return decoder(names, [block] * len(config.layer_numbers()), outer)


def attention_block(config: Config, m: Maker) -> tuple[Part, FullKV, int]:
    """Make the attention of these mixtures, what it keeps, and its heads."""
    heads, kv_heads, dim = head_sizes(config)
    bias = config.flag("attention_bias")
    part = m.attention(config.integer("hidden_size"), Heads(heads, kv_heads, dim), qkv_bias=bias, o_bias=bias)
    return part.at("self_attn."), FullKV(kv_heads, dim, dim), heads


def jamba(config: Config, m: Maker, names: Names) -> Description:
    """Describe Jamba (arXiv 2403.19887): one attention to seven Mamba layers, experts in every other layer."""
    hidden, inner, count = (
        config.integer("hidden_size"),
        config.integer("intermediate_size"),
        config.integer("num_experts"),
    )
    mixer, state = mamba1(config, m, norms=True, prefix="mamba_")
    attention, kv, heads = attention_block(config, m)
    norms = m.norms(hidden, "input_layernorm", "pre_ff_layernorm")
    dense = m.gated_mlp(hidden, inner).at("feed_forward.")
    bank = Experts(hidden, inner, count, config.integer("num_experts_per_tok"))
    sparse = m.router("router", count, hidden) + m.experts(bank, prefix="experts.")  # fmt: skip

    def periodic(i: int, what: str) -> bool:
        return i % config.integer(f"{what}_layer_period") == config.integer(f"{what}_layer_offset")

    blocks = []
    for i in config.layer_numbers():
        mlp = sparse.at("feed_forward.") if count > 1 and periodic(i, "expert") else dense
        if periodic(i, "attn"):
            blocks.append((norms + attention + mlp).block(kv, heads))
        else:
            blocks.append((norms + mixer.at("mamba.") + mlp).block(state))
    return decoder(names, blocks, ends(m, config, replace(names, norm="final_layernorm"), is_tied(config, False)))


def granite_experts(config: Config, m: Maker) -> Part:
    """Make Granite's experts in two 3-D tensors, and its shared MLP in two matrices, where the config has them."""
    hidden, inner, part = config.integer("hidden_size"), config.integer("intermediate_size"), Part()
    if count := config.integer("num_local_experts", default=0):
        bank = Experts(hidden, inner, count, config.integer("num_experts_per_tok"))
        prefix = "block_sparse_moe."
        expert = prefix + "experts.{e}."
        gate_up = Stacking(prefix + "input_linear.weight", False, ((expert + "w1", inner), (expert + "w3", inner)))
        down = Stacking(prefix + "output_linear.weight", False, ((expert + "w2", hidden),))
        part += m.router(prefix + "router.layer", count, hidden)
        part += m.bank(expert + "w13", Role.GATE_UP, 2 * inner, hidden, bank, stacking=gate_up)
        part += m.bank(expert + "w2", Role.DOWN, hidden, inner, bank, stacking=down)
    if shared := config.integer("shared_intermediate_size", default=0):
        part += m.linear(
            "shared_mlp.input_linear", Role.GATE_UP, 2 * shared, hidden, shared=bool(count), reads="shared_in"
        )
        part += m.linear("shared_mlp.output_linear", Role.DOWN, hidden, shared, shared=bool(count), reads="shared_mid")
    return part


def granite_hybrid(config: Config, m: Maker, names: Names) -> Description:
    """Describe Granite 4 H: nine Mamba 2 layers to one attention, with experts and a shared MLP, or that MLP alone."""
    hidden = config.integer("hidden_size")
    mixer, state, mixer_heads = mamba2(config, m, "mamba_")
    attention, kv, heads = attention_block(config, m)
    rest = m.norms(hidden, "input_layernorm", "post_attention_layernorm") + granite_experts(config, m)
    field, count = "layer_types" if config.has("layer_types") else "layers_block_type", len(config.layer_numbers())
    kinds = config.names(field, count, ["mamba"] * count)
    blocks = []
    for kind in kinds:
        if kind in ("mamba", "linear_attention"):
            blocks.append((rest + mixer.at("mamba.")).block(state, mixer_heads))
        elif kind in ("attention", "full_attention"):
            blocks.append((rest + attention).block(kv, heads))
        else:
            raise not_understood(config.name, f"{config.path}: layer type {kind!r} is not known")
    return decoder(names, blocks, ends(m, config, names, is_tied(config, True)))


def granite_shared(config: Config, m: Maker, names: Names) -> Description:
    """Describe Granite 3 MoE with a shared MLP."""
    attention, kv, heads = attention_block(config, m)
    norms = m.norms(config.integer("hidden_size"), "input_layernorm", "post_attention_layernorm")
    block = (norms + attention + granite_experts(config, m)).block(kv, heads)
    return decoder(names, [block] * len(config.layer_numbers()), ends(m, config, names, is_tied(config, True)))


def bamba(config: Config, m: Maker, names: Names) -> Description:
    """Describe Bamba: Mamba 2 layers with a few of attention, dense MLPs."""
    hidden = config.integer("hidden_size")
    mixer, state, mixer_heads = mamba2(config, m, "mamba_")
    attention, kv, heads = attention_block(config, m)
    mlp = m.gated_mlp(hidden, config.integer("intermediate_size"), bias=config.flag("mlp_bias")).at("feed_forward.")
    rest = m.norms(hidden, "input_layernorm", "pre_ff_layernorm") + mlp
    full = set(config.counts("attn_layer_indices", default=()))
    blocks = [
        (rest + attention).block(kv, heads) if i in full else (rest + mixer.at("mamba.")).block(state, mixer_heads)
        for i in config.layer_numbers()
    ]
    return decoder(names, blocks, ends(m, config, replace(names, norm="final_layernorm"), is_tied(config, False)))


describe = by_architecture(
    {
        "MambaForCausalLM": mamba,
        "FalconMambaForCausalLM": mamba,
        "Mamba2ForCausalLM": plain_mamba2,
        "JambaForCausalLM": jamba,
        "GraniteMoeHybridForCausalLM": granite_hybrid,
        "GraniteMoeSharedForCausalLM": granite_shared,
        "BambaForCausalLM": bamba,
    }
)
