"""Models with a text decoder and towers: which decoder, which towers, which projector, and where each stands."""

from __future__ import annotations

from collections.abc import Callable

from passes.ir.architectures import TEXT_ARCHITECTURES
from passes.ir.architectures import describe as describe_text
from passes.ir.architectures.config import Config, not_understood
from passes.ir.architectures.draft import Description, Names
from passes.ir.architectures.parts import Maker, Part, total
from passes.ir.architectures.vision import (  # fmt: skip
    clip,
    dots_vit,
    gemma4_audio,
    gemma4_vision,
    intern_vit,
    internvl,
    llama4_vision,
    mllama_vision,
    moonvit,
    pixtral,
    projector,
    qwen_vision,
)
from passes.ir.model import Role
from passes.record import dataclass

_INSIDE = Names("language_model.model.", "language_model.lm_head")
_BESIDE = Names("model.language_model.", "lm_head")


@dataclass(frozen=True, slots=True)
class Family:
    """`names`: where the decoder stands; `towers`: everything else, from (whole config, text config, maker)."""

    names: Names
    towers: Callable[[Config, Config, Maker], Description]
    text: str = ""
    """Architecture of the decoder, where `text_config.model_type` does not say it."""


def text_config(root: Config, kind: str = "") -> Config:
    """Find the decoder's config, nested or (older files) the top level itself; tying is the whole model's where it says so."""
    if any(root.has(field) for field in ("text_config", "llm_config", "language_config")):
        part = root.part("text_config", "llm_config", "language_config")
        if root.has("tie_word_embeddings"):
            values = {**part.values, "tie_word_embeddings": root.values["tie_word_embeddings"]}
            part = Config(values, part.name, part.path, part.kind)
        return part
    return root


def _llava(root: Config, text: Config, m: Maker) -> Description:
    vision = root.part("vision_config", kind=None)
    siglip = vision.kind == "siglip_vision_model"
    if not siglip and vision.kind != "clip_vision_model":
        raise not_understood(root.name, f"vision_config: model_type {vision.kind!r} is not known")
    prefix = (
        "vision_tower."
        if m.has("vision_tower.encoder.layers.#.mlp.fc1.weight", default=False)
        else "vision_tower.vision_model."
    )
    taken = root.get("vision_feature_layer", default=-2)
    width = vision.integer("hidden_size") * (len(taken) if isinstance(taken, list) else 1)
    hidden = text.integer("hidden_size")
    bias = root.flag("multimodal_projector_bias", default=True)
    outer = total(
        projector(m, "linear_1", hidden, width, bias=bias), projector(m, "linear_2", hidden, hidden, bias=bias)
    ).at("multi_modal_projector.")  # fmt: skip
    if root.get("model_type") == "llava_next":
        outer += m.tensor("image_newline", hidden)
    return clip(vision, m, prefix, siglip=siglip) + Description((), outer)


def _gemma3(root: Config, text: Config, m: Maker) -> Description:
    vision = root.part("vision_config", kind="siglip_vision_model")
    prefix = (
        "vision_tower."
        if m.has("vision_tower.encoder.layers.#.mlp.fc1.weight", default=False)
        else "vision_tower.vision_model."
    )
    width = vision.integer("hidden_size")
    outer = m.tensor("mm_input_projection_weight", width, text.integer("hidden_size")) + m.norms(
        width, "mm_soft_emb_norm"
    )
    return clip(vision, m, prefix, siglip=True) + Description((), outer.at("multi_modal_projector."))


def _mistral3(root: Config, text: Config, m: Maker) -> Description:
    vision = root.part("vision_config", kind="pixtral")
    width, hidden = vision.integer("hidden_size"), text.integer("hidden_size")
    merged, bias = width * root.integer("spatial_merge_size", default=2) ** 2, root.flag("multimodal_projector_bias")
    outer = total(
        m.norms(width, "norm"),
        projector(m, "patch_merger.merging_layer", width, merged, bias=False),
        projector(m, "linear_1", hidden, width, bias=bias),
        projector(m, "linear_2", hidden, hidden, bias=bias),
    )
    return pixtral(vision, m, "vision_tower.") + Description((), outer.at("multi_modal_projector."))


