"""Plain decoders: one attention and one dense MLP a layer. A family is one row of `STYLES`.

Facts are those of the model classes in transformers (5.x) and of the files on the Hub: parameter names, biases, which norms
there are, which fields turn a sliding window on.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from passes.ir.architectures.config import Config, not_understood
from passes.ir.architectures.draft import Description, Names, attention_state, decoder, ends, is_tied, make_stack
from passes.ir.architectures.parts import Heads, Maker, Part, total
from passes.ir.fields import is_whole
from passes.ir.model import Block, Role
from passes.ir.state import FullKV
from passes.record import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """How a family of plain decoders names and shapes its parts. A bias given as a field name is read from the config."""

    norms: tuple[str, ...] = ("input_layernorm", "post_attention_layernorm")
    norm_bias: bool = False
    qkv_bias: bool | str = "attention_bias"
    o_bias: bool | str = "attention_bias"
    mlp_bias: bool | str = "mlp_bias"
    qk_norm: str = ""
    """`head`: one weight a head dimension; `head?`: so where `use_qk_norm`; `full`: over the whole projection; `heads`: one row a head."""
    qk_norm_names: tuple[str, str] = ("self_attn.q_norm", "self_attn.k_norm")
    fused_qkv: bool = False
    o_name: str = "o_proj"
    mlp: str = "gated"
    """`gated`, `fused`, `plain` with `mlp_names`, or `xielu`: plain with the parameters of that activation."""
    mlp_names: tuple[str, str] = ("up_proj", "down_proj")
    tied: bool = False
    """Default of `tie_word_embeddings`."""
    window: str = "layer_types"
    """What decides a layer's window where there are no `layer_types`: see `layer_types`."""
    norm: str = "norm"
    sinks: bool = False
    """Whether the attention has a sink a head."""
    optional: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Norms that a field turns on: (field, names)."""
    parallel: str = ""
    """The field that runs attention and MLP side by side, behind the first norm alone."""
    head_bias: bool = False
    gate: str = ""
    """What gates the attention's output, of the queries' width."""
    mtp: bool = False


_GEMMA2_NORMS = (
    "input_layernorm",
    "post_attention_layernorm",
    "pre_feedforward_layernorm",
    "post_feedforward_layernorm",
)

STYLES: dict[str, Style] = {
    "LlamaForCausalLM": Style(),
    "MistralForCausalLM": Style(qkv_bias=False, o_bias=False, mlp_bias=False, window="all"),
    "Ministral3ForCausalLM": Style(qkv_bias=False, o_bias=False, mlp_bias=False, window="all"),
    "Qwen2ForCausalLM": Style(qkv_bias=True, o_bias=False, mlp_bias=False, window="qwen"),
    "Qwen3ForCausalLM": Style(mlp_bias=False, qk_norm="head", window="qwen"),
    "MiMoForCausalLM": Style(qkv_bias=True, o_bias=False, mlp_bias=False, window="qwen", mtp=True),
    "GemmaForCausalLM": Style(mlp_bias=False, tied=True),
    "Gemma2ForCausalLM": Style(norms=_GEMMA2_NORMS, mlp_bias=False, tied=True, window="every 2"),
    "Gemma3ForCausalLM": Style(norms=_GEMMA2_NORMS, mlp_bias=False, tied=True, qk_norm="head", window="every 6"),
    "CohereForCausalLM": Style(norms=("input_layernorm",), mlp_bias=False, tied=True, qk_norm="heads"),
    "Cohere2ForCausalLM": Style(norms=("input_layernorm",), mlp_bias=False, tied=True, window="every 4"),
    "GraniteForCausalLM": Style(),
    "Olmo2ForCausalLM": Style(norms=("post_attention_layernorm", "post_feedforward_layernorm"), mlp_bias=False, qk_norm="full"),
    "Olmo3ForCausalLM": Style(
        norms=("post_attention_layernorm", "post_feedforward_layernorm"), mlp_bias=False, qk_norm="full", window="every 4"
    ),
    "Phi3ForCausalLM": Style(qkv_bias=False, o_bias=False, fused_qkv=True, mlp="fused", window="all"),
    "Glm4ForCausalLM": Style(
        norms=("input_layernorm", "post_attention_layernorm", "post_self_attn_layernorm", "post_mlp_layernorm"),
        o_bias=False, mlp="fused",
    ),
    "Glm4vTextModel": Style(
        norms=("input_layernorm", "post_attention_layernorm", "post_self_attn_layernorm", "post_mlp_layernorm"), qkv_bias=True,
        o_bias=False, mlp="fused",
    ),
    "GlmOcrTextModel": Style(
        norms=("input_layernorm", "post_attention_layernorm", "post_self_attn_layernorm", "post_mlp_layernorm"), qkv_bias=False,
        o_bias=False, mlp="fused",
    ),
    "GlmForCausalLM": Style(o_bias=False, mlp="fused"),
    "SmolLM3ForCausalLM": Style(tied=True, window="qwen"),
    "Exaone4ForCausalLM": Style(
        norms=("post_attention_layernorm", "post_feedforward_layernorm"), qkv_bias=False, o_bias=False, mlp_bias=False,
        qk_norm="head", window="letters",
    ),
    "Starcoder2ForCausalLM": Style(
        norm_bias=True, qkv_bias="use_bias", o_bias="use_bias", mlp="plain", mlp_names=("c_fc", "c_proj"), mlp_bias="use_bias",
        tied=True, window="all",
    ),
    "NemotronForCausalLM": Style(norm_bias=True, mlp="plain"),
    "PhiForCausalLM": Style(
        norms=("input_layernorm",), norm_bias=True, qkv_bias=True, o_bias=True, o_name="dense", mlp="plain", mlp_names=("fc1", "fc2"),
        mlp_bias=True, norm="final_layernorm", head_bias=True,
    ),
    "ApertusForCausalLM": Style(norms=("attention_layernorm", "feedforward_layernorm"), mlp_bias=False, qk_norm="head", mlp="xielu"),
    "ArceeForCausalLM": Style(mlp="plain"),
    "CwmForCausalLM": Style(qkv_bias=False, o_bias=False),
    "Ernie4_5ForCausalLM": Style(qkv_bias="use_bias", o_bias="use_bias", mlp_bias="use_bias", tied=True),
    "GraniteSWAForCausalLM": Style(tied=True, sinks=True),
    "HeliumForCausalLM": Style(o_bias=False),
    "HunYuanDenseV1ForCausalLM": Style(
        mlp_bias=False, qk_norm="head", qk_norm_names=("self_attn.query_layernorm", "self_attn.key_layernorm")
    ),
    "HyperCLOVAXForCausalLM": Style(optional=(("use_post_norm", ("post_norm1", "post_norm2")),)),
    "InternLM3ForCausalLM": Style(qkv_bias="qkv_bias|attention_bias|bias", o_bias="bias", mlp_bias="bias"),
    "IQuestCoderForCausalLM": Style(),
    "Jais2ForCausalLM": Style(norm_bias=True, mlp="plain"),
    "LLaMAForCausalLM": Style(),
    "MiniCPMForCausalLM": Style(mlp_bias=False),
    "MuseGlimmerForCausalLM": Style(norms=_GEMMA2_NORMS, qkv_bias=False, o_bias=False, mlp_bias=False, gate="gate_proj"),
    "OrionForCausalLM": Style(norm_bias=True, qkv_bias=False, o_bias=False, mlp_bias=False),
    "PanguEmbeddedForCausalLM": Style(qkv_bias="attention_bias|bias", o_bias="attention_bias|bias"),
    "Rnj1ForCausalLM": Style(norms=_GEMMA2_NORMS, mlp_bias=False, tied=True, qk_norm="head"),
    "SeedOssForCausalLM": Style(o_bias="attention_out_bias"),
    "SolarForCausalLM": Style(qkv_bias="attention_bias|bias", o_bias="attention_bias|bias"),
    "StableLmForCausalLM": Style(norm_bias=True, qkv_bias="use_qkv_bias", o_bias=False, mlp_bias=False, parallel="use_parallel_residual"),
    "Step1ForCausalLM": Style(),
    "TeleChat3ForCausalLM": Style(),
    "TeleFLMForCausalLM": Style(),
}  # fmt: skip

#: Variants of families that nobody describes here: a field, and the values of it that are.
_ONLY: dict[str, tuple[str, Any]] = {
    "StableLmForCausalLM": ("qk_layernorm", False),
    "MiniCPMForCausalLM": ("num_experts", 0),
}


def _bias(config: Config, setting: bool | str, default: bool = False) -> bool:
    return setting if isinstance(setting, bool) else config.flag(*setting.split("|"), default=default)


def layer_types(config: Config, rule: str) -> list[str]:
    """Say what each layer attends to: `layer_types` where the config has them, else the family's rule.

    Rules: `layer_types` full everywhere; `all` the window everywhere; `qwen` layers from `max_window_layers` on, if
    `use_sliding_window`; `every N` full at every N-th layer (`sliding_window_pattern` overrides N); `letters` a pattern `LLLG`;
    else the field that says how many layers have one full one.
    """
    layers = config.layer_numbers()
    if config.has("layer_types"):
        return config.names("layer_types", len(layers))
    if rule == "layer_types" or not config.has("sliding_window"):
        return ["full_attention"] * len(layers)
    if rule == "all":
        return ["sliding_attention"] * len(layers)
    if rule == "qwen":
        first = (
            config.integer("max_window_layers", default=len(layers))
            if config.flag("use_sliding_window")
            else len(layers)
        )
        return ["full_attention" if i < first else "sliding_attention" for i in layers]
    default = int(rule.split()[1]) if " " in rule else config.get(rule)
    pattern = config.get("sliding_window_pattern", default=default)
    if isinstance(pattern, str) and pattern:
        full = [pattern[i % len(pattern)] == "G" or i == len(layers) - 1 for i in layers]
    elif is_whole(pattern) and pattern > 0:
        full = [(i + 1) % pattern == 0 for i in layers]
    else:
        raise config.wrong("sliding_window_pattern", "a number of layers, or letters such as LLLG", pattern)
    return ["full_attention" if whole else "sliding_attention" for whole in full]


def head_sizes(config: Config) -> tuple[int, int, int]:
    """Return query heads, KV heads and head dimension."""
    if config.has("per_layer_config"):
        raise not_understood(config.name, f"{config.path}: per_layer_config is not known for this architecture")
    heads = config.integer("num_attention_heads")
    kv_heads = config.integer("num_key_value_heads", "num_attention_groups", default=heads)
    head_dim = config.integer("head_dim", default=config.integer("hidden_size") // max(heads, 1))
    if not heads or not kv_heads or heads % kv_heads:
        raise not_understood(config.name, f"{config.path}: {heads} query heads over {kv_heads} key/value heads")
    return heads, kv_heads, head_dim


def attention(config: Config, m: Maker, style: Style) -> Part:
    """Make the attention of a plain decoder layer."""
    hidden = config.integer("hidden_size")
    heads, kv_heads, head_dim = head_sizes(config)
    qkv_bias, o_bias = _bias(config, style.qkv_bias), _bias(config, style.o_bias)
    if style.fused_qkv:
        part = m.fused_attention(hidden, Heads(heads, kv_heads, head_dim), qkv_bias=qkv_bias, o_bias=o_bias)
    else:
        names = ("q_proj", "k_proj", "v_proj", style.o_name)
        part = m.attention(hidden, Heads(heads, kv_heads, head_dim), qkv_bias=qkv_bias, o_bias=o_bias, names=names)
    if style.gate:
        part += m.linear(style.gate, Role.MIXER_GATE, heads * head_dim, hidden, reads="attn_in")
    sinks = m.tensor("self_attn.sinks", heads) if style.sinks else Part()
    return part.at("self_attn.") + qk_norms(config, m, style, heads, kv_heads, head_dim) + sinks


def qk_norms(config: Config, m: Maker, style: Style, heads: int, kv_heads: int, head_dim: int) -> Part:
    """Make the norms on queries and keys, where the family (or its config) has them."""
    q, k = style.qk_norm_names
    if style.qk_norm == "head" or (style.qk_norm == "head?" and config.flag("use_qk_norm")):
        return m.norms(head_dim, q, k)
    if style.qk_norm == "full":
        return m.norms(heads * head_dim, q) + m.norms(kv_heads * head_dim, k)
    if style.qk_norm == "heads" and config.flag("use_qk_norm"):
        return m.tensor(f"{q}.weight", heads, head_dim) + m.tensor(f"{k}.weight", kv_heads, head_dim)
    return Part()


def mlp(config: Config, m: Maker, style: Style, inner: int | None = None) -> Part:
    """Make the dense MLP of a plain decoder layer."""
    hidden, inner = config.integer("hidden_size"), inner or config.integer("intermediate_size")
    if style.mlp == "fused":
        return m.fused_mlp(hidden, inner).at("mlp.")
    if style.mlp in ("plain", "xielu"):
        part = m.plain_mlp(hidden, inner, names=style.mlp_names, bias=_bias(config, style.mlp_bias))
        if style.mlp == "xielu":
            part += (
                m.tensor("act_fn.alpha_p", 1)
                + m.tensor("act_fn.alpha_n", 1)
                + m.tensor("act_fn.beta")
                + m.tensor("act_fn.eps")
            )
        return part.at("mlp.")
    return m.gated_mlp(hidden, inner, bias=_bias(config, style.mlp_bias)).at("mlp.")


def decoder_blocks(config: Config, m: Maker, style: Style) -> list[Block]:
    """Make the decoder's blocks, one a layer."""
    heads, kv_heads, head_dim = head_sizes(config)
    kv = FullKV(kv_heads, head_dim, head_dim)
    norms = style.norms[:1] if style.parallel and config.flag(style.parallel) else style.norms
    turned_on = [name for field, names in style.optional if config.flag(field) for name in names]
    part = total(
        m.norms(config.integer("hidden_size"), *norms, *turned_on, bias=style.norm_bias),
        attention(config, m, style),
        mlp(config, m, style),
    )
    return [part.block(attention_state(config, kind, kv), heads) for kind in layer_types(config, style.window)]


