"""The oracle of the architecture tests: what transformers' own classes would write, from a config on the meta device."""

from __future__ import annotations

import copy
from typing import Any

#: Where the catalog's architecture has another class name in transformers, or another model_type.
_CLASSES = {
    "KimiK25ForConditionalGeneration": "Kimi_K25ForConditionalGeneration",
    "PhiMoEForCausalLM": "PhimoeForCausalLM",
    "BailingMoeV3ForCausalLM": "BailingHybridForCausalLM",
    "MPTForCausalLM": "MptForCausalLM",
    "LightOnOCRForConditionalGeneration": "LightOnOcrForConditionalGeneration",
    "VoxtralRealtimeGeneration": "VoxtralRealtimeForConditionalGeneration",
    "HCXVisionV2ForCausalLM": "HyperCLOVAXVisionV2ForConditionalGeneration",
    "Qwen2_5OmniForConditionalGeneration": "Qwen2_5OmniThinkerForConditionalGeneration",
    "Qwen3OmniMoeForConditionalGeneration": "Qwen3OmniMoeThinkerForConditionalGeneration",
}
_MODEL_TYPES = {"kimi_k2": "deepseek_v3"}
_LAYERS, _EXPERTS = 8, 4


def default_config(architecture: str, changes: dict[str, Any]) -> dict[str, Any]:
    """The default config of the architecture's class in transformers, with some fields changed."""
    import transformers

    kind = getattr(transformers, _CLASSES.get(architecture, architecture))
    values: dict[str, Any] = kind.config_class(**changes).to_dict()
    return {key: value for key, value in values.items() if value is not None} | {
        "architectures": [architecture],
        "dtype": "bfloat16",
    }


def reduced(config: dict[str, Any]) -> dict[str, Any]:
    """The same config with few layers and few experts; widths stay."""
    small = copy.deepcopy(config)
    for part in (small, small.get("text_config"), small.get("vision_config"), small.get("audio_config")):
        if part:
            _reduce(part)
    for field in ("quantization_config", "hf_quant_config"):
        small.pop(field, None)
        small.get("text_config", {}).pop(field, None)
    return small


def _reduce(part: dict[str, Any]) -> None:
    layers = next(
        (part[f] for f in ("num_hidden_layers", "n_layer", "depth", "vt_num_hidden_layers") if f in part), None
    )
    if layers is None:
        layers = len(part.get("layers_block_type", []))
    kept = min(layers, _LAYERS)
    for field, value in list(part.items() if layers else ()):
        if isinstance(value, list) and len(value) in (layers, layers + 1) and field != "deepstack_visual_indexes":
            part[field] = value[:kept]
    for field in ("num_hidden_layers", "n_layer", "depth", "vt_num_hidden_layers"):
        if field in part:
            part[field] = kept
    if "hybrid_override_pattern" in part:
        part["hybrid_override_pattern"] = part["hybrid_override_pattern"][:kept]
    for field in ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"):
        if part.get(field):
            part[field] = _EXPERTS
    for field in ("n_group", "topk_group", "num_expert_group"):
        if part.get(field):
            part[field] = 1
    for field in ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "experts_per_token"):
        if part.get(field):
            part[field] = min(part[field], 2)
    if "first_k_dense_replace" in part:
        part["first_k_dense_replace"] = min(part["first_k_dense_replace"], 2)
    if "num_kv_shared_layers" in part:
        part["num_kv_shared_layers"] = 2 if part["num_kv_shared_layers"] else 0
    if "cross_attention_layers" in part:
        part["cross_attention_layers"] = [i for i in part["cross_attention_layers"] if i < kept]
    if "linear_attn_config" in part:
        linear = part["linear_attn_config"]
        for field in ("full_attn_layers", "kda_layers"):
            linear[field] = [i for i in linear[field] if i <= kept]
    if "sparse_attention_config" in part:
        sparse = part["sparse_attention_config"]
        sparse.update({f: v[:kept] for f, v in sparse.items() if isinstance(v, list)})


def written_by_transformers(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors that `save_pretrained` would write for a randomly initialised model of this config."""
    import torch
    import transformers
    from transformers.core_model_loading import revert_weight_conversion

    values = {key: value for key, value in config.items() if key != "auto_map"}
    model_type = values.pop("model_type")
    settings = transformers.AutoConfig.for_model(_MODEL_TYPES.get(model_type, model_type), **values)
    architecture = config["architectures"][0]
    kind = getattr(transformers, _CLASSES.get(architecture, architecture))
    with torch.device("meta"):
        model = kind._from_config(settings, dtype=torch.bfloat16)
    model.tie_weights()
    tied = set(model.all_tied_weights_keys)
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    return {name: tuple(tensor.shape) for name, tensor in revert_weight_conversion(model, state).items()}