def _qwen(prefix: str, generation: str, kind: str) -> Callable[[Config, Config, Maker], Description]:
    def towers(root: Config, text: Config, m: Maker) -> Description:
        return qwen_vision(root.part("vision_config", kind=kind), m, prefix, generation)

    return towers


def _internvl(root: Config, text: Config, m: Maker) -> Description:
    """As the `-hf` repositories name it."""
    return _internvl_at("", root, text, m)


def _interns1(root: Config, text: Config, m: Maker) -> Description:
    """Intern-S1 (vLLM 0.32, models/interns1.py): InternVL's towers beside the decoder."""
    return _internvl_at("model.", root, text, m)


def _internvl_at(prefix: str, root: Config, text: Config, m: Maker) -> Description:
    vision, hidden = root.part("vision_config", kind="internvl_vision"), text.integer("hidden_size")
    width = (
        vision.integer("hidden_size")
        * round(1 / root.number("downsample_ratio", default=0.5, at_least=0.01, at_most=1)) ** 2
    )
    outer = total(
        m.norms(width, "layer_norm", bias=True),
        projector(m, "linear_1", hidden, width),
        projector(m, "linear_2", hidden, hidden),
    )
    return internvl(vision, m, prefix + "vision_tower.") + Description((), outer.at(prefix + "multi_modal_projector."))


def _internvl_chat(root: Config, text: Config, m: Maker) -> Description:
    """As OpenGVLab's own repositories name it."""
    vision, hidden = root.part("vision_config"), text.integer("hidden_size")
    width = vision.integer("hidden_size") * round(1 / float(root.get("downsample_ratio", default=0.5))) ** 2
    outer = m.norms(width, "0", bias=True) + projector(m, "1", hidden, width) + projector(m, "3", hidden, hidden)
    return intern_vit(vision, m, "vision_model.") + Description((), outer.at("mlp1."))


def _nvlm(root: Config, text: Config, m: Maker) -> Description:
    """NVLM-D (arXiv 2409.11402): InternViT with a wider projector, without biases."""
    vision, inner = root.part("vision_config"), text.integer("intermediate_size")
    width = vision.integer("hidden_size") * round(1 / float(root.get("downsample_ratio", default=0.5))) ** 2
    between = projector(m, "1", inner, width, bias=False) + projector(
        m, "3", text.integer("hidden_size"), inner, bias=False
    )
    outer = m.norms(width, "0", bias=True) + between
    return intern_vit(vision, m, "vision_model.") + Description((), outer.at("mlp1."))


def _normed_llava(times: int) -> Callable[[Config, Config, Maker], Description]:
    """SigLIP and a projector behind a norm, whose middle is `times` the decoder's width (vLLM 0.32, models/bee.py, rvl.py)."""

    def towers(root: Config, text: Config, m: Maker) -> Description:
        vision, hidden = root.part("vision_config", kind="siglip_vision_model"), text.integer("hidden_size")
        width = vision.integer("hidden_size")
        outer = total(
            m.norms(width, "pre_norm", bias=True),
            projector(m, "linear_1", hidden * times, width),
            projector(m, "linear_2", hidden, hidden * times),
        ).at("multi_modal_projector.") + m.tensor("image_newline", hidden)
        return clip(vision, m, "vision_tower.vision_model.", siglip=True) + Description((), outer)

    return towers


def _eagle(root: Config, text: Config, m: Maker) -> Description:
    """Eagle 2.5 (arXiv 2504.15271): SigLIP behind InternVL's projector."""
    vision, hidden = root.part("vision_config", kind="siglip_vision_model"), text.integer("hidden_size")
    width = vision.integer("hidden_size") * round(1 / float(root.get("downsample_ratio", default=0.5))) ** 2
    outer = m.norms(width, "0", bias=True) + projector(m, "1", hidden, width) + projector(m, "3", hidden, hidden)
    return clip(vision, m, "vision_model.vision_model.", siglip=True) + Description((), outer.at("mlp1."))


