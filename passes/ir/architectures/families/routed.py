"""Decoders with grouped-query attention and routed experts whose families differ in names only: a family is one row of `ROUTED`.

Facts are those of the model classes in transformers 5.23 and, where it has none, of vLLM 0.32 (`models/<family>.py`).
"""

from __future__ import annotations

from passes.ir.architectures.config import Config, not_understood
from passes.ir.architectures.decoder import Style, attention, head_sizes, layer_types
from passes.ir.architectures.decoder import mlp as dense_mlp
from passes.ir.architectures.draft import Description, Names, attention_state, decoder, ends, is_tied
from passes.ir.architectures.moe import is_sparse
from passes.ir.architectures.parts import Experts, Maker, Part, total
from passes.ir.model import Role
from passes.ir.state import FullKV
from passes.record import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Routed:
    """How a family names and counts its experts; names of fields of the config where it says `fields`."""

    style: Style
    count: str = "num_experts"
    active: str = "num_experts_per_tok"
    inner: str = "moe_intermediate_size"
    dense_inner: str = "intermediate_size"
    sparse: str = "fields"
    """Which layers have experts: by `fields` (`is_sparse`), or the field that counts the dense layers in front, or `range` (ERNIE)."""
    router: str = "gate"
    correction: str = ""
    """Where the router's correction bias stands; empty where there is none."""
    correction_shape: tuple[int, ...] = ()
    """Dimensions before the experts'."""
    shared: str = ""
    shared_count: str = "num_shared_experts"
    shared_inner: str = ""
    """Field of the shared experts' width; empty where it is the experts', times their count."""
    gate: str = ""
    """The attention's output gate: its name, of the queries' width or (see `gated_heads`) a row a head."""
    gate_kind: str = "heads"
    """`heads`, `full`, or the field that says which."""


_QK = Style(mlp_bias=False, qk_norm="head", window="layer_types")
_EXAONE = Routed(
    style=Style(qkv_bias=False, o_bias=False, mlp_bias=False, qk_norm="head", window="letters"),
    correction="e_score_correction_bias", shared="shared_experts",
)  # fmt: skip

ROUTED: dict[str, Routed] = {
    "AfmoeForCausalLM": Routed(
        style=Style(
            norms=("input_layernorm", "post_attention_layernorm", "pre_mlp_layernorm", "post_mlp_layernorm"), mlp_bias=False,
            qk_norm="head", window="global_attn_every_n_layers",
        ),
        sparse="num_dense_layers", router="router.gate", correction="expert_bias", shared="shared_experts", gate="gate_proj",
        gate_kind="full",
    ),
    "Cohere2MoeForCausalLM": Routed(
        style=Style(norms=("input_layernorm",), mlp_bias=False, tied=True, window="every 4"), inner="intermediate_size",
        dense_inner="prefix_dense_intermediate_size", shared="shared_experts",
    ),
    "DeepseekForCausalLM": Routed(
        style=Style(mlp_bias=False), count="n_routed_experts", shared="shared_experts", shared_count="n_shared_experts"
    ),
    "Ernie4_5_MoeForCausalLM": Routed(
        style=Style(qkv_bias="use_bias", o_bias="use_bias", mlp_bias="use_bias", tied=True), count="moe_num_experts", active="moe_k",
        sparse="range", correction="moe_statics.e_score_correction_bias", correction_shape=(1,), shared="shared_experts",
        shared_count="moe_num_shared_experts",
    ),
    "ExaoneMoeForCausalLM": _EXAONE,
    "ExaoneMoEForCausalLM": _EXAONE,
    "FlexOlmoForCausalLM": Routed(
        style=Style(norms=("post_attention_layernorm", "post_feedforward_layernorm"), qk_norm="full"), inner="intermediate_size",
    ),
    "HYV3ForCausalLM": Routed(style=_QK, router="router.gate", correction="expert_bias", shared="shared_mlp"),
    "HunYuanMoEV1ForCausalLM": Routed(
        style=Style(
            mlp_bias=False, qk_norm="head", qk_norm_names=("self_attn.query_layernorm", "self_attn.key_layernorm")
        ),
        inner="intermediate_size", active="moe_topk", router="gate.wg", shared="shared_mlp", shared_count="",
    ),
    "LagunaForCausalLM": Routed(
        style=_QK, correction="experts.e_score_correction_bias", shared="shared_expert", shared_count="",
        shared_inner="shared_expert_intermediate_size", gate="g_proj", gate_kind="gating",
    ),
    "MellumForCausalLM": Routed(style=_QK, count="num_local_experts"),
    "Param2MoEForCausalLM": Routed(
        style=Style(
            qkv_bias="use_qkv_bias", o_bias="use_bias", mlp_bias=False, qk_norm="head?",
            qk_norm_names=("self_attn.q_layernorm", "self_attn.k_layernorm"),
        ),
        correction="gate.e_score_correction_bias", shared="shared_experts",
    ),
    "SolarOpenForCausalLM": Routed(
        style=Style(mlp_bias=False), count="n_routed_experts", correction="gate.e_score_correction_bias", shared="shared_experts",
        shared_count="n_shared_experts", dense_inner="moe_intermediate_size",
    ),
}  # fmt: skip