def mimo_mtp(config: Config, m: Maker) -> Part:
    """Make what a MiMo MTP layer has besides a decoder layer."""
    hidden = config.integer("hidden_size")
    return m.norms(hidden, "token_layernorm", "hidden_layernorm", "final_layernorm") + m.linear(
        "input_proj", Role.PROJECTOR, hidden, 2 * hidden, quantizable=False
    )


def describe(config: Config, architecture: str, m: Maker, names: Names) -> Description:
    """Describe a plain decoder."""
    style = STYLES[architecture]
    if architecture in _ONLY:
        field, value = _ONLY[architecture]
        if (found := config.get(field, default=value)) != value:
            raise not_understood(config.name, f"{config.path}: {field} {found!r} is not known for {architecture}")
    outer = ends(
        m,
        config,
        replace(names, norm=style.norm),
        is_tied(config, style.tied),
        norm_bias=style.norm_bias,
        head_bias=style.head_bias,
    )
    mtp = []
    if style.mtp and (count := config.integer("num_nextn_predict_layers", default=0)):
        heads, kv_heads, head_dim = head_sizes(config)
        norms = m.norms(config.integer("hidden_size"), *style.norms)
        layer = total(mimo_mtp(config, m), norms, attention(config, m, style), mlp(config, m, style))
        block = layer.block(FullKV(kv_heads, head_dim, head_dim), heads)
        mtp.append(make_stack("mtp", names.base + "mtp_layers.{i}.", [block] * count))
    return decoder(names, decoder_blocks(config, m, style), outer, mtp)
