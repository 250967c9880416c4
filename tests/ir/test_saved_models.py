"""Tiny random models written by transformers itself open as folders, tensor for tensor, without any prior agreement on layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from passes.ir.state import ChunkedKV, FullKV, LatentKV, Recurrent, SharedKV, SlidingKV
from tests.ir.test_reconcile import opened

BASE: dict[str, Any] = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MLA = {"kv_lora_rank": 16, "q_lora_rank": 24, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16}
ROUTED = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_shared_experts": 1, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 1,
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LINEAR = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
    "linear_conv_kernel_dim": 4, "head_dim": 16,
    "layer_types": ["linear_attention", "linear_attention", "linear_attention", "full_attention"],
}  # fmt: skip
HYBRID = ["sliding_attention", "full_attention"] * 2

#: Class -> what it needs beyond BASE, and the cache kinds of its four layers.
FAMILIES: dict[str, tuple[str, dict[str, Any], list[type]]] = {
    "LlamaForCausalLM": ("llama", {"attention_bias": True, "mlp_bias": True}, [FullKV] * 4),
    "MistralForCausalLM": ("mistral", {"sliding_window": 32, "head_dim": 16}, [SlidingKV] * 4),
    "Qwen2ForCausalLM": ("qwen2", {"tie_word_embeddings": True}, [FullKV] * 4),
    "Qwen3ForCausalLM": ("qwen3", {"head_dim": 16}, [FullKV] * 4),
    "Gemma2ForCausalLM": ("gemma2", {"head_dim": 16, "sliding_window": 32}, [SlidingKV, FullKV] * 2),
    "Gemma3ForCausalLM": ("gemma3_text", {"head_dim": 16, "sliding_window": 32, "layer_types": HYBRID}, [SlidingKV, FullKV] * 2),
    "Phi3ForCausalLM": ("phi3", {"sliding_window": None}, [FullKV] * 4),
    "Starcoder2ForCausalLM": ("starcoder2", {"use_bias": True, "sliding_window": 32}, [SlidingKV] * 4),
    "FalconForCausalLM": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}, [FullKV] * 4),
    "OPTForCausalLM": ("opt", {"ffn_dim": 96, "word_embed_proj_dim": 64}, [FullKV] * 4),
    "MixtralForCausalLM": ("mixtral", EXPERTS, [FullKV] * 4),
    "Qwen3MoeForCausalLM": ("qwen3_moe", EXPERTS | {"head_dim": 16, "mlp_only_layers": [1]}, [FullKV] * 4),
    "GraniteMoeForCausalLM": ("granitemoe", EXPERTS, [FullKV] * 4),
    "GptOssForCausalLM": ("gpt_oss", EXPERTS | {"head_dim": 16, "sliding_window": 32, "layer_types": HYBRID}, [SlidingKV, FullKV] * 2),
    "Glm4MoeForCausalLM": ("glm4_moe", ROUTED | {"head_dim": 16}, [FullKV] * 4),
    "DeepseekV2ForCausalLM": ("deepseek_v2", MLA | ROUTED, [LatentKV] * 4),
    "DeepseekV3ForCausalLM": ("deepseek_v3", MLA | ROUTED | {"num_nextn_predict_layers": 0}, [LatentKV] * 4),
    "Qwen3NextForCausalLM": ("qwen3_next", EXPERTS | LINEAR | {"shared_expert_intermediate_size": 32}, [Recurrent] * 3 + [FullKV]),
    "NemotronHForCausalLM": (
        "nemotron_h",
        ROUTED | {"layers_block_type": ["mamba", "moe", "attention", "mlp"], "head_dim": 16, "mamba_num_heads": 4,
                  "mamba_head_dim": 16, "ssm_state_size": 8, "n_groups": 2, "moe_shared_expert_intermediate_size": 32},
        [Recurrent, type(None), FullKV, type(None)],
    ),
    "Llama4ForCausalLM": (
        "llama4_text",
        EXPERTS | {"intermediate_size_mlp": 96, "head_dim": 16, "interleave_moe_layer_step": 2, "attention_chunk_size": 64},
        [ChunkedKV] * 3 + [FullKV],
    ),
    "Gemma4ForCausalLM": (
        "gemma4_text",
        {"head_dim": 16, "global_head_dim": 32, "sliding_window": 32, "layer_types": HYBRID, "num_kv_shared_layers": 2,
         "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 128},
        [SlidingKV, FullKV, SharedKV, SharedKV],
    ),
}  # fmt: skip


@pytest.mark.parametrize("architecture", FAMILIES)
def test_a_saved_model_is_described_tensor_for_tensor(tmp_path: Path, architecture: str) -> None:
    import torch
    import transformers

    model_type, extra, kinds = FAMILIES[architecture]
    settings = transformers.AutoConfig.for_model(model_type, **(BASE | extra))
    torch.manual_seed(0)
    model = getattr(transformers, architecture)._from_config(settings, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    ir = opened(tmp_path).ir
    assert ir.architecture == architecture
    states = [ir.decoder.block(layer).state for layer in range(4)]
    assert [type(None) if type(state).__name__ == "NoState" else type(state) for state in states] == kinds