def _dots_ocr(root: Config, text: Config, m: Maker) -> Description:
    return dots_vit(root.part("vision_config"), m, "vision_tower.")


def _keye(merged_norm: bool) -> Callable[[Config, Config, Maker], Description]:
    """Keye VL (arXiv 2507.01949): SigLIP with positions of packed images, four patches merged, behind the norm or before it (1.5)."""

    def towers(root: Config, text: Config, m: Maker) -> Description:
        vision, hidden = root.part("vision_config", kind="siglip_vision_model"), text.integer("hidden_size")
        width = vision.integer("hidden_size")
        positions = m.linear("visual.vision_model.embeddings.packing_position_embedding", Role.POSITION, 32768, width)
        outer = total(
            m.norms(4 * width if merged_norm else width, "pre_norm", bias=True),
            projector(m, "linear_1", 4 * width, 4 * width),
            projector(m, "linear_2", hidden, 4 * width),
        )
        eyes = clip(vision, m, "visual.vision_model.", siglip=True)
        return eyes + Description((), positions.dense() + outer.at("mlp_AR."))

    return towers


def _llama4(root: Config, text: Config, m: Maker) -> Description:
    vision = root.part("vision_config", kind="llama4_vision_model")
    width = vision.integer("vision_output_dim")
    outer = projector(m, "multi_modal_projector.linear_1", text.integer("hidden_size"), width, bias=False)
    return llama4_vision(vision, m, "vision_model.") + Description((), outer)


def _mllama(root: Config, text: Config, m: Maker) -> Description:
    vision = root.part("vision_config", kind="mllama_vision_model")
    outer = projector(m, "multi_modal_projector", text.integer("hidden_size"), vision.integer("vision_output_dim"))
    return mllama_vision(vision, m, "vision_model.") + Description((), outer)


def _gemma4(root: Config, text: Config, m: Maker) -> Description:
    hidden, found = text.integer("hidden_size"), Description(())
    if root.has("vision_config"):
        vision = root.part("vision_config", kind="gemma4_vision")
        outer = projector(
            m, "model.embed_vision.embedding_projection", hidden, vision.integer("hidden_size"), bias=False
        )
        found += gemma4_vision(vision, m, "model.vision_tower.") + Description((), outer)
    if root.has("audio_config"):
        audio = root.part("audio_config", kind="gemma4_audio")
        outer = projector(
            m, "model.embed_audio.embedding_projection", hidden, audio.integer("output_proj_dims"), bias=False
        )
        found += gemma4_audio(audio, m, "model.audio_tower.") + Description((), outer)
    return found


def _gemma4_unified(root: Config, text: Config, m: Maker) -> Description:
    """Pictures and sound without towers (transformers 5.23, models/gemma4_unified): merged patches, and frames of sound, projected."""
    hidden, outer = text.integer("hidden_size"), Part()
    if root.has("vision_config"):
        vision = root.part("vision_config", kind="gemma4_unified_vision")
        merged = vision.integer("patch_size", default=16) * vision.integer("pooling_kernel_size", default=3)
        width, patch = vision.integer("mm_embed_dim"), 3 * merged**2
        outer += total(
            m.norms(patch, "patch_ln1", bias=True),
            projector(m, "patch_dense", width, patch),
            m.norms(width, "patch_ln2", "pos_norm", bias=True),
            m.tensor("pos_embedding", vision.integer("mm_posemb_size"), 2, width),
        ).at("model.vision_embedder.")
        outer += projector(m, "model.embed_vision.embedding_projection", hidden, width, bias=False)
    if root.has("audio_config"):
        sound = root.part("audio_config", kind="gemma4_unified_audio").integer("output_proj_dims")
        outer += projector(m, "model.embed_audio.embedding_projection", hidden, sound, bias=False)
    return Description((), outer)


