"""Rotary values stand where ExLlamaV2's own config class reads them, and nothing is made up."""

from __future__ import annotations

from typing import Any

import pytest

from passes.ir.quant_config.exl2 import exl2_config, with_rotary_values

_LINEAR = {"rope_type": "linear", "factor": 8.0}
_LONG = {"rope_type": "longrope", "long_factor": [1.0], "short_factor": [1.0], "original_max_position_embeddings": 4096}


@pytest.mark.parametrize(
    ("config", "added"),
    [
        ({}, {}),
        ({"rope_theta": 5e5}, {}),
        ({"rope_parameters": {"rope_type": "default"}}, {}),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, {"rope_theta": 5e5}),
        ({"rope_parameters": _LINEAR | {"rope_theta": 5e5}}, {"rope_theta": 5e5, "rope_scaling": _LINEAR}),
        ({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 5e5}}, {}),
        ({"rope_scaling": None, "rope_parameters": _LINEAR}, {"rope_scaling": _LINEAR}),
        # GLM 4
        (
            {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            {"rope_theta": 1e4, "partial_rotary_factor": 0.5},
        ),
        # Phi 3
        ({"rope_parameters": _LONG}, {"rope_scaling": _LONG, "original_max_position_embeddings": 4096}),
        # a dict for every kind of layer
        (
            {"rope_parameters": {"sliding_attention": {"rope_theta": 1e4}, "full_attention": _LINEAR | {"rope_theta": 1e6}}},
            {"rope_theta": 1e6, "rope_scaling": _LINEAR},
        ),
        ({"rope_parameters": {"sliding_attention": {"rope_theta": 1e4}}}, {}),
        # Qwen2-VL
        (
            {"rope_parameters": {"rope_type": "default", "type": "default", "mrope_section": [16, 24, 24]}},
            {"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}},
        ),
    ],
)  # fmt: skip
def test_rotary_values_are_hoisted(config: dict[str, Any], added: dict[str, Any]) -> None:
    assert with_rotary_values(config) == config | added


def test_they_stand_in_the_part_that_has_them() -> None:
    text = {"rope_parameters": _LINEAR | {"rope_theta": 1e9, "partial_rotary_factor": 0.5}}
    vision = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
    assert with_rotary_values({"text_config": text, "vision_config": vision}) == {
        "text_config": text | {"rope_theta": 1e9, "rope_scaling": _LINEAR},
        "vision_config": vision | {"rope_theta": 1e4},
        "partial_rotary_factor": 0.5,
    }


@pytest.mark.parametrize("family", ["llama", "glm4", "gemma3", "mistral3", "qwen2_vl", "phi3"])
def test_what_transformers_saves_is_found(family: str) -> None:
    from transformers import CONFIG_MAPPING

    saved = CONFIG_MAPPING[family]().to_diff_dict()
    whole = exl2_config(saved, 4.0, 6, 1, 1, "text")
    part = whole["text_config"] if family in ("gemma3", "mistral3", "qwen2_vl") else whole
    rope = part["rope_parameters"]
    assert part["rope_theta"] == rope.get("full_attention", rope)["rope_theta"]
    assert whole.get("partial_rotary_factor") == (0.5 if family == "glm4" else rope.get("partial_rotary_factor"))
