"""A GGUF header in Hugging Face's words: config.json fields, tensor names; and its dequantization into a folder."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from passes.ir.gguf import GgufHeader, LongArray
from passes.ir.model import ModelIR
from passes.reason import DoesNotFitError, InputError

#: GGUF architecture -> Hugging Face class and model_type. llama.cpp's `llama` covers Mistral and Mixtral, too.
_ARCHITECTURES = {
    "llama": ("LlamaForCausalLM", "llama"),
    "qwen2": ("Qwen2ForCausalLM", "qwen2"),
    "qwen3": ("Qwen3ForCausalLM", "qwen3"),
    "gemma2": ("Gemma2ForCausalLM", "gemma2"),
    "gemma3": ("Gemma3ForCausalLM", "gemma3_text"),
    "starcoder2": ("Starcoder2ForCausalLM", "starcoder2"),
}

#: GGUF metadata key, without the architecture -> config.json field.
_FIELDS = {
    "block_count": "num_hidden_layers", "context_length": "max_position_embeddings", "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size", "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads", "attention.key_length": "head_dim", "attention.sliding_window": "sliding_window",
    "rope.freq_base": "rope_theta", "attention.layer_norm_rms_epsilon": "rms_norm_eps", "vocab_size": "vocab_size",
}  # fmt: skip

_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_BLOCK = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
_BLOCK_OF = {
    "gemma2": _BLOCK | {
        "post_attention_norm": "post_attention_layernorm", "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    },
    "starcoder2": _BLOCK | {"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"},
}  # fmt: skip
_BLOCK_OF["gemma3"] = _BLOCK_OF["gemma2"]

#: Tables that llama.cpp stores and Hugging Face computes.
_IGNORED = re.compile(r"rope_freqs\.weight|rope_factors_(long|short)\.weight")


def hf_config(header: GgufHeader, name: str) -> dict[str, Any]:
    """The config.json that a GGUF header amounts to."""
    architecture = header.metadata.get("general.architecture")
    if architecture not in _ARCHITECTURES or any("_exps." in tensor for tensor in header.tensors):
        what = f"{architecture} with experts" if architecture in _ARCHITECTURES else repr(architecture)
        raise InputError(
            f"{name}: the GGUF architecture {what} is not understood",
            remedy=f"Use the safetensors version of the model. GGUF is read for: {', '.join(_ARCHITECTURES)} (dense).",
        )
    hf_class, model_type = _ARCHITECTURES[architecture]
    config: dict[str, Any] = {"architectures": [hf_class], "model_type": model_type, "torch_dtype": "bfloat16"}
    for key, field in _FIELDS.items():
        if (value := header.metadata.get(f"{architecture}.{key}")) is not None:
            config[field] = value
    tokens = header.metadata.get("tokenizer.ggml.tokens")
    if "vocab_size" not in config and tokens is not None:
        config["vocab_size"] = tokens.length if isinstance(tokens, LongArray) else len(tokens)
    config["tie_word_embeddings"] = "output.weight" not in header.tensors
    config["attention_bias"] = "blk.0.attn_q.bias" in header.tensors
    if hf_class == "Starcoder2ForCausalLM":
        config["use_bias"] = config["attention_bias"]
    return config


def check_tensors(header: GgufHeader, ir: ModelIR) -> None:
    """Every tensor of the file must be one of the description, with its shape, and the other way round."""
    architecture = header.metadata["general.architecture"]
    expected = {tensor.name: tensor.shape for tensor in ir.tensors()}
    for tensor in header.tensors.values():
        if _IGNORED.fullmatch(tensor.name):
            continue
        name = _hf_name(tensor.name, _BLOCK_OF.get(architecture, _BLOCK))
        if name is None or expected.get(name) != tensor.shape:
            known = f"expected {list(expected[name])}" if name in expected else "it is not understood"
            raise InputError(
                f"{ir.name}: GGUF tensor {tensor.name!r} of shape {list(tensor.shape)}: {known}",
                remedy="Use the safetensors version of the model.",
            )
        del expected[name]
    if expected:
        raise InputError(f"{ir.name}: the GGUF file lacks {next(iter(expected))!r}", remedy="Download the file again.")


def _hf_name(name: str, block: Mapping[str, str]) -> str | None:
    stem, _, suffix = name.rpartition(".")
    if match := re.fullmatch(r"blk\.(\d+)\.(.+)", stem):
        return f"model.layers.{match[1]}.{block[match[2]]}.{suffix}" if match[2] in block else None
    return f"{_OUTER[stem]}.{suffix}" if stem in _OUTER else None


def dequantize(path: Path, ir: ModelIR, digest: str, work: Path) -> Path:
    """A folder inside `work` with config, tokenizer and BF16 safetensors of a GGUF file; made once, appears whole.

    Raises DoesNotFitError when the disk lacks room, InputError when transformers cannot read the file.
    """
    target = work / f"{path.stem}-{digest[:12]}"
    if target.is_dir():
        return target
    work.mkdir(parents=True, exist_ok=True)
    free, need = shutil.disk_usage(work).free, int(ir.tensor_bytes * 1.02) + 64 * 2**20
    if free < need:
        raise DoesNotFitError(
            f"{work}: {free / 2**30:.1f} GiB free, dequantizing {path.name} needs {need / 2**30:.1f}",
            remedy="Free some space or name a folder on another disk.",
        )
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=work))
    try:
        _convert(path, temporary)
        temporary.chmod(0o755)
        for file in temporary.iterdir():
            file.chmod(0o644)
        temporary.replace(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return target


def _convert(path: Path, folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where = {"gguf_file": path.name}
    try:
        model = AutoModelForCausalLM.from_pretrained(
            path.parent, **where, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
        )
        tokenizer = AutoTokenizer.from_pretrained(path.parent, **where)
    except (ValueError, KeyError, NotImplementedError, ImportError) as error:
        raise InputError(
            f"{path}: transformers cannot read it ({error})", remedy="Use the safetensors version of the model."
        ) from error
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
