"""Tiny models with random weights of the families that transformers has classes for, saved the way real ones are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

_BASE: dict[str, Any] = {
    "vocab_size": 300, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "initializer_range": 0.2, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
_MOE = {
    "num_experts": 4,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
    "decoder_sparse_step": 1,
}
_MLA = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_shared_experts": 1, "kv_lora_rank": 32,
    "q_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16, "first_k_dense_replace": 1, "n_group": 1,
    "topk_group": 1, "num_key_value_heads": 4, "head_dim": 8,
}  # fmt: skip
_HEADS = {"head_dim": 16}
_DELTA = {
    "shared_expert_intermediate_size": 32, "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 16,
    "linear_value_head_dim": 16, "num_hidden_layers": 4,
}  # fmt: skip
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {}, "mistral": {}, "qwen2": {}, "qwen3": _HEADS, "gemma": _HEADS, "gemma2": _HEADS | {"sliding_window": 16},
    "gemma3_text": _HEADS | {"sliding_window": 16}, "phi3": {}, "phi": {}, "starcoder2": {}, "falcon": {},
    "opt": {"ffn_dim": 128, "word_embed_proj_dim": 64}, "olmo2": {}, "cohere": {}, "cohere2": {}, "granite": {}, "internlm3": {},
    "smollm3": {"no_rope_layer_interval": 4}, "glm4": _HEADS, "exaone4": {"sliding_window": 16}, "nemotron": {}, "mixtral": _MOE,
    "qwen2_moe": _MOE | {"shared_expert_intermediate_size": 32}, "qwen3_moe": _MOE | _HEADS, "olmoe": _MOE, "phimoe": _MOE,
    "gpt_oss": _MOE | _HEADS | {"sliding_window": 16, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}},
    "minimax_m2": _MOE | _HEADS, "granitemoe": _MOE, "deepseek_v2": _MLA, "deepseek_v3": _MLA,
    "glm4_moe": _MLA | _HEADS,
    "qwen3_next": _MOE | _HEADS | _DELTA,
    "bloom": {"n_head": 4, "n_layer": 2}, "mpt": {"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 128},
    "gptj": {"n_embd": 64, "n_head": 4, "n_layer": 2, "rotary_dim": 8, "n_positions": 128, "n_inner": 128},
    "ministral3": _HEADS, "gemma4_text": _HEADS | {"sliding_window": 16, "hidden_size_per_layer_input": 0},
    "qwen3_5_text": _HEADS | _DELTA, "qwen3_5_moe_text": _MOE | _HEADS | _DELTA, "deepseek_v32": _MLA, "glm_moe_dsa": _MLA,
    "nemotron_h": {},
    "kimi_linear": _MOE | _MLA | {
        "num_hidden_layers": 4, "first_k_dense_replace": 0, "num_experts_per_token": 2, "num_shared_experts": 1, "q_lora_rank": None,
        "moe_layer_freq": 1, "linear_attn_config": {
            "full_attn_layers": [4], "kda_layers": [1, 2, 3], "head_dim": 16, "num_heads": 4, "short_conv_kernel_size": 4,
        },
    },
    "llama4_text": _MOE | _HEADS | {"intermediate_size_mlp": 128},
}  # fmt: skip


def save_tiny(family: str, folder: Path, **changes: Any) -> Any:
    """Save a tiny model of a family, its configuration as changed, into `folder`; returns it, for comparison."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    torch.manual_seed(0)
    config = CONFIG_MAPPING[family](**_BASE | FAMILIES[family] | changes)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for name, tensor in model.state_dict().items():
        if name in dict(model.named_buffers()):  # stored, but no parameter: what corrects a router's scores
            tensor.uniform_()
    model.save_pretrained(folder)
    return model


#: Models that see: what their text configurations have besides. Their decoders are walked with text alone.
_MROPE = {"rope_parameters": {"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}, "head_dim": 16}
SEEING: dict[str, dict[str, Any]] = {
    "qwen2_vl": _MROPE, "qwen2_5_vl": _MROPE, "qwen3_vl": _MROPE, "qwen3_vl_moe": _MROPE | _MOE, "gemma3": _HEADS, "llava": {},
    "llava_next": {}, "mistral3": _HEADS, "mllama": {}, "internvl": {}, "llama4": FAMILIES["llama4_text"],
    "qwen3_5": FAMILIES["qwen3_5_text"], "qwen3_5_moe": FAMILIES["qwen3_5_moe_text"],
}  # fmt: skip
_TOWER = {
    "depth": 2, "hidden_size": 64, "embed_dim": 64, "num_heads": 4, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "image_size": 28, "patch_size": 14, "out_hidden_size": 64,
}  # fmt: skip


def save_seeing(family: str, folder: Path) -> Any:
    """Save a tiny multimodal model of a family into `folder`; returns it, for comparison."""
    from transformers import CONFIG_MAPPING, AutoModelForImageTextToText

    torch.manual_seed(0)
    tokens = {"image_token_id": 290, "video_token_id": 291, "vision_start_token_id": 292, "vision_end_token_id": 293}
    config = CONFIG_MAPPING[family](
        text_config=_BASE | SEEING[family], vision_config=dict(_TOWER), image_token_index=290, **tokens
    )
    model: Any = AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    model.save_pretrained(folder)
    return model
