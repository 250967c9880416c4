"""Decoders with multi-head latent attention: DeepSeek V2, V3, R1, V3.2, Kimi K2, GLM 5, Mistral Small 4.

MLA: DeepSeek-V2 (arXiv 2405.04434), section 2.1. The cache keeps one latent and one rope key a token, whatever the heads.
V3.2 and GLM 5 add a lightning indexer with a key cache of its own.
"""

from __future__ import annotations

from passes.ir.architectures.config import Config
from passes.ir.architectures.draft import Description, Names, by_architecture, decoder, ends, is_tied, make_stack
from passes.ir.architectures.moe import is_sparse, mtp_extras, routed_with_bias
from passes.ir.architectures.parts import Experts, Maker, Part, total
from passes.ir.model import Role, Stack
from passes.ir.state import LatentKV


def latent_attention(config: Config, m: Maker, *, gated: bool = False) -> Part:
    """Make the projections of MLA, without a prefix; `gated`: an output gate of full rank (Kimi K3)."""
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    nope, rope, v_dim = (
        config.integer("qk_nope_head_dim"),
        config.integer("qk_rope_head_dim"),
        config.integer("v_head_dim"),
    )
    rank, bias = config.integer("kv_lora_rank"), config.flag("attention_bias")
    q_out = heads * (nope + rope)
    agree, reads = "qkv_down", "attn_in"
    if config.has("q_lora_rank"):
        q_rank = config.integer("q_lora_rank")
        query = total(
            m.linear("q_a_proj", Role.Q_DOWN, q_rank, hidden, bias=bias, agree=agree, reads=reads),
            m.norms(q_rank, "q_a_layernorm"),
            m.linear("q_b_proj", Role.Q_UP, q_out, q_rank, reads="q_latent"),
        )
    else:
        query = m.linear("q_proj", Role.Q, q_out, hidden, reads="attn_in")
    part = total(
        query,
        m.linear("kv_a_proj_with_mqa", Role.KV_DOWN, rank + rope, hidden, bias=bias, agree=agree, reads=reads),
        m.norms(rank, "kv_a_layernorm"),
        m.linear("kv_b_proj", Role.KV_UP, heads * (nope + v_dim), rank, reads="kv_latent"),
        m.linear("o_proj", Role.O, hidden, heads * v_dim, bias=bias, reads="attn_out"),
    )
    return part + m.linear("g_proj", Role.MIXER_GATE, heads * v_dim, hidden, reads="attn_in") if gated else part


def indexer(config: Config, m: Maker) -> Part:
    """Make the lightning indexer of DeepSeek-V3.2 (its technical report, section 2)."""
    hidden, heads, dim = (
        config.integer("hidden_size"),
        config.integer("index_n_heads"),
        config.integer("index_head_dim"),
    )
    return total(
        m.linear("wq_b", Role.INDEXER, heads * dim, config.integer("q_lora_rank"), quantizable=False),
        m.linear("wk", Role.INDEXER, dim, hidden, quantizable=False),
        m.norms(dim, "k_norm", bias=True),
        m.linear("weights_proj", Role.INDEXER, heads, hidden, quantizable=False),
    ).at("indexer.")


def latent_state(config: Config, *, indexed: bool) -> LatentKV:
    """Say what an MLA layer keeps."""
    index_dim = config.integer("index_head_dim") if indexed else 0
    return LatentKV(config.integer("kv_lora_rank"), config.integer("qk_rope_head_dim"), index_dim)


def _deepseek(
    config: Config,
    m: Maker,
    names: Names,
    *,
    route_bias: bool,
    indexed: bool,
    own_norms: tuple[tuple[str, ...], tuple[str, ...]] = ((), ()),
) -> Description:
    """`own_norms`: a family's norms beside the usual two, in every layer and in those with experts."""
    every, where_sparse = own_norms
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    common = m.norms(hidden, "input_layernorm", "post_attention_layernorm", *every)
    plain = latent_attention(config, m)
    with_index = plain + indexer(config, m) if indexed else plain
    layers = config.layer_numbers()
    kinds = config.names("indexer_types", len(layers), ["full"] * len(layers))
    has_index = [indexed and kind == "full" for kind in kinds]
    sparse = routed_with_bias(config, m, bias=route_bias) + m.norms(hidden, *where_sparse)
    dense = m.gated_mlp(hidden, config.integer("intermediate_size")).at("mlp.")
    blocks = []
    for i in config.layer_numbers():
        part = (
            common
            + (with_index if has_index[i] else plain).at("self_attn.")
            + (sparse if is_sparse(config, i) else dense)
        )
        blocks.append(part.block(latent_state(config, indexed=has_index[i]), heads))
    mtp: tuple[Stack, ...] = ()
    if count := config.integer("num_nextn_predict_layers", default=0):
        layer = common + with_index.at("self_attn.") + sparse + mtp_extras(m, config)
        block = layer.block(latent_state(config, indexed=indexed), heads)
        mtp = (
            make_stack(
                "mtp", names.base + "layers.{i}.", [block] * count, first_index=config.integer("num_hidden_layers")
            ),
        )
    return decoder(names, blocks, ends(m, config, names, is_tied(config, False)), mtp)


