"""How model families name and shape their parts. A registry; it fails closed on what it does not know."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from passes.errors import InputError, nearest
from passes.formats.tensor import Tensor
from passes.ir.architectures.config import ESCAPE, Config
from passes.ir.architectures.draft import Description, Names, with_head
from passes.ir.architectures.parts import Maker, stored_names
from passes.ir.fields import LARGEST
from passes.ir.heads import Head, headed
from passes.ir.model import ModelIR

#: Which module describes an architecture. A module is imported when one of its families is asked for.
_MODULES: dict[str, tuple[str, ...]] = {
    "decoder": (
        "LlamaForCausalLM", "MistralForCausalLM", "Ministral3ForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM",
        "MiMoForCausalLM", "GemmaForCausalLM", "GlmOcrTextModel", "Glm4vTextModel", "Gemma2ForCausalLM", "Gemma3ForCausalLM",
        "CohereForCausalLM", "Cohere2ForCausalLM", "GraniteForCausalLM", "Olmo2ForCausalLM", "Olmo3ForCausalLM",
        "Phi3ForCausalLM", "Glm4ForCausalLM", "GlmForCausalLM", "SmolLM3ForCausalLM", "Exaone4ForCausalLM",
        "Starcoder2ForCausalLM", "NemotronForCausalLM", "PhiForCausalLM", "ApertusForCausalLM", "ArceeForCausalLM",
        "CwmForCausalLM", "Ernie4_5ForCausalLM", "GraniteSWAForCausalLM", "HeliumForCausalLM", "HunYuanDenseV1ForCausalLM",
        "HyperCLOVAXForCausalLM", "InternLM3ForCausalLM", "IQuestCoderForCausalLM", "Jais2ForCausalLM", "LLaMAForCausalLM",
        "MiniCPMForCausalLM", "OrionForCausalLM", "PanguEmbeddedForCausalLM", "Rnj1ForCausalLM", "SeedOssForCausalLM",
        "SolarForCausalLM", "StableLmForCausalLM", "Step1ForCausalLM", "TeleChat3ForCausalLM", "TeleFLMForCausalLM",
        "MuseGlimmerForCausalLM",
    ),
    "classic": (
        "OPTForCausalLM", "FalconForCausalLM", "RWForCausalLM", "GPTJForCausalLM", "BloomForCausalLM", "MptForCausalLM",
        "MPTForCausalLM", "QWenLMHeadModel", "BaichuanForCausalLM", "BaiChuanForCausalLM", "InternLM2ForCausalLM",
        "DeciLMForCausalLM", "Phi3VForCausalLM", "MllamaForCausalLM",
    ),
    "moe": (
        "MixtralForCausalLM", "PhiMoEForCausalLM", "PhimoeForCausalLM", "MiniMaxM2ForCausalLM", "MiniMaxM3ForCausalLM",
        "MiniMaxM3SparseForCausalLM", "Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM", "Qwen3VLMoeTextModel", "OlmoeForCausalLM",
        "GraniteMoeForCausalLM", "Glm4MoeForCausalLM", "GptOssForCausalLM", "MiMoV2FlashForCausalLM", "Step3p7FlashForCausalLM",
        "Step3p5ForCausalLM", "MiMoV2ForCausalLM", "Llama4ForCausalLM",
    ),
    "mla": (
        "DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM", "DeepseekV32ForCausalLM", "GlmMoeDsaForCausalLM",
        "Mistral4ForCausalLM", "Glm4MoeLiteForCausalLM", "MistralLarge3ForCausalLM", "SarvamMLAForCausalLM", "AXK1ForCausalLM",
        "PanguUltraMoEForCausalLM", "MiniCPM3ForCausalLM", "YoutuForCausalLM",
    ),
    "hybrid": (
        "Qwen3NextForCausalLM", "Qwen3_5ForCausalLM", "Qwen3_5MoeForCausalLM", "NemotronHForCausalLM", "KimiLinearForCausalLM",
    ),
    "gemma4": ("Gemma4ForCausalLM",),
    "families.mamba": (
        "MambaForCausalLM", "FalconMambaForCausalLM", "Mamba2ForCausalLM", "JambaForCausalLM", "GraniteMoeHybridForCausalLM",
        "GraniteMoeSharedForCausalLM", "BambaForCausalLM",
    ),
    "families.convolutional": ("Lfm2ForCausalLM", "Lfm2MoeForCausalLM", "OlmoHybridForCausalLM"),
    "families.gemma3n": ("Gemma3nForCausalLM",),
    "families.encoders": (
        "BertModel", "BertForSequenceClassification", "RobertaModel", "RobertaForSequenceClassification", "XLMRobertaModel",
        "XLMRobertaForSequenceClassification", "ModernBertModel", "ModernBertForSequenceClassification",
    ),
    "families.named": (
        "GPT2LMHeadModel", "GPTBigCodeForCausalLM", "GPTNeoXForCausalLM", "ChatGLMModel", "ChatGLMForConditionalGeneration",
        "ExaoneForCausalLM", "TeleChat2ForCausalLM", "Plamo3ForCausalLM", "BailingMoeForCausalLM", "BailingMoeV2ForCausalLM",
        "SarvamMoEForCausalLM", "AriaTextForCausalLM", "VoxtralRealtimeTextModel",
    ),
    "families.routed": (
        "AfmoeForCausalLM", "Cohere2MoeForCausalLM", "DeepseekForCausalLM", "Ernie4_5_MoeForCausalLM", "ExaoneMoeForCausalLM",
        "ExaoneMoEForCausalLM", "FlexOlmoForCausalLM", "HYV3ForCausalLM", "HunYuanMoEV1ForCausalLM", "LagunaForCausalLM",
        "MellumForCausalLM", "Param2MoEForCausalLM", "SolarOpenForCausalLM",
    ),
    "families.bailing": ("BailingMoeV3ForCausalLM",),
    "deepseek_v4": ("DeepseekV4ForCausalLM",),
    "multimodal": (
        "LlavaForConditionalGeneration", "LlavaNextForConditionalGeneration", "Gemma3ForConditionalGeneration",
        "Mistral3ForConditionalGeneration", "Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration",
        "Qwen3VLForConditionalGeneration", "Qwen3VLMoeForConditionalGeneration", "Qwen3_5ForConditionalGeneration",
        "Qwen3_5MoeForConditionalGeneration", "InternVLForConditionalGeneration", "Llama4ForConditionalGeneration",
        "MllamaForConditionalGeneration", "Gemma4ForConditionalGeneration", "KimiVLForConditionalGeneration",
        "KimiK25ForConditionalGeneration", "KimiK3ForConditionalGeneration", "MiniMaxM3SparseForConditionalGeneration",
        "InternS1ForConditionalGeneration", "InternS2PreviewForConditionalGeneration",
        "Gemma4UnifiedForConditionalGeneration", "InternVLChatModel", "SkyworkR1VChatModel", "H2OVLChatModel",
        "OpenCUAForConditionalGeneration", "NVLM_D", "Eagle2_5_VLForConditionalGeneration", "DotsOCRForCausalLM",
        "KeyeForConditionalGeneration", "KeyeVL1_5ForConditionalGeneration", "BeeForConditionalGeneration",
        "RForConditionalGeneration", "AriaForConditionalGeneration", "AudioFlamingo3ForConditionalGeneration",
        "Cohere2VisionForConditionalGeneration", "Exaone4_5_ForConditionalGeneration", "GlmAsrForConditionalGeneration",
        "Glm4vForConditionalGeneration", "Glm4vMoeForConditionalGeneration", "GlmOcrForConditionalGeneration",
        "GraniteSpeechForConditionalGeneration", "GraniteSpeechPlusForConditionalGeneration", "HCXVisionV2ForCausalLM",
        "Idefics3ForConditionalGeneration", "Lfm2VlForConditionalGeneration", "LightOnOCRForConditionalGeneration",
        "LlavaNextVideoForConditionalGeneration", "LlavaOnevisionForConditionalGeneration",
        "MiniCPMV4_6ForConditionalGeneration", "MiniCPMV4_7ForConditionalGeneration",
        "MossTranscribeDiarizeForConditionalGeneration", "MuseGlimmerForConditionalGeneration",
        "Ovis2ForConditionalGeneration", "PaddleOCRVLForConditionalGeneration",
        "PaliGemmaForConditionalGeneration", "Qwen2AudioForConditionalGeneration", "Qwen2_5OmniForConditionalGeneration",
        "Qwen2_5OmniModel", "Qwen3ASRForConditionalGeneration", "Qwen3ASRRealtimeGeneration",
        "Qwen3OmniMoeForConditionalGeneration", "SmolVLMForConditionalGeneration", "Step3p7ForConditionalGeneration",
        "VoxtralForConditionalGeneration", "VoxtralRealtimeGeneration",
    ),
}  # fmt: skip
_MODULE_OF = {architecture: module for module, names in _MODULES.items() for architecture in names}

#: The architecture of a nested text decoder, by its model_type.
TEXT_ARCHITECTURES = {
    "llama": "LlamaForCausalLM", "mistral": "MistralForCausalLM", "ministral3": "Ministral3ForCausalLM", "qwen2":
    "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "granite": "GraniteForCausalLM", "phi3": "Phi3ForCausalLM", "gemma2":
    "Gemma2ForCausalLM", "gemma3_text": "Gemma3ForCausalLM", "gemma4_text": "Gemma4ForCausalLM", "mistral4":
    "Mistral4ForCausalLM", "deepseek_v2": "DeepseekV2ForCausalLM", "deepseek_v3": "DeepseekV3ForCausalLM", "kimi_k2":
    "DeepseekV3ForCausalLM", "kimi_linear": "KimiLinearForCausalLM", "llama4_text": "Llama4ForCausalLM", "mllama_text_model":
    "MllamaForCausalLM", "qwen3_vl_text": "Qwen3ForCausalLM", "qwen3_vl_moe_text": "Qwen3VLMoeTextModel", "qwen3_5_text":
    "Qwen3_5ForCausalLM", "qwen3_5_moe_text": "Qwen3_5MoeForCausalLM", "glm4v_text": "Glm4vTextModel", "aria_text":
    "AriaTextForCausalLM", "internlm2": "InternLM2ForCausalLM", "glm_ocr_text": "GlmOcrTextModel", "glm4v_moe_text":
    "Glm4MoeForCausalLM", "glm4": "Glm4ForCausalLM", "glm4_moe": "Glm4MoeForCausalLM", "gemma": "GemmaForCausalLM", "cohere2":
    "Cohere2ForCausalLM", "cohere": "CohereForCausalLM", "exaone4": "Exaone4ForCausalLM", "lfm2": "Lfm2ForCausalLM", "lfm2_moe":
    "Lfm2MoeForCausalLM", "paddleocr_vl_text": "Ernie4_5ForCausalLM", "ernie4_5": "Ernie4_5ForCausalLM", "qwen2_5_omni_text":
    "Qwen2ForCausalLM", "qwen3_omni_moe_text": "Qwen3MoeForCausalLM", "qwen3_moe": "Qwen3MoeForCausalLM", "hyperclovax":
    "HyperCLOVAXForCausalLM", "gemma3n_text": "Gemma3nForCausalLM", "gemma4_unified_text": "Gemma4ForCausalLM", "smollm3":
    "SmolLM3ForCausalLM", "olmo2": "Olmo2ForCausalLM", "hunyuan_v1_dense": "HunYuanDenseV1ForCausalLM", "hunyuan_vl_text":
    "HunYuanDenseV1ForCausalLM", "step3p5": "Step3p5ForCausalLM", "voxtral_realtime_text": "VoxtralRealtimeTextModel",
    "seed_oss": "SeedOssForCausalLM", "gpt_oss": "GptOssForCausalLM", "granite4_vision_text": "GraniteForCausalLM",
    "phi4_multimodal": "Phi3ForCausalLM", "starcoder2": "Starcoder2ForCausalLM", "nemotron_h": "NemotronHForCausalLM",
    "muse_glimmer_text": "MuseGlimmerForCausalLM",
}  # fmt: skip

#: Fields that say the longest context, and what vLLM takes where there is none (`config/model.py`, `default_max_len`).
_CONTEXT = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "model_max_length",
    "max_sequence_length",
    "seq_length",
)
_NO_CONTEXT = 2048
#: Kinds of rotary scaling that make a context longer than the config says.
_STRETCHING = frozenset({"yarn", "linear", "dynamic"})

#: `assume:` values and the architecture that such a model is read as.
_ASSUMPTIONS = {"full-attention": "LlamaForCausalLM"}


def describe(config: Config, architecture: str, m: Maker, names: Names) -> Description:
    """Describe one decoder or whole model, by the module that knows its architecture."""
    module = importlib.import_module(f"passes.ir.architectures.{_MODULE_OF[architecture]}")
    description: Description = module.describe(config, architecture, m, _stored_names(m, names))
    return description


def _stored_names(m: Maker, names: Names) -> Names:
    """Where the headers show the decoder: some repositories were saved without `model.`, or by a newer transformers."""
    if m.stored is None or f"{names.base}embed_tokens.weight" in m.stored:
        return names
    for base in ("model.", "", "model.language_model.", "language_model.model.", "language_model."):
        if f"{base}embed_tokens.weight" in m.stored:
            head = "language_model.lm_head" if "language_model.lm_head.weight" in m.stored else "lm_head"
            return Names(base, head)
    return names


def _longest_context(text: Config) -> int:
    """Tokens of the longest sequence; with YaRN so many times those that it stretches, with linear or dynamic scaling so many times its own
    (vLLM's `_get_and_verify_max_len` in config/model.py, 0.32; Gemma 3's own are stretched already).
    """
    own = text.integer(*_CONTEXT, default=_NO_CONTEXT)
    for rope in (text.inside(key, {}) for key in ("rope_parameters", "rope_scaling")):
        kinds = {rope.text(key, "") for key in ("rope_type", "type")}
        factor = (rope.number("factor", default=1.0) or 1.0) if kinds & _STRETCHING else 1.0
        if "yarn" in kinds:
            stretched = rope.integer("original_max_position_embeddings", default=0)
            return max(own, min(LARGEST, int(stretched * factor)))
        if factor > 1 and "gemma3" not in text.text("model_type", ""):
            return min(LARGEST, int(own * factor))
    return own


def build_ir(
    config: Mapping[str, Any], name: str, *, assume: str | None = None, stored: Iterable[Tensor] | None = None
) -> ModelIR:
    """Build the IR that a config.json describes, dense in the config's dtype.

    `stored`: the tensors of the checkpoint's headers, which decide between layouts that a family is published in.
    `assume="full-attention"` reads an unknown architecture as a Llama-like decoder. Raises InputError naming the first thing
    not understood.
    """
    root = Config(config, name)
    architecture, head, notes = _architecture(root, assume)
    root = root.part("thinker_config") if root.has("thinker_config") else root
    text = root.text_part()
    if root.has("text_config") and not text.has("vocab_size"):
        text = root.part("text_config")
    dtype = root.dtype() or text.dtype()
    if dtype is None:
        dtype, notes = "BF16", (*notes, "config.json names no dtype: BF16 assumed")
    if not any(text.has(field) for field in _CONTEXT):
        notes = (*notes, f"config.json names no longest context: {_NO_CONTEXT} tokens, as vLLM takes it")
    m = Maker(dtype, None if stored is None else stored_names(stored))
    description = describe(root, architecture, m, Names())
    if head is not None:
        description = with_head(description, head, text, m)
    _refuse_empty(root, description)
    return ModelIR(
        name=name,
        architecture=architecture,
        model_type=root.text("model_type", ""),
        dtype=dtype,
        hidden_size=text.integer("hidden_size", "n_embd", "d_model"),
        vocab_size=text.integer("vocab_size", "padded_vocab_size"),
        max_context=_longest_context(text),
        stacks=description.stacks,
        outer=description.outer.linears,
        outer_tensors=description.outer.tensors,
        tied_embeddings=not any(linear.role == "head" for linear in description.outer.linears)
        or root.flag("tie_word_embeddings"),
        config=config,
        notes=notes,
    )


def names_context(config: Mapping[str, Any]) -> bool:
    """Return whether a config says how long a context the model is made for: where none does, what is taken holds nobody to it."""
    parts = (config, *(part for part in config.values() if isinstance(part, Mapping)))
    return any(field in part for part in parts for field in _CONTEXT)


def _refuse_empty(root: Config, description: Description) -> None:
    """Refuse sizes that leave a matrix no elements, such as more heads than the hidden size has."""
    blocks = [block for stack in description.stacks for block in stack.classes]
    linears = [linear for block in blocks for linear in block.linears] + list(description.outer.linears)
    tensors = [tensor for block in blocks for tensor in block.tensors] + list(description.outer.tensors)
    shapes = [(linear.name, (linear.out_features, linear.in_features)) for linear in linears]
    for name, shape in shapes + [(tensor.name, tensor.shape) for tensor in tensors]:
        if min(shape, default=1) < 1:
            raise root.refused(f"its sizes make {name!r} of shape {list(shape)}, which has no elements")


def other_head(config: Mapping[str, Any], name: str) -> str | None:
    """Name what a model is that has a known body and no head that makes tokens (`classifier`); None for one that generates."""
    architecture = next(iter(Config(config, name).names("architectures", default=())), None)
    found = None if architecture is None or architecture in _MODULE_OF else headed(architecture, _MODULE_OF)
    return found and found[1].what


def _architecture(root: Config, assume: str | None) -> tuple[str, Head | None, tuple[str, ...]]:
    """The architecture to read by, the head in place of a language model's, what to say of that."""
    architecture = next(iter(root.names("architectures", default=())), None)
    if architecture in _MODULE_OF:
        return architecture, None, ()
    if architecture is not None and (found := headed(architecture, _MODULE_OF)):
        body, head = found
        return body, head, (f"{architecture} is the body of {body}, served as a {head.what}",)
    if assume is None:
        raise _unknown(root, architecture)
    if assume not in _ASSUMPTIONS:
        raise InputError(f"unknown assumption {assume!r}", remedy=f"Use one of: {', '.join(_ASSUMPTIONS)}.")
    read_as = _ASSUMPTIONS[assume]
    return read_as, None, (f"{architecture} is not known; read as {read_as} because the spec assumes {assume}",)


