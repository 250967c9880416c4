"""A GGUF header in Hugging Face's words: config.json fields, tensor names; and its dequantization into a folder."""

from __future__ import annotations

import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import field, replace
from pathlib import Path
from typing import Any

from passes.errors import DoesNotFitError, InputError
from passes.formats.opaque import GGUF
from passes.ir.fields import Fields
from passes.ir.model import Linear, ModelIR
from passes.ir.readers.gguf import GgufHeader, GgufTensor, LongArray
from passes.ir.readers.gguf_named import in_blocks
from passes.ir.readers.headers import read_folder_header
from passes.record import dataclass

#: The tokenizer's tokens, and what to do where a file does not do.
_TOKENS = "tokenizer.ggml.tokens"
_ELSEWHERE = "Use the safetensors version of the model, or convert it again with a current llama.cpp."

#: GGUF metadata key, without the architecture -> config.json field.
_FIELDS = {
    "block_count": "num_hidden_layers", "context_length": "max_position_embeddings", "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size", "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads", "attention.key_length": "head_dim", "attention.sliding_window": "sliding_window",
    "rope.freq_base": "rope_theta", "attention.layer_norm_rms_epsilon": "rms_norm_eps", "vocab_size": "vocab_size",
    "expert_count": "num_experts", "expert_used_count": "num_experts_per_tok", "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
}  # fmt: skip

_OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_ATTENTION = {
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
}  # fmt: skip
_DENSE = _ATTENTION | {"ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}
_GEMMA = _DENSE | {
    "post_attention_norm": "post_attention_layernorm", "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}  # fmt: skip
_PHI3 = _ATTENTION | {"attn_qkv": "self_attn.qkv_proj", "ffn_up": "mlp.gate_up_proj", "ffn_down": "mlp.down_proj"}
#: A bank of experts is one tensor of a GGUF file and one of each expert (`*`) in Hugging Face's checkpoints.
_EXPERTS = _ATTENTION | {
    "ffn_gate_inp": "mlp.gate", "ffn_gate_exps": "mlp.experts.*.gate_proj", "ffn_up_exps": "mlp.experts.*.up_proj",
    "ffn_down_exps": "mlp.experts.*.down_proj",
}  # fmt: skip
_SHARED_EXPERT = _EXPERTS | {
    "ffn_gate_inp_shexp": "mlp.shared_expert_gate", "ffn_gate_shexp": "mlp.shared_expert.gate_proj",
    "ffn_up_shexp": "mlp.shared_expert.up_proj", "ffn_down_shexp": "mlp.shared_expert.down_proj",
}  # fmt: skip
_MIXTRAL = _ATTENTION | {
    "ffn_gate_inp": "block_sparse_moe.gate", "ffn_gate_exps": "block_sparse_moe.experts.*.w1",
    "ffn_up_exps": "block_sparse_moe.experts.*.w3", "ffn_down_exps": "block_sparse_moe.experts.*.w2",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Dialect:
    """How one GGUF architecture reads in Hugging Face's words: class, model_type, names inside a block, other field names."""

    hf_class: str
    model_type: str
    block: Mapping[str, str]
    fields: Mapping[str, str] = field(default_factory=dict)


#: By GGUF architecture, with " with experts" where llama.cpp keeps dense and MoE models under one name.
_DIALECTS = {
    "llama": _Dialect("LlamaForCausalLM", "llama", _DENSE),
    "llama with experts": _Dialect("MixtralForCausalLM", "mixtral", _MIXTRAL, {"num_experts": "num_local_experts"}),
    "qwen2": _Dialect("Qwen2ForCausalLM", "qwen2", _DENSE),
    "qwen3": _Dialect("Qwen3ForCausalLM", "qwen3", _DENSE),
    "qwen2moe with experts": _Dialect("Qwen2MoeForCausalLM", "qwen2_moe", _SHARED_EXPERT),
    "qwen3moe with experts": _Dialect("Qwen3MoeForCausalLM", "qwen3_moe", _EXPERTS),
    "gemma2": _Dialect("Gemma2ForCausalLM", "gemma2", _GEMMA),
    "gemma3": _Dialect("Gemma3ForCausalLM", "gemma3_text", _GEMMA),
    "phi3": _Dialect("Phi3ForCausalLM", "phi3", _PHI3),
    "starcoder2": _Dialect("Starcoder2ForCausalLM", "starcoder2", _DENSE | {"ffn_up": "mlp.c_fc", "ffn_down": "mlp.c_proj"}),
}  # fmt: skip

#: Tables that llama.cpp stores and Hugging Face computes; scales beside NVFP4's blocks, which are part of their matrices.
_IGNORED = re.compile(r"rope_freqs\.weight|rope_factors_(long|short)\.weight|blk\.\d+\..+\.(input_)?scale")
#: Types of plain numbers.
_PLAIN = frozenset({"F32", "F16", "BF16"})
#: Types that gguf 0.19's `quants.dequantize` does not read; NVFP4's second scales stand in tensors of their own, which transformers
#: leaves out.
_NOT_DEQUANTIZED = frozenset({"Q1_0", "Q8_1", "Q8_K", "I8", "I16", "I32", "I64", "F64", "NVFP4"})


def _dialect(header: GgufHeader, name: str) -> _Dialect:
    architecture = Fields(header.metadata, name, "metadata").text("general.architecture")
    what = f"{architecture} with experts" if any("_exps." in tensor for tensor in header.tensors) else f"{architecture}"
    if what not in _DIALECTS:
        known = ", ".join(_DIALECTS)
        raise InputError(
            f"{name}: the GGUF architecture {what!r} is not understood",
            remedy=f"Use the safetensors version of the model. GGUF is read for: {known}.",
        )
    return _DIALECTS[what]


def hf_config(header: GgufHeader, name: str) -> dict[str, Any]:
    """Make the config.json that a GGUF header amounts to."""
    dialect, architecture = _dialect(header, name), header.metadata["general.architecture"]
    config: dict[str, Any] = {
        "architectures": [dialect.hf_class],
        "model_type": dialect.model_type,
        "torch_dtype": "bfloat16",
    }
    for key, meaning in _FIELDS.items():
        if (value := header.metadata.get(f"{architecture}.{key}")) is not None:
            config[dialect.fields.get(meaning, meaning)] = value
    if "vocab_size" not in config and (size := _vocabulary(header)) is not None:
        config["vocab_size"] = size
    config["tie_word_embeddings"] = "output.weight" not in header.tensors
    config["attention_bias"] = "blk.0.attn_q.bias" in header.tensors
    if dialect.hf_class == "Starcoder2ForCausalLM":
        config["use_bias"] = config["attention_bias"]
    return config


def _vocabulary(header: GgufHeader) -> int | None:
    """Rows of the embedding: as many as the tokenizer has tokens; of a file without one, what its embedding has."""
    tokens, embedding = header.metadata.get(_TOKENS), header.tensors.get("token_embd.weight")
    if isinstance(tokens, LongArray | list):
        return tokens.length if isinstance(tokens, LongArray) else len(tokens)
    return embedding.shape[0] if embedding is not None and embedding.shape else None


def check_tensors(header: GgufHeader, ir: ModelIR) -> None:
    """Refuse a file whose tensors are not those of the description, each with its shape."""
    block = _dialect(header, ir.name).block
    found: dict[str, tuple[GgufTensor, tuple[int, ...]]] = {}
    for tensor in header.tensors.values():
        if not _IGNORED.fullmatch(tensor.name):
            # One that nobody knows stays under its own name, which no description has.
            found |= {name: (tensor, shape) for name, shape in _hf_tensors(tensor, block) or [("", tensor.shape)]}

    def refuse(tensor: GgufTensor, why: str) -> InputError:
        what = f"{ir.name}: GGUF tensor {tensor.name!r} of shape {list(tensor.shape)}: {why}"
        return InputError(what, remedy=_ELSEWHERE)

    # The file's tensors are the finite side: what metadata claim is walked through only as far as the file goes.
    for wanted in ir.tensors():
        if wanted.name not in found:
            raise InputError(f"{ir.name}: the GGUF file lacks {wanted.name!r}", remedy=_ELSEWHERE)
        tensor, shape = found.pop(wanted.name)
        # A row that scores one output is a vector in a GGUF file.
        if wanted.shape not in (shape, (1, *shape)):
            raise refuse(tensor, f"expected {list(wanted.shape)}")
    if found:
        raise refuse(next(iter(found.values()))[0], "it is not understood")


def as_stored(header: GgufHeader, ir: ModelIR) -> ModelIR:
    """Describe the file itself, as engines that read GGUF hold it: each matrix in its ggml type."""
    block = _dialect(header, ir.name).block
    types = {
        name: tensor.type for tensor in header.tensors.values() for name, _ in _hf_tensors(tensor, block)[:1]
    }  # fmt: skip

    def stored(prefix: str) -> Callable[[Linear], Linear]:
        def change(linear: Linear) -> Linear:
            kind = types.get(f"{prefix}{linear.name.replace('{e}', '0')}.weight", "")
            if not kind or kind in _PLAIN:
                return linear
            return replace(linear, storage=in_blocks(linear, kind))

        return change

    stacks = [
        stack.with_blocks(
            tuple(stack.block(i).map_linears(stored(stack.layer_prefix(i))) for i in range(len(stack.layers)))
        )
        for stack in ir.stacks
    ]
    outer = tuple(map(stored(""), ir.outer))
    return replace(ir, stacks=tuple(stacks), outer=outer, quant_method=GGUF)


def unreadable(header: GgufHeader, files: int) -> str | None:
    """Say why transformers cannot dequantize a file, which is what `apply` does first; None where it can."""
    if files > 1:
        return f"the model is split into {files} files; merge them: llama-gguf-split --merge <first part> <whole>.gguf"
    kinds = {tensor.type for tensor in header.tensors.values()} & _NOT_DEQUANTIZED
    if kinds:
        return f"tensors in {', '.join(sorted(kinds))} cannot be dequantized here; use the model's safetensors version"
    if _TOKENS not in header.metadata:
        return (
            f"the file has no tokenizer ({_TOKENS}), and nothing can be calibrated without one; "
            "convert the model again beside its tokenizer, or use its safetensors version"
        )
    return None


def rounded_bits(header: GgufHeader) -> float:
    """Return the mean bits of the codes that the blocks' matrices are stored in; 0 where they are plain numbers."""
    codes = [
        (int(match[1]), math.prod(tensor.shape))
        for tensor in header.tensors.values()
        if tensor.name.startswith("blk.") and (match := re.match(r"I?Q(\d)", tensor.type))
    ]
    count = sum(numbers for _, numbers in codes)
    return sum(bits * numbers for bits, numbers in codes) / count if count else 0.0


def _hf_tensors(tensor: GgufTensor, block: Mapping[str, str]) -> list[tuple[str, tuple[int, ...]]]:
    """Names and shapes that a tensor has in a Hugging Face checkpoint: one, or one for each expert; none where it is not known."""
    stem, _, suffix = tensor.name.rpartition(".")
    match = re.fullmatch(r"blk\.(\d+)\.(.+)", stem)
    if match is None:
        return [(f"{_OUTER[stem]}.{suffix}", tensor.shape)] if stem in _OUTER else []
    if (inner := block.get(match[2])) is None:
        return []
    name = f"model.layers.{match[1]}.{inner}.{suffix}"
    if "*" not in inner:
        return [(name, tensor.shape)]
    return [(name.replace("*", str(expert)), tensor.shape[1:]) for expert in range(tensor.shape[0])]


def dequantize(path: Path, ir: ModelIR, header: GgufHeader, work: Path, counted: Callable[[int, int], None]) -> Path:
    """Make a folder inside `work` with config, tokenizer and BF16 safetensors of a GGUF file, once; it appears whole. `counted` hears how
    many tensors are read, of how many.

    Raises DoesNotFitError when the disk lacks room, InputError when transformers cannot read the file.
    """
    target = work / f"{path.stem}-{header.digest[:12]}"
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
        with _told(counted):
            _convert(path, header, temporary)
        _confirm(path, ir, temporary)
        temporary.chmod(0o755)
        made = path.stat().st_mtime_ns
        for file in temporary.iterdir():
            file.chmod(0o644)
            # The same file's weights are the same source, in whatever folder they are made.
            os.utime(file, ns=(made, made))
        temporary.replace(target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return target


@contextmanager
def _told(counted: Callable[[int, int], None]) -> Iterator[None]:
    """Have `counted` hear what transformers' reader of GGUF files shows a bar of; the last tensor counts when all are written."""
    from transformers import modeling_gguf_pytorch_utils as reader

    total = 1

    def bar(tensors: Sequence[object], **shown: object) -> Iterator[object]:
        nonlocal total
        total = max(1, len(tensors))
        for number, tensor in enumerate(tensors):
            counted(number, total)
            yield tensor

    before = vars(reader).get("tqdm")
    if before is None:  # another version of it
        yield
        return
    reader.tqdm = bar
    try:
        yield
    finally:
        reader.tqdm = before
    counted(total, total)


def _convert(path: Path, header: GgufHeader, folder: Path) -> None:
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
    # Whether a prompt begins with <bos> is the file's to say; transformers goes by the tokenizer's class.
    begins = header.metadata.get("tokenizer.ggml.add_bos_token")
    if begins is not None and getattr(tokenizer, "add_bos_token", begins) != begins:
        tokenizer.add_bos_token = begins
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _confirm(path: Path, ir: ModelIR, folder: Path) -> None:
    """transformers must have read the file as `ir` describes it."""
    expected, header = {tensor.name: tensor for tensor in ir.tensors()}, read_folder_header(folder)
    found = dict(header.tensors) if header else {}
    if odd := sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name)):
        raise InputError(
            f"{path}: transformers reads it as another model (first difference: {odd[0]!r})",
            remedy="Use the safetensors version of the model.",
        )
