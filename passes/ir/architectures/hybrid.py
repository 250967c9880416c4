"""Decoders that mix attention with recurrent layers: Qwen3-Next and 3.5 (gated delta net), Nemotron-H (Mamba 2), Kimi Linear.

State shapes: gated delta net (arXiv 2412.06464) and Kimi delta attention (arXiv 2510.26692) keep a matrix a value head, Mamba 2
(arXiv 2405.21060) one a head; each also keeps the last `kernel - 1` inputs of its short convolution.
"""

from __future__ import annotations

from dataclasses import replace

from passes.ir.architectures.config import Config, not_understood
from passes.ir.architectures.decoder import head_sizes
from passes.ir.architectures.draft import Description, Names, by_architecture, decoder, ends, is_tied, make_stack
from passes.ir.architectures.mla import latent_attention, latent_state
from passes.ir.architectures.moe import is_sparse, qwen_moe_mlp
from passes.ir.architectures.parts import Experts, Heads, Maker, Part, total
from passes.ir.model import Block, Role
from passes.ir.state import FullKV, Recurrent, StatePart

_SSM_DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "auto": None}


def _ssm_dtype(config: Config, field: str, default: str = "auto") -> str | None:
    value = config.text(field, default)
    if value not in _SSM_DTYPES:
        raise not_understood(config.name, f"{config.path}: {field} {value!r} is not known")
    return _SSM_DTYPES[value]


def delta_net_state(config: Config) -> Recurrent:
    """Say what a gated-delta-net layer keeps."""
    key_heads, value_heads = config.integer("linear_num_key_heads"), config.integer("linear_num_value_heads")
    key_dim, value_dim = config.integer("linear_key_head_dim"), config.integer("linear_value_head_dim")
    channels = 2 * key_heads * key_dim + value_heads * value_dim
    return Recurrent(
        "gdn",
        (
            StatePart("conv", (channels, config.integer("linear_conv_kernel_dim") - 1)),
            StatePart("recurrent", (value_heads, value_dim, key_dim), _ssm_dtype(config, "mamba_ssm_dtype")),
        ),
    )


def delta_net(config: Config, m: Maker, *, fused: bool) -> Part:
    """Make a gated delta net; `fused`: Qwen3-Next's two input projections instead of Qwen3.5's four."""
    hidden = config.integer("hidden_size")
    key_heads, value_heads = config.integer("linear_num_key_heads"), config.integer("linear_num_value_heads")
    key_size = key_heads * config.integer("linear_key_head_dim")
    value_dim = config.integer("linear_value_head_dim")
    value_size = value_heads * value_dim
    if fused:
        inputs = total(
            m.linear("in_proj_qkvz", Role.MIXER_IN, 2 * key_size + 2 * value_size, hidden, reads="mixer_in"),
            m.linear("in_proj_ba", Role.MIXER_GATE, 2 * value_heads, hidden, reads="mixer_in", quantizable=False),
        )
    else:
        inputs = total(
            m.linear("in_proj_qkv", Role.MIXER_IN, 2 * key_size + value_size, hidden, agree="qkvz", reads="mixer_in"),
            m.linear("in_proj_z", Role.MIXER_IN, value_size, hidden, agree="qkvz", reads="mixer_in"),
            m.linear("in_proj_b", Role.MIXER_GATE, value_heads, hidden, reads="mixer_in", quantizable=False),
            m.linear("in_proj_a", Role.MIXER_GATE, value_heads, hidden, reads="mixer_in", quantizable=False),
        )
    return total(
        inputs,
        m.tensor("dt_bias", value_heads),
        m.tensor("A_log", value_heads),
        m.tensor("conv1d.weight", 2 * key_size + value_size, 1, config.integer("linear_conv_kernel_dim")),
        m.norms(value_dim, "norm"),
        m.linear("out_proj", Role.MIXER_OUT, hidden, value_size, reads="mixer_out"),
    ).at("linear_attn.")


