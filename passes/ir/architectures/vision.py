"""Vision (and audio) towers: what a multimodal checkpoint holds besides its text decoder. Recipes keep all of it dense."""

from __future__ import annotations

from passes.ir.architectures.config import Config
from passes.ir.architectures.draft import Description, make_stack
from passes.ir.architectures.parts import Heads, Maker, Part, total
from passes.ir.model import Role

#: CLIP ViT-L/14 at 336 pixels, the tower that Phi-3 Vision names but does not spell out (arXiv 2103.00020, table 20).
_CLIP_L = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16, "image_size": 336,
    "patch_size": 14,
}  # fmt: skip


def tower(name: str, prefix: str, layers: int, layer: Part, outer: Part) -> Description:
    """Describe a tower of `layers` equal layers, none of it quantizable."""
    dense = outer.dense()
    return Description((make_stack(name, prefix, [layer.dense().block()] * layers),), dense)


def projector(m: Maker, name: str, out: int, into: int, *, bias: bool = True) -> Part:
    """Make one matrix between a tower and the decoder."""
    return m.linear(name, Role.PROJECTOR, out, into, bias=bias, quantizable=False)


def patches(m: Maker, name: str, hidden: int, config: Config, *times: int, bias: bool = False) -> Part:
    """Make a patch embedding: a convolution over `times` frames of squares."""
    size = _side(config, "patch_size")
    channels = config.integer("num_channels", "in_channels", "in_chans", default=3)
    part = m.tensor(f"{name}.weight", hidden, channels, *times, size, size)
    return part + m.tensor(f"{name}.bias", hidden) if bias else part


def _side(config: Config, field: str) -> int:
    """The side of a square: a number, or one for each direction."""
    return config.counts(field, 2, at_least=1)[0] if isinstance(config.get(field), list) else config.integer(field)


