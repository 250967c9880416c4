"""Families without a config in the catalog: the description of transformers' own default config, reduced, equals what its class writes."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from passes.errors import InputError
from passes.ir import catalog
from passes.ir.architectures import build_ir, understood
from passes.ir.architectures.families import templates
from tests.ir.reference import default_config, reduced, written_by_transformers

TINY = {
    "model_type": "exaone4", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 128, "max_position_embeddings": 256, "sliding_window": 64, "sliding_window_pattern": "LLLG",
}  # fmt: skip

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
    "BailingMoeV3ForCausalLM": {"num_hidden_layers": 6, "gated_attention_proj_granularity_type": "head_wise", "num_mtp_layers": 0},
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
    "Cohere2ForCausalLM": {},
    "Llama4ForCausalLM": {},
    "Ministral3ForCausalLM": {},
    "Qwen3_5ForCausalLM": {},
    "BertModel": {},
    "BertForSequenceClassification": {},
    "ModernBertModel": {},
    "ModernBertForSequenceClassification": {},
    "RobertaModel": {},
    "RobertaForSequenceClassification": {},
    "XLMRobertaModel": {},
    "XLMRobertaForSequenceClassification": {},
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
    if architecture == "BailingMoeV3ForCausalLM":  # and its renaming of what attends catches what keeps a state, too
        written = {
            other if (other := name.replace(".dense.", ".o_proj.")) in described else name: shape
            for name, shape in written.items()
        }
    assert {name: shape for name, shape in described.items() if not re.match(r"mtp\.", name)} == written


#: Multimodal architectures whose towers come from templates, and their classes where those have other names.
TEMPLATED = [
    json.loads(line)["architecture"]
    for line in (Path(templates.__file__).with_name("towers.jsonl")).read_text().splitlines()
]


@pytest.mark.slow
@pytest.mark.parametrize("architecture", TEMPLATED)
def test_towers_and_decoder_are_those_of_transformers(architecture: str) -> None:
    config = reduced(default_config(architecture, {}))
    config.get("text_config", {}).pop("per_layer_config", None)
    described = {
        tensor.name.removeprefix("thinker."): tensor.shape for tensor in build_ir(config, architecture).tensors()
    }
    assert described == written_by_transformers(config)


def test_gemma_4_without_towers_is_that_of_transformers() -> None:
    config = reduced(default_config("Gemma4UnifiedForConditionalGeneration", {}))
    config["text_config"].pop("per_layer_config")
    config["text_config"] |= {
        "global_head_dim": 512,
        "layer_types": [*config["text_config"]["layer_types"][:-1], "full_attention"],
    }
    described = {tensor.name: tensor.shape for tensor in build_ir(config, "unified").tensors()}
    assert described == written_by_transformers(config)


#: Models whose counted weights are those that their makers, or readers of their files, publish (10^9).
COUNTED = {
    "Qwen/Qwen3.8-2.4T-A95B": 2446, "arcee-ai/Trinity-Large-Thinking": 398.6, "poolside/Laguna-S-2.1": 117.56,
    "poolside/Laguna-M.1": 225.8,
    "google/gemma-4-E2B-it": 5.1, "google/gemma-4-12B-it": 11.96, "nvidia/NVIDIA-Nemotron-3-Nano-4B-BF16": 3.97,
    "internlm/Intern-S1": 240.7, "inclusionAI/Ling-3.0-flash": 127.49,
}  # fmt: skip


@pytest.mark.parametrize("model", COUNTED)
def test_weights_of_recalled_models_are_as_many_as_published(model: str) -> None:
    tensors = build_ir(catalog.entry(model).config, model).tensors()
    assert sum(math.prod(tensor.shape) for tensor in tensors) / 1e9 == pytest.approx(COUNTED[model], rel=2e-3)


def test_a_tower_that_its_template_does_not_know_is_refused() -> None:
    made = templates.template("Exaone4_5_ForConditionalGeneration")
    [field] = [path for path in made["pinned"] if path.endswith("num_heads")]
    config = {
        "architectures": ["Exaone4_5_ForConditionalGeneration"],
        "dtype": "bfloat16",
        "text_config": TINY,
        "vision_config": {"num_heads": 3},
    }
    with pytest.raises(InputError, match=f"{field} 3 is not known here"):
        build_ir(config, "some/model")


def test_opengvlab_s_own_names_hold_the_weights_of_the_converted_model() -> None:
    converted = catalog.entry("OpenGVLab/InternVL3-8B-hf").config
    vision = converted["vision_config"] | {"qkv_bias": True, "qk_normalization": False, "norm_type": "layer_norm"}
    vision |= {field: vision[field][0] for field in ("image_size", "patch_size") if isinstance(vision.get(field), list)}
    own = {
        "architectures": ["InternVLChatModel"],
        "dtype": "bfloat16",
        "llm_config": converted["text_config"],
        "vision_config": vision,
    }
    assert build_ir(own, "own").weights == build_ir(converted, "converted").weights


def test_every_family_that_transformers_builds_is_held_against_its_class() -> None:
    """What is described and stands in no test is a class of a repository's own code."""
    import transformers

    named = {
        name for model in catalog.ids() for name in catalog.entry(model).config.get("architectures") or ()
    } | FAMILIES.keys()
    described = {name for kind in ("text", "multimodal", "pooling") for name in understood(kind)[0]}
    assert (
        {name for name in described - named - set(TEMPLATED) if hasattr(transformers, name)}
        == {
            "Gemma4ForCausalLM",  # held as the decoder of the multimodal class: its own class writes another config than is published
        }
    )


def test_most_of_what_vllm_runs_is_understood_and_the_rest_is_refused_by_name() -> None:
    text, others = understood("text")
    assert len(text) >= 90
    assert len(understood("multimodal")[0]) >= 60
    assert understood("pooling")[0]
    with pytest.raises(InputError, match=f"{others[0]}.*known to vLLM, and its shapes are not modelled here"):
        build_ir({"architectures": [others[0]], "hidden_size": 8}, "some/model")