def qwen_next(config: Config, m: Maker, names: Names, *, fused: bool, sparse: bool) -> Description:
    """Describe Qwen3-Next and Qwen3.5: three delta nets to one gated attention, with dense or sparse MLPs; MTP under `mtp.`."""
    hidden, layers = config.integer("hidden_size"), config.layer_numbers()
    heads, kv_heads, head_dim = head_sizes(config)
    interval = config.integer("full_attention_interval", default=4)
    by_number = ["linear_attention" if (i + 1) % interval else "full_attention" for i in layers]
    kinds = config.names("layer_types", len(layers), by_number)
    bias = config.flag("attention_bias")
    norms = m.norms(hidden, "input_layernorm", "post_attention_layernorm")
    attention = m.attention(hidden, Heads(heads, kv_heads, head_dim), gated=True, qkv_bias=bias, o_bias=bias).at(
        "self_attn."
    ) + m.norms(head_dim, "self_attn.q_norm", "self_attn.k_norm")
    mixer, mixer_state, kv = (
        delta_net(config, m, fused=fused),
        delta_net_state(config),
        FullKV(kv_heads, head_dim, head_dim),
    )
    moe = qwen_moe_mlp(config, m, stacked=not fused) if sparse else Part()
    dense = m.gated_mlp(hidden, config.integer("intermediate_size", default=0)).at("mlp.")

    def block(i: int) -> Block:
        mlp = moe if sparse and is_sparse(config, i) else dense
        if kinds[i] == "linear_attention":
            return (norms + mixer + mlp).block(mixer_state, config.integer("linear_num_value_heads"))
        if kinds[i] != "full_attention":
            raise not_understood(config.name, f"{config.path}: layer type {kinds[i]!r} is not known")
        return (norms + attention + mlp).block(kv, heads)

    mtp = []
    if count := config.integer("mtp_num_hidden_layers", default=1 if fused else 0):
        layer = norms + attention + (moe if sparse else dense)
        part = total(
            *(layer.at(f"layers.{k}.") for k in range(count)),
            m.norms(hidden, "norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden"),
            m.linear("fc", Role.PROJECTOR, hidden, 2 * hidden, quantizable=False),
        )
        mtp.append(make_stack("mtp", "mtp.", [part.block(kv, heads)]))
    return decoder(names, [block(i) for i in layers], ends(m, config, names, is_tied(config, False)), mtp)


def mamba2(config: Config, m: Maker) -> tuple[Part, Recurrent]:
    """Make a Mamba 2 mixer of Nemotron-H and what it keeps."""
    hidden, heads, dim = (
        config.integer("hidden_size"),
        config.integer("mamba_num_heads"),
        config.integer("mamba_head_dim"),
    )
    groups, size, kernel = config.integer("n_groups"), config.integer("ssm_state_size"), config.integer("conv_kernel")
    inner, channels = heads * dim, heads * dim + 2 * groups * size
    bias = config.flag("use_bias", "mamba_proj_bias")
    part = total(
        m.linear("in_proj", Role.MIXER_IN, inner + channels + heads, hidden, bias=bias, reads="mixer_in"),
        m.tensor("conv1d.weight", channels, 1, kernel),
        m.tensor("conv1d.bias", channels) if config.flag("use_conv_bias", default=True) else Part(),
        m.tensor("dt_bias", heads) + m.tensor("A_log", heads) + m.tensor("D", heads),
        m.norms(inner, "norm"),
        m.linear("out_proj", Role.MIXER_OUT, hidden, inner, bias=bias, reads="mixer_out"),
    )
    conv, ssm = StatePart("conv", (channels, kernel - 1)), _ssm_dtype(config, "mamba_ssm_cache_dtype", "float32")
    return part.at("mixer."), Recurrent("mamba2", (conv, StatePart("ssm", (heads, dim, size), ssm)))


def nemotron_mlp(config: Config, m: Maker) -> Part:
    """Make Nemotron-H's ungated MLP."""
    inner, bias = config.integer("intermediate_size"), config.flag("mlp_bias")
    return m.plain_mlp(config.integer("hidden_size"), inner, names=("up_proj", "down_proj"), bias=bias).at("mixer.")