def clip(
    config: Config, m: Maker, prefix: str, *, siglip: bool = False, positions: bool = True, frames: tuple[int, ...] = ()
) -> Description:
    """Describe CLIP (arXiv 2103.00020) or SigLIP (arXiv 2303.15343, without class token and pre-norm) as `vision_model`."""
    hidden, inner = config.integer("hidden_size"), config.integer("intermediate_size")
    heads, layers = config.integer("num_attention_heads"), config.integer("num_hidden_layers")
    layer = total(
        m.norms(hidden, "layer_norm1", "layer_norm2", bias=True),
        m.attention(
            hidden, Heads(heads, heads, hidden // heads), qkv_bias=True, o_bias=True,
            names=("q_proj", "k_proj", "v_proj", "out_proj"),
        ).at("self_attn."),
        m.plain_mlp(hidden, inner, names=("fc1", "fc2"), bias=True).at("mlp."),
    )  # fmt: skip
    outer = patches(m, "embeddings.patch_embedding", hidden, config, *frames, bias=siglip)
    if positions:
        count = (_side(config, "image_size") // _side(config, "patch_size")) ** 2 + (0 if siglip else 1)
        outer += m.linear("embeddings.position_embedding", Role.POSITION, count, hidden)
        outer += m.norms(hidden, "post_layernorm", bias=True)
        outer += Part() if siglip else m.tensor("embeddings.class_embedding", hidden)
    outer += Part() if siglip else m.norms(hidden, "pre_layrnorm", bias=True)
    if siglip and config.flag("vision_use_head"):
        outer += _pooling_head(m, hidden, inner).at("head.")
    return tower("vision", prefix + "encoder.layers.{i}.", layers, layer, outer.at(prefix))


def _pooling_head(m: Maker, hidden: int, inner: int) -> Part:
    return total(
        m.tensor("probe", 1, 1, hidden),
        m.tensor("attention.in_proj_weight", 3 * hidden, hidden) + m.tensor("attention.in_proj_bias", 3 * hidden),
        m.linear("attention.out_proj", Role.O, hidden, hidden, bias=True),
        m.norms(hidden, "layernorm", bias=True),
        m.plain_mlp(hidden, inner, names=("fc1", "fc2"), bias=True).at("mlp."),
    )


def pixtral(config: Config, m: Maker, prefix: str) -> Description:
    """Describe Pixtral (arXiv 2410.07073): rope in two dimensions, no biases."""
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    layer = total(
        m.norms(hidden, "attention_norm", "ffn_norm"),
        m.attention(hidden, Heads(heads, heads, config.integer("head_dim", default=hidden // heads))).at("attention."),
        m.gated_mlp(hidden, config.integer("intermediate_size")).at("feed_forward."),
    )
    outer = patches(m, "patch_conv", hidden, config) + m.norms(hidden, "ln_pre")
    return tower(
        "vision", prefix + "transformer.layers.{i}.", config.integer("num_hidden_layers"), layer, outer.at(prefix)
    )


def qwen_vision(config: Config, m: Maker, prefix: str, generation: str) -> Description:
    """Describe the towers of Qwen2-VL (arXiv 2409.12191), Qwen2.5-VL (arXiv 2502.13923) and Qwen3-VL (arXiv 2511.21631)."""
    old = generation == "2"
    hidden = config.integer("embed_dim") if old else config.integer("hidden_size")
    out = config.integer("hidden_size") if old else config.integer("out_hidden_size")
    merged = hidden * config.integer("spatial_merge_size") ** 2
    rms = generation == "2.5"
    inner = int(hidden * config.number("mlp_ratio")) if old else config.integer("intermediate_size")
    if rms:
        mlp = m.gated_mlp(hidden, inner, bias=True).at("mlp.")
    else:
        mlp = m.plain_mlp(hidden, inner, names=("fc1", "fc2") if old else ("linear_fc1", "linear_fc2"), bias=True).at(
            "mlp."
        )
    layer = total(
        m.norms(hidden, "norm1", "norm2", bias=not rms),
        m.linear("attn.qkv", Role.QKV, 3 * hidden, hidden, bias=True),
        m.linear("attn.proj", Role.O, hidden, hidden, bias=True),
        mlp,
    )
    new = generation == "3"
    outer = patches(m, "patch_embed.proj", hidden, config, config.integer("temporal_patch_size"), bias=new)
    if new:
        outer += m.linear("pos_embed", Role.POSITION, config.integer("num_position_embeddings"), hidden)
        outer += _merger(m, hidden, merged, out).at("merger.")
        for index in range(len(config.items("deepstack_visual_indexes", default=()))):
            outer += _merger(m, merged, merged, out).at(f"deepstack_merger_list.{index}.")
    else:
        outer += m.norms(hidden, "merger.ln_q", bias=not rms)
        outer += projector(m, "merger.mlp.0", merged, merged) + projector(m, "merger.mlp.2", out, merged)
    return tower("vision", prefix + "blocks.{i}.", config.integer("depth"), layer, outer.at(prefix))


def _merger(m: Maker, norm: int, merged: int, out: int) -> Part:
    return total(
        m.norms(norm, "norm", bias=True),
        projector(m, "linear_fc1", merged, merged),
        projector(m, "linear_fc2", out, merged),
    )


def internvl(config: Config, m: Maker, prefix: str) -> Description:
    """Describe InternViT as the `-hf` repositories store it."""
    hidden, heads = config.integer("hidden_size"), config.integer("num_attention_heads")
    bias = config.flag("attention_bias")
    names = ("q_proj", "k_proj", "v_proj", "projection_layer")
    layer = total(
        m.norms(
            hidden,
            "layernorm_before",
            "layernorm_after",
            bias=config.get("norm_type", default="layer_norm") == "layer_norm",
        ),
        m.attention(hidden, Heads(heads, heads, hidden // heads), qkv_bias=bias, o_bias=True, names=names).at(
            "attention."
        ),
        m.norms(hidden, "attention.q_norm", "attention.k_norm") if config.flag("use_qk_norm") else Part(),
        m.plain_mlp(hidden, config.integer("intermediate_size"), names=("fc1", "fc2"), bias=True).at("mlp."),
        m.tensor("lambda_1", hidden) + m.tensor("lambda_2", hidden),
    )
    named = ("embeddings.cls_token", "embeddings.position_embeddings", "embeddings.patch_embeddings.projection")
    outer = _class_token_and_patches(m, config, hidden, named)
    return tower("vision", prefix + "encoder.layer.{i}.", config.integer("num_hidden_layers"), layer, outer.at(prefix))


def _class_token_and_patches(m: Maker, config: Config, hidden: int, names: tuple[str, str, str]) -> Part:
    """A class token, its and the patches' positions, and the patch embedding, named in this order."""
    token, table, projection = names
    positions = (_side(config, "image_size") // _side(config, "patch_size")) ** 2 + 1
    return total(
        m.tensor(token, 1, 1, hidden),
        m.tensor(table, 1, positions, hidden),
        patches(m, projection, hidden, config, bias=True),
    )


def intern_vit(config: Config, m: Maker, prefix: str) -> Description:
    """Describe InternViT as OpenGVLab's own repositories store it (vLLM 0.32, models/intern_vit.py)."""
    hidden = config.integer("hidden_size")
    layer = total(
        m.norms(hidden, "norm1", "norm2", bias=config.get("norm_type", default="rms_norm") == "layer_norm"),
        m.linear("attn.qkv", Role.QKV, 3 * hidden, hidden, bias=config.flag("qkv_bias")),
        m.linear("attn.proj", Role.O, hidden, hidden, bias=True),
        m.norms(hidden, "attn.q_norm", "attn.k_norm") if config.flag("qk_normalization") else Part(),
        m.plain_mlp(hidden, config.integer("intermediate_size"), names=("fc1", "fc2"), bias=True).at("mlp."),
        m.tensor("ls1", hidden) + m.tensor("ls2", hidden),
    )
    named = ("embeddings.class_embedding", "embeddings.position_embedding", "embeddings.patch_embedding")
    outer = _class_token_and_patches(m, config, hidden, named)
    return tower("vision", prefix + "encoder.layers.{i}.", config.integer("num_hidden_layers"), layer, outer.at(prefix))


def dots_vit(config: Config, m: Maker, prefix: str) -> Description:
    """Describe dots.ocr's tower and merger (vLLM 0.32, models/dots_ocr.py)."""
    hidden, inner, bias = config.integer("embed_dim"), config.integer("intermediate_size"), config.flag("use_bias")
    merged, out = hidden * config.integer("spatial_merge_size", default=2) ** 2, config.integer("hidden_size")
    layer = total(
        m.norms(hidden, "norm1", "norm2"),
        m.linear("attn.qkv", Role.QKV, 3 * hidden, hidden, bias=bias),
        m.linear("attn.proj", Role.O, hidden, hidden, bias=bias),
        m.gated_mlp(hidden, inner, bias=bias, names=("fc1", "fc3", "fc2")).at("mlp."),
    )
    outer = total(
        patches(m, "patch_embed.patchifier.proj", hidden, config, bias=True),
        m.norms(hidden, "patch_embed.patchifier.norm"),
        m.norms(hidden, "post_trunk_norm") if config.flag("post_norm", default=True) else Part(),
        m.norms(hidden, "merger.ln_q", bias=True),
        projector(m, "merger.mlp.0", merged, merged) + projector(m, "merger.mlp.2", out, merged),
    )
    return tower("vision", prefix + "blocks.{i}.", config.integer("num_hidden_layers"), layer, outer.at(prefix))


def mllama_vision(config: Config, m: Maker, prefix: str) -> Description:
    """Describe Llama 3.2 Vision's tower: local layers, then gated global ones, with embeddings of tiles and aspect ratios."""
    hidden, heads, inner = (
        config.integer("hidden_size"),
        config.integer("attention_heads"),
        config.integer("intermediate_size"),
    )
    layer = total(
        m.norms(hidden, "input_layernorm", "post_attention_layernorm", bias=True),
        m.attention(hidden, Heads(heads, heads, hidden // heads)).at("self_attn."),
        m.plain_mlp(hidden, inner, names=("fc1", "fc2"), bias=True).at("mlp."),
    )
    tiles = config.integer("max_num_tiles")
    ratios = len(config.items("supported_aspect_ratios", default=[0] * 8)) + 1
    positions = (config.integer("image_size") // config.integer("patch_size")) ** 2 + 1
    outer = total(
        m.tensor("class_embedding", hidden),
        patches(m, "patch_embedding", hidden, config),
        m.norms(hidden, "layernorm_pre", "layernorm_post", bias=True),
        m.tensor("gated_positional_embedding.gate", 1),
        m.tensor("gated_positional_embedding.embedding", positions, hidden),
        m.tensor("gated_positional_embedding.tile_embedding.weight", ratios, tiles * positions * hidden),
        *(
            m.tensor(f"{side}_tile_positional_embedding.gate", 1)
            + m.tensor(f"{side}_tile_positional_embedding.embedding.weight", ratios, tiles * hidden)
            for side in ("pre", "post")
        ),
    )
    local = tower(
        "vision", prefix + "transformer.layers.{i}.", config.integer("num_hidden_layers"), layer, outer.at(prefix)
    )
    gated = layer + m.tensor("gate_attn", 1) + m.tensor("gate_ffn", 1)
    return local + tower(
        "vision", prefix + "global_transformer.layers.{i}.", config.integer("num_global_layers"), gated, Part()
    )  # fmt: skip


def llama4_vision(config: Config, m: Maker, prefix: str) -> Description:
    """Describe Llama 4's tower, with the adapter that shuffles pixels before the projector."""
    hidden, heads, inner = (
        config.integer("hidden_size"),
        config.integer("num_attention_heads"),
        config.integer("intermediate_size"),
    )
    layer = total(
        m.norms(hidden, "input_layernorm", "post_attention_layernorm", bias=True),
        m.attention(hidden, Heads(heads, heads, hidden // heads), qkv_bias=True, o_bias=True).at("self_attn."),
        m.plain_mlp(hidden, inner, names=("fc1", "fc2"), bias=True).at("mlp."),
    )
    side, positions = (
        config.integer("patch_size"),
        (config.integer("image_size") // config.integer("patch_size")) ** 2 + 1,
    )
    middle, out = config.integer("projector_input_dim"), config.integer("projector_output_dim")
    outer = total(
        m.tensor("class_embedding", hidden),
        m.tensor("positional_embedding_vlm", positions, hidden),
        m.linear("patch_embedding.linear", Role.OTHER, hidden, config.integer("num_channels") * side * side),
        m.norms(hidden, "layernorm_pre", "layernorm_post", bias=True),
        m.plain_mlp(inner, middle, names=("fc1", "unused")).at("vision_adapter.mlp."),
    )
    outer = Part(tuple(lin for lin in outer.linears if not lin.name.endswith("unused")), outer.tensors)
    outer += m.linear("vision_adapter.mlp.fc2", Role.DOWN, out, middle)
    return tower("vision", prefix + "model.layers.{i}.", config.integer("num_hidden_layers"), layer, outer.at(prefix))


def gemma4_vision(config: Config, m: Maker, prefix: str) -> Description:
    """Describe Gemma 4's tower; where its linears are clipped, each stores four scalar bounds."""
    hidden, heads, kv_heads = (
        config.integer("hidden_size"),
        config.integer("num_attention_heads"),
        config.integer("num_key_value_heads"),
    )
    dim, bias = config.integer("head_dim"), config.flag("attention_bias")
    names = ("q_proj.linear", "k_proj.linear", "v_proj.linear", "o_proj.linear")
    layer = total(
        m.norms(
            hidden, "input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm"
        ),
        m.attention(hidden, Heads(heads, kv_heads, dim), qkv_bias=bias, o_bias=bias, names=names).at("self_attn."),
        m.norms(dim, "self_attn.q_norm", "self_attn.k_norm"),
        m.gated_mlp(
            hidden, config.integer("intermediate_size"), names=("gate_proj.linear", "up_proj.linear", "down_proj.linear")
        ).at("mlp."),
    )  # fmt: skip
    if config.flag("use_clipped_linears"):
        layer += clips(m, layer)
    size = config.integer("patch_size")
    outer = total(
        m.tensor("patch_embedder.position_embedding_table", 2, config.integer("position_embedding_size"), hidden),
        m.linear("patch_embedder.input_proj", Role.OTHER, hidden, 3 * size * size),
    )
    if config.flag("standardize"):
        outer += m.tensor("std_bias", hidden) + m.tensor("std_scale", hidden)
    return tower("vision", prefix + "encoder.layers.{i}.", config.integer("num_hidden_layers"), layer, outer.at(prefix))


def clips(m: Maker, part: Part) -> Part:
    """Make the four bounds of every clipped linear of a part (`x.linear.weight` -> `x.input_min` …)."""
    stems = [lin.name.removesuffix(".linear") for lin in part.linears if lin.name.endswith(".linear")]
    bounds = ("input_min", "input_max", "output_min", "output_max")
    return total(*(m.tensor(f"{stem}.{bound}") for stem in stems for bound in bounds))


def gemma4_audio(config: Config, m: Maker, prefix: str) -> Description:
    """Describe Gemma 4's conformer."""
    hidden, kernel = config.integer("hidden_size"), config.integer("conv_kernel_size")
    heads, channels = config.integer("num_attention_heads"), config.counts("subsampling_conv_channels", 2, (128, 32))

    def feed(name: str) -> Part:
        mlp = m.plain_mlp(hidden, 4 * hidden, names=("ffw_layer_1.linear", "ffw_layer_2.linear"))
        return (mlp + m.norms(hidden, "pre_layer_norm", "post_layer_norm")).at(name)

    attention = m.attention(
        hidden,
        Heads(heads, heads, hidden // heads),
        names=("q_proj.linear", "k_proj.linear", "v_proj.linear", "post.linear"),
    )
    layer = total(
        feed("feed_forward1."),
        feed("feed_forward2."),
        (attention + m.tensor("per_dim_scale", hidden // heads)).at("self_attn."),
        m.linear("self_attn.relative_k_proj", Role.POSITION, hidden, hidden),
        m.plain_mlp(hidden, 2 * hidden, names=("linear_start.linear", "unused")).at("lconv1d."),
        m.linear("lconv1d.linear_end.linear", Role.MIXER_OUT, hidden, hidden),
        m.tensor("lconv1d.depthwise_conv1d.weight", hidden, 1, kernel),
        m.norms(hidden, "lconv1d.pre_layer_norm", "lconv1d.conv_norm", "norm_pre_attn", "norm_post_attn", "norm_out"),
    )
    layer = Part(tuple(lin for lin in layer.linears if not lin.name.endswith("unused")), layer.tensors)
    if config.flag("use_clipped_linears"):
        layer += clips(m, layer)
    conv = "subsample_conv_projection."
    outer = total(
        m.tensor(conv + "layer0.conv.weight", channels[0], 1, 3, 3) + m.norms(channels[0], conv + "layer0.norm"),
        m.tensor(conv + "layer1.conv.weight", channels[1], channels[0], 3, 3)
        + m.norms(channels[1], conv + "layer1.norm"),
        m.linear(conv + "input_proj_linear", Role.OTHER, hidden, hidden),
        projector(m, "output_proj", config.integer("output_proj_dims"), hidden),
    )
    return tower("audio", prefix + "layers.{i}.", config.integer("num_hidden_layers"), layer, outer.at(prefix))


def moonvit(config: Config, m: Maker, prefix: str) -> Description:
    """Describe MoonViT (arXiv 2504.07491), of Kimi-VL and Kimi K2.5; Kimi K3's has no biases, and attention of a width of its own."""
    hidden = config.integer("vt_hidden_size", "hidden_size")
    inner, layers = (
        config.integer("vt_intermediate_size", "intermediate_size"),
        config.integer("vt_num_hidden_layers", "num_hidden_layers"),
    )
    wide, bias = config.integer("qkv_hidden_size", default=hidden), config.flag("attn_bias", default=True)
    shifted = config.get("norm_type", default="layernorm") == "layernorm"
    layer = total(
        m.norms(hidden, "norm0", "norm1", bias=shifted),
        m.linear("wqkv", Role.QKV, 3 * wide, hidden, bias=bias),
        m.linear("wo", Role.O, hidden, wide, bias=bias),
        m.plain_mlp(hidden, inner, names=("fc0", "fc1"), bias=config.flag("linear_bias", default=True)).at("mlp."),
    )
    height, width = config.integer("init_pos_emb_height"), config.integer("init_pos_emb_width")
    outer = total(
        patches(m, "patch_embed.proj", hidden, config, bias=config.flag("patch_embed_proj_bias", default=True)),
        m.tensor("patch_embed.pos_emb.weight", height, width, hidden),
        m.norms(hidden, "encoder.final_layernorm", bias=shifted),
    )
    return tower("vision", prefix + "encoder.blocks.{i}.", layers, layer, outer.at(prefix))


def phi3_image(config: Config, m: Maker, prefix: str) -> Description:
    """Describe Phi-3 Vision's CLIP tower, its separators and its two-layer projector (modeling_phi3_v.py of the repository)."""
    described = Config({**_CLIP_L, **config.mapping("vision_config", {})}, config.name, "CLIP ViT-L/14")
    eyes = clip(described, m, prefix + "img_processor.vision_model.")
    hidden, width = config.integer("hidden_size"), 4 * described.integer("hidden_size")
    outer = total(
        m.tensor("glb_GN", 1, 1, width),
        m.tensor("sub_GN", 1, 1, 1, width),
        projector(m, "img_projection.0", hidden, width),
        projector(m, "img_projection.2", hidden, hidden),
    )
    return eyes + Description((), outer.at(prefix))