def deepseek_v2(config: Config, m: Maker, names: Names) -> Description:
    """Describe DeepSeek V2 and its Lite and Coder siblings: no correction bias in the router unless `topk_method` is noaux_tc."""
    return _deepseek(config, m, names, route_bias=config.get("topk_method") == "noaux_tc", indexed=False)


def deepseek_v3(config: Config, m: Maker, names: Names) -> Description:
    """Describe DeepSeek V3 and R1 (arXiv 2412.19437), Kimi K2."""
    return _deepseek(config, m, names, route_bias=True, indexed=False)


def deepseek_v32(config: Config, m: Maker, names: Names) -> Description:
    """Describe DeepSeek V3.2 and GLM 5: with indexers; layers of type `shared` use the indexer of an earlier layer."""
    return _deepseek(config, m, names, route_bias=True, indexed=True)


def mistral4(config: Config, m: Maker, names: Names) -> Description:
    """Describe Mistral Small 4: MLA with stacked experts and shared experts in every layer."""
    hidden, heads, inner = (
        config.integer("hidden_size"),
        config.integer("num_attention_heads"),
        config.integer("moe_intermediate_size"),
    )
    count = config.integer("n_routed_experts")
    sparse = total(
        m.router("gate", count, hidden),
        m.experts(
            Experts(hidden, inner, count, config.integer("num_experts_per_tok")), prefix="experts.", stacked=True
        ),
        m.gated_mlp(hidden, inner * config.integer("n_shared_experts"), shared=True, key="shared").at(
            "shared_experts."
        ),
    ).at("mlp.")
    dense = m.gated_mlp(hidden, config.integer("intermediate_size")).at("mlp.")
    common = m.norms(hidden, "input_layernorm", "post_attention_layernorm") + latent_attention(config, m).at(
        "self_attn."
    )
    state = latent_state(config, indexed=False)
    blocks = [
        (common + (sparse if is_sparse(config, i) else dense)).block(state, heads) for i in config.layer_numbers()
    ]
    return decoder(names, blocks, ends(m, config, names, is_tied(config, False)))


def dense_latent(config: Config, m: Maker, names: Names, *, tied: bool) -> Description:
    """Describe MiniCPM 3 and Youtu: MLA with a dense MLP in every layer."""
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    layer = total(
        m.norms(hidden, "input_layernorm", "post_attention_layernorm"),
        latent_attention(config, m).at("self_attn."),
        m.gated_mlp(hidden, config.integer("intermediate_size")).at("mlp."),
    )
    block = layer.block(latent_state(config, indexed=False), heads)
    return decoder(names, [block] * len(config.layer_numbers()), ends(m, config, names, is_tied(config, tied)))


def axk1(config: Config, m: Maker, names: Names) -> Description:
    """Describe A.X K1: DeepSeek V3 with a norm behind the experts."""
    return _deepseek(config, m, names, route_bias=True, indexed=False, own_norms=((), ("post_mlp_layernorm",)))


def pangu_ultra(config: Config, m: Maker, names: Names) -> Description:
    """Describe openPangu Ultra MoE: DeepSeek V3 with two more norms where `sandwich_norm` (vLLM 0.32, models/openpangu.py)."""
    more = ("pre_mlp_layernorm", "post_mlp_layernorm") if config.flag("sandwich_norm") else ()
    bias = config.flag("router_enable_expert_bias")
    return _deepseek(config, m, names, route_bias=bias, indexed=False, own_norms=(more, ()))


describe = by_architecture(
    {
        "DeepseekV2ForCausalLM": deepseek_v2,
        "DeepseekV3ForCausalLM": deepseek_v3,
        "DeepseekV32ForCausalLM": deepseek_v32,
        "GlmMoeDsaForCausalLM": deepseek_v32,
        "Mistral4ForCausalLM": mistral4,
        "Glm4MoeLiteForCausalLM": deepseek_v3,
        "MistralLarge3ForCausalLM": deepseek_v3,
        "SarvamMLAForCausalLM": deepseek_v3,
        "AXK1ForCausalLM": axk1,
        "PanguUltraMoEForCausalLM": pangu_ultra,
        "MiniCPM3ForCausalLM": lambda c, m, n: dense_latent(c, m, n, tied=False),
        "YoutuForCausalLM": lambda c, m, n: dense_latent(c, m, n, tied=True),
    }
)
