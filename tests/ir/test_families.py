"""Families without a config in the catalog: the description of transformers' own default config, reduced, equals what its class writes."""

from __future__ import annotations

import re
from typing import Any

import pytest

from passes.errors import InputError
from passes.ir.architectures import build_ir, understood
from tests.ir.reference import default_config, reduced, written_by_transformers

#: Architecture and what is set in the class's default config, so that every kind of layer is there.
FAMILIES: dict[str, dict[str, Any]] = {
    "ApertusForCausalLM": {},
    "ArceeForCausalLM": {},
    "CwmForCausalLM": {},
    "Ernie4_5ForCausalLM": {"use_bias": True},
    "GraniteSWAForCausalLM": {},
    "HeliumForCausalLM": {},
    "HunYuanDenseV1ForCausalLM": {"head_dim": 128},
    "HyperCLOVAXForCausalLM": {},
    "Jais2ForCausalLM": {},
    "SeedOssForCausalLM": {"num_hidden_layers": 8},
    "StableLmForCausalLM": {"use_qkv_bias": True},
    "AfmoeForCausalLM": {"num_key_value_heads": 4},
    "Cohere2MoeForCausalLM": {
        "num_shared_experts": 2, "mlp_layer_types": ["dense", "sparse"] * 4, "num_hidden_layers": 8, "prefix_dense_intermediate_size": 96,
    },
    "Ernie4_5_MoeForCausalLM": {},
    "ExaoneMoeForCausalLM": {"num_key_value_heads": 8, "num_shared_experts": 2},
    "FlexOlmoForCausalLM": {},
    "HYV3ForCausalLM": {},
    "HunYuanMoEV1ForCausalLM": {"head_dim": 128, "num_experts": 4},
    "LagunaForCausalLM": {"num_hidden_layers": 4, "num_attention_heads_per_layer": [48, 64, 64, 48], "gating": "per-element"},
    "MellumForCausalLM": {},
    "SolarOpenForCausalLM": {},
    "Glm4MoeLiteForCausalLM": {},
    "AXK1ForCausalLM": {"num_hidden_layers": 4},
    "MiniCPM3ForCausalLM": {},
    "YoutuForCausalLM": {},
    "MambaForCausalLM": {},
    "FalconMambaForCausalLM": {},
    "Mamba2ForCausalLM": {"num_hidden_layers": 4},
    "JambaForCausalLM": {"attn_layer_period": 4, "attn_layer_offset": 2},
    "GraniteMoeHybridForCausalLM": {"num_hidden_layers": 4, "layer_types": ["mamba", "mamba", "attention", "mamba"]},
    "GraniteMoeSharedForCausalLM": {"shared_intermediate_size": 512},
    "BambaForCausalLM": {"attn_layer_indices": [2]},
    "Lfm2ForCausalLM": {"num_hidden_layers": 4, "layer_types": ["conv", "conv", "full_attention", "conv"]},
    "Lfm2MoeForCausalLM": {"num_hidden_layers": 4, "layer_types": ["conv", "conv", "full_attention", "conv"]},
    "OlmoHybridForCausalLM": {"linear_value_head_dim": 96},
    "GPT2LMHeadModel": {},
    "GPTBigCodeForCausalLM": {},
    "GPTNeoXForCausalLM": {},
    "Gemma3nForCausalLM": {"num_hidden_layers": 10, "num_kv_shared_layers": 4},
}  # fmt: skip


@pytest.mark.parametrize("architecture", FAMILIES)
def test_names_and_shapes_are_those_of_transformers(architecture: str) -> None:
    config = reduced(default_config(architecture, FAMILIES[architecture]))
    described = {tensor.name: tensor.shape for tensor in build_ir(config, architecture).tensors()}
    written = written_by_transformers(config)
    if architecture == "GPT2LMHeadModel":  # its matrices lie transposed in the files
        written = {name: shape[::-1] if ".h." in name else shape for name, shape in written.items()}
    if (
        architecture == "OlmoHybridForCausalLM"
    ):  # transformers' renaming of the linear layers' norms catches the other layers, too
        name = re.compile(r"(layers\.[37]\.)feedforward_layer_norm")
        written = {name.sub(r"\1post_attention_layernorm", key): shape for key, shape in written.items()}
    assert {name: shape for name, shape in described.items() if not re.match(r"mtp\.", name)} == written


def test_most_of_what_vllm_runs_is_understood_and_the_rest_is_refused_by_name() -> None:
    text, others = understood("text")
    assert len(text) >= 90
    with pytest.raises(InputError, match=f"{others[0]}.*known to vLLM, and its shapes are not modelled here"):
        build_ir({"architectures": [others[0]], "hidden_size": 8}, "some/model")