def _kimi_vl(root: Config, text: Config, m: Maker) -> Description:
    vision = root.part("vision_config")
    kernel, width = vision.counts("merge_kernel_size", 2, (2, 2), at_least=1), vision.integer("hidden_size")
    merged, hidden = width * kernel[0] * kernel[1], text.integer("hidden_size")
    outer = (
        m.norms(width, "pre_norm", bias=True)
        + projector(m, "linear_1", merged, merged)
        + projector(m, "linear_2", hidden, merged)
    )
    return moonvit(vision, m, "vision_tower.") + Description((), outer.at("multi_modal_projector."))


def _kimi_k25(root: Config, text: Config, m: Maker) -> Description:
    vision = root.part("vision_config")
    kernel, width = vision.counts("merge_kernel_size", 2, (2, 2), at_least=1), vision.integer("mm_hidden_size")
    merged, hidden = width * kernel[0] * kernel[1], text.integer("hidden_size")
    second = vision.get("mm_projector_type", default="patchmerger") == "patchmergerv2"
    norm = m.norms(hidden, "post_norm") if second else m.norms(width, "pre_norm", bias=True)
    outer = (
        norm
        + projector(m, "proj.0", merged, merged, bias=not second)
        + projector(m, "proj.2", hidden, merged, bias=not second)
    )
    return moonvit(vision, m, "vision_tower.") + Description((), outer.at("mm_projector."))


def _minimax_m3(root: Config, text: Config, m: Maker) -> Description:
    vision, hidden = root.part("vision_config", kind="minimax_m3_vl_vision"), text.integer("hidden_size")
    middle, bias = (
        root.integer("projector_hidden_size", default=hidden),
        root.flag("multimodal_projector_bias", default=True),
    )
    compression = root.inside("img_token_compression_config", {})
    frames, merge = (
        compression.integer(key, default=2, at_least=1) for key in ("temporal_patch_size", "spatial_merge_size")
    )
    eyes = clip(vision, m, "vision_tower.vision_model.", positions=False, frames=(frames,))
    outer = total(
        projector(m, "multi_modal_projector.linear_1", middle, vision.integer("hidden_size"), bias=bias),
        projector(m, "multi_modal_projector.linear_2", hidden, middle, bias=bias),
        projector(m, "patch_merge_mlp.linear_1", middle, middle * merge * merge, bias=bias),
        projector(m, "patch_merge_mlp.linear_2", hidden, middle, bias=bias),
    )
    return eyes + Description((), outer)


