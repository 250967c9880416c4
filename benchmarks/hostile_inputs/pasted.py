"""Servers' commands, pasted: `check -- vllm serve MODEL FLAGS`, with odd flags, values and config files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from random import Random

from benchmarks.hostile_inputs.mutate import broken, mutated
from benchmarks.hostile_inputs.surfaces import NAMES, NUMBERS, command
from targets.engines.vllm.arguments.table import flag_names

_GOOD = (
    ["vllm", "serve", "Qwen/Qwen2.5-7B-Instruct", "--max-model-len", "32k", "--tensor-parallel-size", "2", "--enable-lora", "--max-loras", "4"],
    ["vllm", "serve", "google/gemma-3-27b-it", "--limit-mm-per-prompt", '{"image": 2}', "--gpu-memory-utilization=0.9", "-tp", "2"],
    ["python", "-m", "vllm.entrypoints.openai.api_server", "--model", "deepseek-ai/DeepSeek-V3", "--enable-expert-parallel", "-tp=8"],
    ["docker", "run", "--gpus", "all", "vllm/vllm-openai:v0.26.0", "--model", "Qwen/Qwen3-8B", "--kv-cache-dtype", "fp8", "--dtype", "half"],
    ["VLLM_USE_V1=1", "vllm", "serve", "meta-llama/Llama-3.1-8B-Instruct", "--speculative-config",
     '{"method": "ngram", "num_speculative_tokens": 4}', "--compilation-config", '{"level": 3, "cudagraph_capture_sizes": [1, 2, 4]}'],
    ["vllm", "serve", "Qwen/Qwen3-8B", "--hf-overrides", '{"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}', "--config", "CONFIG"],
)  # fmt: skip
_CONFIG = {"max-model-len": 8192, "tensor-parallel-size": 1, "enforce-eager": True, "served-model-name": ["a", "b"]}
_JSON = (
    {"method": "ngram", "num_speculative_tokens": 4}, {"image": 2, "video": {"count": 1}}, {"level": 3, "cudagraph_capture_sizes": [1, 2]},
    {"num_hidden_layers": 2, "text_config": {"hidden_size": 64}},
)  # fmt: skip


def pasted(rng: Random, folder: Path) -> tuple[Callable[[], object], str]:
    """A server's command with some of its words changed."""
    words = list(rng.choice(_GOOD))
    for _ in range(rng.randint(1, 4)):
        at, how = rng.randrange(len(words)), rng.random()
        if how < 0.3:
            words[at] = _value(rng)
        elif how < 0.4:
            del words[at]
        elif how < 0.5:
            words.insert(at, words[rng.randrange(len(words))])
        else:
            flag = f"--{rng.choice(_NAMED)}"
            words += rng.choice(
                [[flag], [flag, _value(rng)], [f"{flag}={_value(rng)}"], [flag, _value(rng), _value(rng)]]
            )
        if not words:
            break
    if "CONFIG" in words:
        config = folder / "vllm.yaml"
        text = json.dumps(mutated(rng, _CONFIG))
        config.write_bytes((broken(rng, text) if rng.random() < 0.3 else text).encode("utf-8", "surrogatepass"))
        words = [str(config) if word == "CONFIG" else word for word in words]
    card = rng.choice([["--gpu", "H100"], ["--gpu", "2xL4"], ["--gpu", "T4"], ["--gpu", "H100", "--json"]])
    arguments = ["check", *card, "--", *rng.choice([words, words, [" ".join(words)]])]
    return lambda: command(arguments), repr(arguments)


_NAMED = sorted(flag_names())


def _value(rng: Random) -> str:
    """A value that no flag, or another one, has."""
    how = rng.random()
    if how < 0.35:
        return rng.choice(NUMBERS)
    if how < 0.65:
        return rng.choice(NAMES)
    text = json.dumps(mutated(rng, rng.choice(_JSON)))
    return broken(rng, text) if rng.random() < 0.2 else text
