"""Small real checkpoints for the source tests, written by the safetensors library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from passes.formats.tensor import Tensor
from passes.ir.architectures import build_ir

TINY: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 96,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 128,
    "max_position_embeddings": 256, "tie_word_embeddings": False, "torch_dtype": "float16",
}  # fmt: skip


def tensors_of(config: dict[str, Any]) -> dict[str, Any]:
    """Random tensors of a dense float16 model."""
    rng = np.random.default_rng(0)
    return {t.name: rng.standard_normal(t.shape).astype(np.float16) for t in build_ir(config, "tiny").tensors()}


def write(folder: Path, config: dict[str, Any] = TINY, tensors: dict[str, Any] | None = None, shards: int = 1) -> Path:
    """A checkpoint folder: config, tokenizer stand-in, one file or several with an index."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    tensors = tensors_of(config) if tensors is None else tensors
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    names = sorted(tensors)
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: tensors[name] for name in names[shard::shards]}
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def write_described(folder: Path, config: dict[str, Any], tensors: list[Tensor]) -> Path:
    """A checkpoint of zeros with exactly these tensors, in dtypes that numpy does not have, too."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    header, position = {}, 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [position, position + tensor.bytes]
        }  # fmt: skip
        position += tensor.bytes
    raw = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw + bytes(position))
    return folder