def nemotron_moe(config: Config, m: Maker) -> Part:
    """Make Nemotron 3's experts, without gates; in a narrower latent space where `moe_latent_size` is set."""
    hidden, count, bias = config.integer("hidden_size"), config.integer("n_routed_experts"), config.flag("mlp_bias")
    inner, latent = config.integer("moe_intermediate_size"), config.integer("moe_latent_size", default=0)
    part = m.router("gate", count, hidden) + m.tensor("gate.e_score_correction_bias", count, dtype="F32")
    bank = Experts(latent or hidden, inner, count, config.integer("num_experts_per_tok"), bias=bias)
    part += m.experts(bank, prefix="experts.", names=("", "up_proj", "down_proj"))
    if latent:
        part += m.linear("fc1_latent_proj", Role.PROJECTOR, latent, hidden, bias=bias, quantizable=False)
        part += m.linear("fc2_latent_proj", Role.PROJECTOR, hidden, latent, bias=bias, quantizable=False)
    if config.integer("n_shared_experts", default=0):
        shared = config.integer("moe_shared_expert_intermediate_size")
        part += m.plain_mlp(
            hidden, shared, names=("up_proj", "down_proj"), bias=bias, shared=True, key="shared"
        ).at("shared_experts.")  # fmt: skip
    return part.at("mixer.")


_NEMOTRON_KINDS = {
    "mamba": "M",
    "linear_attention": "M",
    "moe": "E",
    "attention": "*",
    "full_attention": "*",
    "mlp": "-",
}


def nemotron_pattern(config: Config) -> str:
    """Read one letter a layer, from `hybrid_override_pattern` or, in newer files, `layers_block_type`."""
    if config.has("layers_block_type"):
        pattern = "".join(_NEMOTRON_KINDS.get(kind, kind) for kind in config.names("layers_block_type"))
    else:
        pattern = config.text("hybrid_override_pattern", "")
    if len(pattern) != config.integer("num_hidden_layers", default=len(pattern)) or not pattern:
        raise not_understood(config.name, f"{config.path}: {len(pattern)} layer kinds for num_hidden_layers layers")
    return pattern


def nemotron_h(config: Config, m: Maker, names: Names) -> Description:
    """Describe Nemotron-H and Nemotron 3 (arXiv 2504.03624): one mixer a layer, spelled out by the config."""
    hidden, pattern = config.integer("hidden_size"), nemotron_pattern(config)
    heads, kv_heads, head_dim = head_sizes(config)
    bias = config.flag("attention_bias")
    norm = m.norms(hidden, "norm")

    def block(letter: str) -> Block:
        if letter == "M":
            part, state = mamba2(config, m)
            return (norm + part).block(state, config.integer("mamba_num_heads"))
        if letter == "*":
            part = m.attention(hidden, Heads(heads, kv_heads, head_dim), qkv_bias=bias, o_bias=bias).at("mixer.")
            return (norm + part).block(FullKV(kv_heads, head_dim, head_dim), heads)
        if letter in "-E":
            return (norm + (nemotron_mlp(config, m) if letter == "-" else nemotron_moe(config, m))).block()
        raise not_understood(config.name, f"{config.path}: layer kind {letter!r} is not known")

    made = {letter: block(letter) for letter in dict.fromkeys(pattern)}
    base = Names("backbone.", "lm_head")
    outer = ends(m, config, replace(base, embedding="embeddings", norm="norm_f"), is_tied(config, False))
    return decoder(base, [made[letter] for letter in pattern], outer)