def _registered() -> frozenset[str]:
    """What vLLM runs, by its registry."""
    table = json.loads(Path(__file__).with_name("vllm_registry.json").read_text())
    return frozenset(name for kind in ("text", "multimodal", "pooling") for name in table[kind])


def understood(kind: str) -> tuple[list[str], list[str]]:
    """List the architectures of one kind (`text`, `multimodal`, `pooling`) in vLLM's registry: those described here, and the others."""
    table = json.loads(Path(__file__).with_name("vllm_registry.json").read_text())[kind]
    return [name for name in table if name in _MODULE_OF], [name for name in table if name not in _MODULE_OF]


def _unknown(root: Config, architecture: str | None) -> InputError:
    if architecture is None:
        model_type = root.text("model_type", "")
        usual = TEXT_ARCHITECTURES.get(model_type)
        add = (
            f'"architectures": ["{usual}"] to it, as models of model_type {model_type} have'
            if usual
            else "its publisher's"
        )
        what = "config.json names no architecture" + (f" (model_type {model_type!r})" if model_type else "")
        return InputError(f"{root.name}: {what}", remedy=f"Add {add}; engines look for it, too.")
    if architecture in _registered():
        what = f"the architecture {architecture!r} is known to vLLM, and its shapes are not modelled here"
        return InputError(f"{root.name}: {what}", remedy=ESCAPE)
    close = nearest(architecture, _MODULE_OF)
    hint = f" Nearest known: {', '.join(close)}." if close else ""
    return InputError(f"{root.name}: the architecture {architecture!r} is not understood.{hint}", remedy=ESCAPE)