def sparse_layers(config: Config, rule: str) -> list[bool]:
    """Tell of each layer whether it has experts, by the family's rule (see `Routed.sparse`)."""
    layers = config.layer_numbers()
    if rule == "fields":
        return [is_sparse(config, i) for i in layers]
    if rule == "range":
        first = config.integer("moe_layer_start_index", default=0)
        last = config.integer("moe_layer_end_index", default=-1, at_least=-1)
        every, stop = config.integer("moe_layer_interval", default=1), last if last >= 0 else len(layers) - 1
        return [first <= i <= stop and (i + 1) % every == 0 for i in layers]
    return [i >= config.integer(rule, default=0) for i in layers]


def experts(config: Config, m: Maker, family: Routed) -> Part:
    """Make router, experts and shared experts of one layer."""
    hidden, count, inner = config.integer("hidden_size"), config.integer(family.count), config.integer(family.inner)
    bias = family.style.mlp_bias
    part = m.router(family.router, count, hidden)
    if family.correction:
        part += m.tensor(family.correction, *family.correction_shape, count, dtype="F32")
    part += m.experts(Experts(hidden, inner, count, config.integer(family.active)), prefix="experts.")
    times = config.integer(family.shared_count, default=0) if family.shared_count else 1
    width = config.integer(family.shared_inner or family.inner, default=0) * times
    if family.shared and width:
        with_bias = config.flag(bias) if isinstance(bias, str) else bias
        part += m.gated_mlp(hidden, width, bias=with_bias, shared=True, key="shared").at(family.shared + ".")
    return part.at("mlp.")


def output_gate(config: Config, m: Maker, family: Routed, heads: int, head_dim: int) -> Part:
    """Make what scales the attention's output, a value a head or an element."""
    kind = family.gate_kind
    if kind not in ("heads", "full"):
        said = config.get(kind, default=True)
        kinds = {True: "heads", "per-head": "heads", "per-element": "full", False: ""}
        if not isinstance(said, (bool, str)) or said not in kinds:
            raise not_understood(config.name, f"{config.path}: {kind} {said!r} is not known")
        kind = kinds[said]
    if not family.gate or not kind:
        return Part()
    rows = heads if kind == "heads" else heads * head_dim
    return m.linear(
        f"self_attn.{family.gate}", Role.MIXER_GATE, rows, config.integer("hidden_size"), reads="attn_in", quantizable=kind == "full"
    )  # fmt: skip


def describe(config: Config, architecture: str, m: Maker, names: Names) -> Description:
    """Describe a decoder of the table; layers may have heads of their own (`num_attention_heads_per_layer`)."""
    family, hidden = ROUTED[architecture], config.integer("hidden_size")
    style, layers = family.style, config.layer_numbers()
    every = [config.integer("num_attention_heads", default=0)] * len(layers)
    heads_of = config.counts("num_attention_heads_per_layer", len(layers), every)
    kinds, sparse = layer_types(config, style.window), sparse_layers(config, family.sparse)
    norms, routed = m.norms(hidden, *style.norms, bias=style.norm_bias), experts(config, m, family)
    dense = Part() if all(sparse) else dense_mlp(config, m, style, config.integer(family.dense_inner))
    blocks = []
    for i, kind in enumerate(kinds):
        own = Config({**config.values, "num_attention_heads": heads_of[i]}, config.name, config.path, config.kind)
        heads, kv_heads, head_dim = head_sizes(own)
        part = total(
            norms,
            attention(own, m, style),
            output_gate(own, m, family, heads, head_dim),
            routed if sparse[i] else dense,
        )
        blocks.append(part.block(attention_state(config, kind, FullKV(kv_heads, head_dim, head_dim)), heads))
    return decoder(names, blocks, ends(m, config, names, is_tied(config, style.tied), norm_bias=style.norm_bias))