_FAMILIES: dict[str, Family] = {
    "LlavaForConditionalGeneration": Family(_INSIDE, _llava),
    "LlavaNextForConditionalGeneration": Family(_INSIDE, _llava),
    "Gemma3ForConditionalGeneration": Family(_INSIDE, _gemma3),
    "Mistral3ForConditionalGeneration": Family(_INSIDE, _mistral3),
    "Qwen2VLForConditionalGeneration": Family(Names(), _qwen("visual.", "2", "qwen2_vl_vision"), "Qwen2ForCausalLM"),
    "Qwen2_5_VLForConditionalGeneration": Family(
        Names(), _qwen("visual.", "2.5", "qwen2_5_vl_vision"), "Qwen2ForCausalLM"
    ),
    "Qwen3VLForConditionalGeneration": Family(_BESIDE, _qwen("model.visual.", "3", "qwen3_vl_vision")),
    "Qwen3VLMoeForConditionalGeneration": Family(_BESIDE, _qwen("model.visual.", "3", "qwen3_vl_moe_vision")),
    "Qwen3_5ForConditionalGeneration": Family(_BESIDE, _qwen("model.visual.", "3", "qwen3_5_vision")),
    "Qwen3_5MoeForConditionalGeneration": Family(_BESIDE, _qwen("model.visual.", "3", "qwen3_5_moe_vision")),
    "InternVLForConditionalGeneration": Family(_INSIDE, _internvl),
    "InternS1ForConditionalGeneration": Family(_BESIDE, _interns1),
    "InternS2PreviewForConditionalGeneration": Family(_BESIDE, _qwen("model.visual.", "3", "qwen3_5_moe_vision")),
    "InternVLChatModel": Family(_INSIDE, _internvl_chat),
    "SkyworkR1VChatModel": Family(_INSIDE, _internvl_chat),
    "H2OVLChatModel": Family(_INSIDE, _internvl_chat),
    "NVLM_D": Family(_INSIDE, _nvlm),
    "Eagle2_5_VLForConditionalGeneration": Family(_INSIDE, _eagle),
    "DotsOCRForCausalLM": Family(Names(), _dots_ocr, "Qwen2ForCausalLM"),
    "KeyeForConditionalGeneration": Family(Names(), _keye(merged_norm=False), "Qwen3ForCausalLM"),
    "KeyeVL1_5ForConditionalGeneration": Family(Names(), _keye(merged_norm=True), "Qwen3ForCausalLM"),
    "BeeForConditionalGeneration": Family(_INSIDE, _normed_llava(4)),
    "RForConditionalGeneration": Family(_INSIDE, _normed_llava(1)),
    "OpenCUAForConditionalGeneration": Family(
        _INSIDE, _qwen("vision_tower.", "2.5", "qwen2_5_vl_vision"), "Qwen2ForCausalLM"
    ),
    "Llama4ForConditionalGeneration": Family(_INSIDE, _llama4),
    "MllamaForConditionalGeneration": Family(_INSIDE, _mllama),
    "Gemma4ForConditionalGeneration": Family(_BESIDE, _gemma4),
    "Gemma4UnifiedForConditionalGeneration": Family(_BESIDE, _gemma4_unified),
    "KimiVLForConditionalGeneration": Family(_INSIDE, _kimi_vl),
    "KimiK25ForConditionalGeneration": Family(_INSIDE, _kimi_k25),
    "KimiK3ForConditionalGeneration": Family(_INSIDE, _kimi_k25),
    "MiniMaxM3SparseForConditionalGeneration": Family(_INSIDE, _minimax_m3, "MiniMaxM3SparseForCausalLM"),
}


#: The decoder's architecture where a model's config and template do not tell it.
_DECODERS = {
    "Step3p7ForConditionalGeneration": "Step3p5ForCausalLM",
    "PaddleOCRVLForConditionalGeneration": "Ernie4_5ForCausalLM",
}

#: Architectures with another's towers.
_SAME_TOWERS = {
    "Qwen2_5OmniModel": "Qwen2_5OmniForConditionalGeneration",
    "Qwen3ASRRealtimeGeneration": "Qwen3ASRForConditionalGeneration",
}

#: Models whose repositories hold more than the part that answers in text: where that part stands.
_THINKERS = {
    "Qwen2_5OmniForConditionalGeneration": "thinker.",
    "Qwen2_5OmniModel": "thinker.",
    "Qwen3OmniMoeForConditionalGeneration": "thinker.",
}


def templated(architecture: str) -> Family:
    """Make a family whose towers come from a template."""
    # Imported when needed: the other families do not read the templates.
    from passes.ir.architectures.families.templates import template, towers

    like, prefix = _SAME_TOWERS.get(architecture, architecture), _THINKERS.get(architecture, "")
    made = template(like)
    return Family(
        Names(prefix + made["base"], prefix + made["head"]),
        lambda root, text, m: towers(like, root, text, m, prefix),
        _DECODERS.get(architecture, ""),
    )


def describe(root: Config, architecture: str, m: Maker, names: Names) -> Description:
    """Describe a multimodal model: its decoder and its towers."""
    family = _FAMILIES.get(architecture) or templated(architecture)
    text = text_config(root)
    kind = text.text("model_type", "")
    decoder = family.text or TEXT_ARCHITECTURES.get(kind)
    if decoder is None:
        raise not_understood(root.name, f"{text.path}: model_type {kind!r} is not known")
    return describe_text(text, decoder, m, family.names) + family.towers(root, text, m)