def kimi_linear(config: Config, m: Maker, names: Names) -> Description:
    """Describe Kimi Linear (arXiv 2510.26692): Kimi delta attention and MLA without rope, with experts.

    Kimi K3 adds output gates of full rank, experts in a narrower space, and attention over earlier residuals (names and shapes
    as vLLM 0.32 loads them, `models/kimi_k3`).
    """
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    linear = config.part("linear_attn_config")
    l_heads, dim, kernel = (
        linear.integer("num_heads"),
        linear.integer("head_dim"),
        linear.integer("short_conv_kernel_size"),
    )
    size = l_heads * dim
    mixer = total(
        m.attention(hidden, Heads(l_heads, l_heads, dim)),
        *(m.tensor(f"{x}_conv1d.weight", size, 1, kernel) for x in "qkv"),
        m.tensor("A_log", 1, 1, l_heads, 1, dtype="F32"),
        m.tensor("dt_bias", size, dtype="F32"),
        m.linear("b_proj", Role.MIXER_GATE, l_heads, hidden, reads="attn_in", quantizable=False),
        m.linear("f_a_proj", Role.MIXER_GATE, dim, hidden, reads="attn_in", quantizable=False),
        m.linear("f_b_proj", Role.MIXER_GATE, size, dim, quantizable=False),
        _kimi_gate(linear.flag("use_full_rank_gate"), m, size, dim, hidden),
        m.norms(dim, "o_norm"),
    ).at("self_attn.")
    conv = tuple(StatePart(f"conv_{x}", (size, kernel - 1)) for x in "qkv")
    state = Recurrent("kda", (*conv, StatePart("recurrent", (l_heads, dim, dim), "F32")))
    mla = latent_attention(config, m, gated=config.flag("mla_use_output_gate")).at("self_attn.")
    mla_state = latent_state(config, indexed=False)
    norms = m.norms(hidden, "input_layernorm", "post_attention_layernorm")
    residuals = config.has("attn_res_block_size")
    if residuals:
        norms += _kimi_residual(m, hidden, "self_attention_res") + _kimi_residual(m, hidden, "mlp_res")
    dense = m.gated_mlp(hidden, config.integer("intermediate_size")).at("mlp.")
    sparse, full = kimi_moe(config, m), set(linear.counts("full_attn_layers"))
    blocks = []
    for i in config.layer_numbers():
        mlp = sparse if is_sparse(config, i) else dense
        attention = i + 1 in full
        part = norms + (mla if attention else mixer) + mlp
        blocks.append(part.block(mla_state, heads) if attention else part.block(state, l_heads))
    outer = ends(m, config, names, is_tied(config, False))
    if residuals:
        outer += _kimi_residual(m, hidden, f"{names.base}output_attn_res")
    return decoder(names, blocks, outer)


def _kimi_gate(full_rank: bool, m: Maker, size: int, dim: int, hidden: int) -> Part:
    """The output gate of Kimi delta attention: one matrix, or two of rank `dim`."""
    if full_rank:
        return m.linear("g_proj", Role.MIXER_GATE, size, hidden, reads="attn_in", quantizable=False)
    return total(
        m.linear("g_a_proj", Role.MIXER_GATE, dim, hidden, reads="attn_in", quantizable=False),
        m.linear("g_b_proj", Role.MIXER_GATE, size, dim, quantizable=False),
    )


def _kimi_residual(m: Maker, hidden: int, name: str) -> Part:
    """What weighs the residuals of earlier blocks: a norm, and one score a residual."""
    score = m.linear(f"{name}_proj", Role.PROJECTOR, 1, hidden, quantizable=False)
    return m.norms(hidden, f"{name}_norm") + score


def kimi_moe(config: Config, m: Maker) -> Part:
    """Make Kimi Linear's experts, named as Mixtral's, with a correction bias and shared experts; Kimi K3's between two projections."""
    hidden, inner, count = (
        config.integer("hidden_size"),
        config.integer("moe_intermediate_size"),
        config.integer("num_experts"),
    )
    narrow = config.integer("routed_expert_hidden_size", default=hidden)
    between = Part()
    if narrow != hidden:
        between = total(
            m.linear("routed_expert_down_proj", Role.PROJECTOR, narrow, hidden),
            m.linear("routed_expert_up_proj", Role.PROJECTOR, hidden, narrow),
            m.norms(narrow, "routed_expert_norm") if config.flag("latent_moe_use_norm") else Part(),
        )
    return total(
        m.router("gate", count, hidden),
        m.tensor("gate.e_score_correction_bias", count, dtype="F32"),
        between,
        m.experts(Experts(narrow, inner, count, config.integer("num_experts_per_token")), prefix="experts.", names=("w1", "w3", "w2")),
        m.gated_mlp(
            hidden, inner * config.integer("num_shared_experts"), shared=True, key="shared"
        ).at("shared_experts."),
    ).at("block_sparse_moe.")  # fmt: skip


describe = by_architecture(
    {
        "Qwen3NextForCausalLM": lambda c, m, n: qwen_next(c, m, n, fused=True, sparse=True),
        "Qwen3_5ForCausalLM": lambda c, m, n: qwen_next(c, m, n, fused=False, sparse=False),
        "Qwen3_5MoeForCausalLM": lambda c, m, n: qwen_next(c, m, n, fused=False, sparse=True),
        "NemotronHForCausalLM": nemotron_h,
        "KimiLinearForCausalLM": kimi_linear,
    }
)
