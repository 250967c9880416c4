"""Makes passes/ir/architectures/defaults.json: class defaults of nested configs, as the installed transformers has them.

Usage: python -m benchmarks.make_config_defaults

A config.json of a multimodal model leaves out of its nested parts (`text_config`, `vision_config`) whatever equals the default of
the config class (PretrainedConfig.to_diff_dict), so these defaults are part of what such a file says.
"""

from __future__ import annotations

import json
from pathlib import Path

import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

TARGET = Path(__file__).resolve().parent.parent / "passes" / "ir" / "architectures" / "defaults.json"

MODEL_TYPES = (
    "llama", "mistral", "ministral3", "mistral4", "qwen2", "qwen3", "granite", "phi3", "gemma3_text", "gemma4_text", "llama4_text",
    "mllama_text_model", "qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text", "qwen3_vl_moe_text", "qwen3_5_text",
    "qwen3_5_moe_text", "deepseek_v2", "deepseek_v3", "clip_vision_model", "siglip_vision_model", "pixtral", "qwen2_vl_vision",
    "qwen2_5_vl_vision", "qwen3_vl_vision", "qwen3_vl_moe_vision", "qwen3_5_vision", "qwen3_5_moe_vision", "internvl_vision",
    "llama4_vision_model", "mllama_vision_model", "gemma4_vision", "gemma4_audio", "minimax_m3_vl_vision",
)  # fmt: skip

#: Fields of every config class that say nothing about shapes.
GENERIC = set(transformers.PretrainedConfig().to_dict())


def main() -> None:
    table = {}
    for model_type in MODEL_TYPES:
        if model_type not in CONFIG_MAPPING:
            print(f"not in this transformers: {model_type}")
            continue
        values = CONFIG_MAPPING[model_type]().to_dict()
        table[model_type] = {
            key: value
            for key, value in sorted(values.items())
            if key not in GENERIC and not key.endswith("_token_id") and isinstance(value, (int, bool))
        }
    document = {"source": f"config classes of transformers {transformers.__version__}", "defaults": table}
    TARGET.write_text(json.dumps(document, indent=1) + "\n")
    print(f"{TARGET}: {len(table)} config classes")


if __name__ == "__main__":
    main()
