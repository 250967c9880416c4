"""Tiny models of every cache kind: real configs of the bundled catalog, cut down in width and depth, never in cache geometry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from passes import chain
from passes.base import Pass
from passes.ir import catalog
from passes.ir.architectures import build_ir
from passes.ir.model import ModelIR
from passes.prune.depth import DepthPrune
from passes.prune.experts import ExpertPrune
from passes.prune.width import WidthPrune

#: What makes a model small without touching its caches: vocabulary, feed-forward and experts.
_SMALL: dict[str, int] = {
    "vocab_size": 512, "intermediate_size": 256, "moe_intermediate_size": 64, "intermediate_size_mlp": 256,
    "shared_expert_intermediate_size": 64, "moe_shared_expert_intermediate_size": 64, "n_routed_experts": 8, "num_experts": 8,
    "num_local_experts": 8, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1, "vocab_size_per_layer_input": 512,
    "hidden_size_per_layer_input": 64,
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One model: the catalog's entry it is cut from, and what is set besides. `text_only` takes a multimodal model's decoder.

    `arguments` go to the engine; `depth` cuts lists that name one kind a layer along with the number of layers; `pruned`: passes that take
    something out of it.
    """

    name: str
    source: str
    depth: int
    changes: Mapping[str, Any] = field(default_factory=dict)
    text_only: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    pruned: tuple[Pass, ...] = ()

    @property
    def ir(self) -> ModelIR:
        """What is left of the tiny model; its config is the config.json that the engine reads."""
        return chain.rewrite(build_ir(self._config, self.name), self.pruned)

    @property
    def _config(self) -> dict[str, Any]:
        full = catalog.entry(self.source).config
        if self.text_only:
            full = full["text_config"] | {"architectures": [self.text_only]}
        small = {key: value for key, value in full.items() if key != "quantization_config"}
        small |= {key: value for key, value in _SMALL.items() if key in small}
        layers = small["num_hidden_layers"]
        for key, value in small.items():
            if isinstance(value, list) and len(value) == layers:
                small[key] = value[: self.depth]
        return (
            small
            | {"num_hidden_layers": self.depth, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
            | dict(self.changes)
        )


_HEADS = {"hidden_size": 512, "num_attention_heads": 8}

CASES = (
    Case(
        "grouped-query (Llama 3.1)",
        "meta-llama/Llama-3.1-8B-Instruct",
        3,
        {**_HEADS, "num_key_value_heads": 2, "head_dim": 64},
    ),
    Case("three KV heads (SmolLM2)", "HuggingFaceTB/SmolLM2-135M-Instruct", 5),
    Case("fp8 cache (SmolLM2)", "HuggingFaceTB/SmolLM2-135M-Instruct", 5, arguments={"kv_cache_dtype": "fp8"}),
    Case("one KV head (Falcon)", "tiiuae/falcon-7b", 2, _HEADS, arguments={"max_model_len": 2048}),
    Case("learned positions (OPT)", "facebook/opt-125m", 2, {"ffn_dim": 256}, arguments={"max_model_len": 2048}),
    Case(
        "window in every layer (Mistral 0.1)",
        "mistralai/Mistral-7B-v0.1",
        3,
        {**_HEADS, "num_key_value_heads": 2, "sliding_window": 1024},
    ),
    Case("alternating windows (Gemma 2)", "google/gemma-2-2b", 5, {"hidden_size": 256, "sliding_window": 1024}),
    Case("five windows to one full (Gemma 3)", "google/gemma-3-1b-it", 8, {"hidden_size": 256}),
    Case("windows with sinks (gpt-oss)", "openai/gpt-oss-20b", 4, {"hidden_size": 256}),
    Case(
        "fused projections (Phi-3)",
        "microsoft/Phi-3-mini-4k-instruct",
        2,
        {"hidden_size": 384, "num_attention_heads": 4, "num_key_value_heads": 4},
    ),
    Case(
        "chunked (Llama 4)",
        "meta-llama/Llama-4-Scout-17B-16E-Instruct",
        8,
        {**_HEADS, "num_key_value_heads": 2, "head_dim": 64, "attention_chunk_size": 1024},
        "Llama4ForCausalLM",
    ),
    Case(
        "latent (DeepSeek V2)",
        "deepseek-ai/DeepSeek-V2-Lite-Chat",
        3,
        {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 4},
    ),
    Case(
        "latent (DeepSeek V3)",
        "deepseek-ai/DeepSeek-V3",
        4,
        {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": 128},
    ),
    Case("experts (Qwen3 MoE)", "Qwen/Qwen3-30B-A3B", 3, {"hidden_size": 256}),
    Case("experts (Mixtral)", "mistralai/Mixtral-8x7B-v0.1", 2, {**_HEADS, "num_key_value_heads": 4}),
    Case("gated delta net (Qwen3-Next)", "Qwen/Qwen3-Next-80B-A3B-Instruct", 8, {"hidden_size": 256}),
    Case("Mamba 2 (Nemotron-H)", "nvidia/NVIDIA-Nemotron-Nano-9B-v2", 56, {"hidden_size": 256, "mamba_num_heads": 16}),
    Case("shared KV (Gemma 4)", "google/gemma-4-E4B-it", 42, {"hidden_size": 256}, "Gemma4ForCausalLM"),
    Case(
        "three windows to one full (EXAONE 4)",
        "LGAI-EXAONE/EXAONE-4.0-32B",
        6,
        {**_HEADS, "num_key_value_heads": 2, "head_dim": 64},
    ),
    Case("post-norm (OLMo 2)", "allenai/OLMo-2-1124-7B-Instruct", 2, {**_HEADS, "num_key_value_heads": 8}),
    Case("other widths in windows (MiMo V2)", "XiaomiMiMo/MiMo-V2-Flash", 8, {"hidden_size": 256}),
    Case(
        "two of three KV heads, 192 of 256 channels (SmolLM2)",
        "HuggingFaceTB/SmolLM2-135M-Instruct",
        5,
        pruned=(WidthPrune(192, 2, "magnitude"),),
    ),
    Case(
        "without a window and the full layer (Gemma 3)",
        "google/gemma-3-1b-it",
        12,
        {"hidden_size": 256},
        pruned=(DepthPrune(2, (4, 5)),),
    ),
    Case("half of the experts (Qwen3 MoE)", "Qwen/Qwen3-30B-A3B", 3, {"hidden_size": 256}, pruned=(ExpertPrune(4),)),
)
