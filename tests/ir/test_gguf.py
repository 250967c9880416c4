"""GGUF files: the header is enough for a description; dequantized once, they are folders like any other."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from passes.errors import DoesNotFitError, InputError, TightfitError
from passes.ir.readers.gguf import read_gguf_header
from passes.ir.readers.headers import read_folder_header
from passes.ir.sources import open_model

HIDDEN, INNER, HEADS, KV_HEADS, LAYERS, VOCAB = 64, 96, 4, 2, 2, 262


def write_gguf(
    path: Path, *, architecture: str = "llama", skip: str = "", extra: str = "", add_bos: bool | None = None
) -> Path:
    """A tiny model with Q8_0 matrices, written by llama.cpp's own package."""
    import gguf

    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_vocab_size(VOCAB)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁a", "▁b", "▁"]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * VOCAB)
    writer.add_token_types([2, 3, 3, *[6] * 256, 1, 1, 1])
    writer.add_bos_token_id(1)
    if add_bos is not None:
        writer.add_add_bos_token(add_bos)
    writer.add_eos_token_id(2)
    writer.add_chat_template("{% for m in messages %}{{ m.content }}{% endfor %}")
    rng = np.random.default_rng(0)
    kv = KV_HEADS * HIDDEN // HEADS
    shapes = {"token_embd.weight": (VOCAB, HIDDEN), "output_norm.weight": (HIDDEN,)}
    for i in range(LAYERS):
        shapes |= {
            f"blk.{i}.attn_norm.weight": (HIDDEN,), f"blk.{i}.ffn_norm.weight": (HIDDEN,),
            f"blk.{i}.attn_q.weight": (HIDDEN, HIDDEN), f"blk.{i}.attn_k.weight": (kv, HIDDEN),
            f"blk.{i}.attn_v.weight": (kv, HIDDEN), f"blk.{i}.attn_output.weight": (HIDDEN, HIDDEN),
            f"blk.{i}.ffn_gate.weight": (INNER, HIDDEN), f"blk.{i}.ffn_up.weight": (INNER, HIDDEN),
            f"blk.{i}.ffn_down.weight": (HIDDEN, INNER),
        }  # fmt: skip
    if extra:
        shapes[extra] = (32, 32)
    for name, shape in shapes.items():
        if name == skip:
            continue
        values = (rng.standard_normal(shape) * 0.1).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(name, values)
        else:
            packed = gguf.quants.quantize(values, gguf.GGMLQuantizationType.Q8_0)
            writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_the_header_describes_the_model_that_dequantizing_writes(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    source = open_model(path)
    assert (source.kind, source.has_weights, source.ir.architecture) == ("gguf", True, "LlamaForCausalLM")
    assert source.ir.tied_embeddings
    assert source.stored_bytes is not None
    assert source.stored_bytes < source.ir.tensor_bytes
    counts: list[tuple[int, int]] = []
    folder = source.materialize(tmp_path / "work", lambda *count: counts.append(count))
    total = counts[-1][1]
    assert total > 10 and counts == [(done, total) for done in range(total + 1)]
    header = read_folder_header(folder)
    assert header is not None
    assert {tensor.name: tensor for tensor in source.ir.tensors()} == dict(header.tensors)
    assert open_model(folder).ir.stacks == source.ir.stacks
    assert (folder / "tokenizer.json").is_file()
    assert "messages" in (folder / "chat_template.jinja").read_text()
    assert [entry.name for entry in (tmp_path / "work").iterdir()] == [folder.name]
    modified = folder.stat().st_mtime_ns
    assert source.materialize(tmp_path / "work") == folder
    assert folder.stat().st_mtime_ns == modified


def write_header(path: Path, config: dict[str, Any], shapes: dict[str, tuple[int, ...]], architecture: str) -> Path:
    """A GGUF file of Q8_0 zeros with these metadata and tensors."""
    import gguf

    writer = gguf.GGUFWriter(path, architecture)
    for key, value in config.items():
        writer.add_uint32(f"{architecture}.{key}", value)
    for name, shape in shapes.items():
        kind = gguf.GGMLQuantizationType.Q8_0
        if len(shape) == 1:
            writer.add_tensor(name, np.zeros(shape, np.float32))
        else:
            writer.add_tensor(name, gguf.quants.quantize(np.zeros(shape, np.float32), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


_OUTSIDE = {"token_embd.weight": (96, 64), "output_norm.weight": (64,), "output.weight": (96, 64)}
_SIZES = {
    "block_count": 1, "context_length": 128, "embedding_length": 64, "feed_forward_length": 96, "attention.head_count": 4,
    "attention.head_count_kv": 2, "attention.key_length": 32, "vocab_size": 96,
}  # fmt: skip
_BANK = {"expert_count": 4, "expert_used_count": 2, "expert_feed_forward_length": 32}
_NORMS = {"attn_norm": (64,), "ffn_norm": (64,)}
_EXPERTS = {
    "ffn_gate_inp": (4, 64),
    "ffn_gate_exps": (4, 32, 64),
    "ffn_up_exps": (4, 32, 64),
    "ffn_down_exps": (4, 64, 32),
}


def _attention(head: int) -> dict[str, tuple[int, ...]]:
    return {"attn_q": (4 * head, 64), "attn_k": (2 * head, 64), "attn_v": (2 * head, 64), "attn_output": (64, 4 * head)}


@pytest.mark.parametrize(
    ("architecture", "hf_class", "block", "metadata", "one"),
    [
        (
            "qwen3moe", "Qwen3MoeForCausalLM",
            _NORMS | _attention(32) | {"attn_q_norm": (32,), "attn_k_norm": (32,)} | _EXPERTS, _BANK,
            "model.layers.0.mlp.experts.3.down_proj.weight",
        ),
        (
            "qwen2moe", "Qwen2MoeForCausalLM",
            _NORMS | _attention(16) | _EXPERTS
            | {"ffn_gate_inp_shexp": (64,), "ffn_gate_shexp": (96, 64), "ffn_up_shexp": (96, 64), "ffn_down_shexp": (64, 96)},
            _BANK | {"attention.key_length": 16, "expert_shared_feed_forward_length": 96},
            "model.layers.0.mlp.shared_expert_gate.weight",
        ),
        (
            "llama", "MixtralForCausalLM", _NORMS | _attention(16) | _EXPERTS,
            _BANK | {"attention.key_length": 16, "feed_forward_length": 32}, "model.layers.0.block_sparse_moe.experts.3.w2.weight",
        ),
        (
            "phi3", "Phi3ForCausalLM",
            _NORMS | {"attn_qkv": (128, 64), "attn_output": (64, 64), "ffn_up": (192, 64), "ffn_down": (64, 96)},
            {"attention.key_length": 16}, "model.layers.0.mlp.gate_up_proj.weight",
        ),
    ],
)  # fmt: skip
def test_experts_and_fused_matrices_are_described_as_hugging_face_names_them(
    tmp_path: Path, architecture: str, hf_class: str, block: dict[str, tuple[int, ...]], metadata: dict[str, int], one: str
) -> None:  # fmt: skip
    shapes = _OUTSIDE | {f"blk.0.{name}.weight": shape for name, shape in block.items()}
    if architecture == "qwen2moe":
        shapes |= {f"blk.0.attn_{name}.bias": (size,) for name, size in (("q", 64), ("k", 32), ("v", 32))}
    ir = open_model(write_header(tmp_path / "it.gguf", _SIZES | metadata, shapes, architecture)).ir
    assert ir.architecture == hf_class
    assert one in {tensor.name for tensor in ir.tensors()}
    assert sum(math.prod(tensor.shape) for tensor in ir.tensors()) == sum(math.prod(s) for s in shapes.values())


@pytest.mark.parametrize("begins", [True, False])
def test_prompts_begin_as_the_file_says(tmp_path: Path, begins: bool) -> None:
    from transformers import AutoTokenizer

    folder = open_model(write_gguf(tmp_path / "tiny.gguf", add_bos=begins)).materialize(tmp_path)
    ids = AutoTokenizer.from_pretrained(folder)("a").input_ids
    assert (ids[0] == 1) is begins


def test_a_full_disk_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    source = open_model(write_gguf(tmp_path / "tiny.gguf"))
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(100, 100, 10))  # type: ignore[attr-defined]
    with pytest.raises(DoesNotFitError, match="free, dequantizing"):
        source.materialize(tmp_path / "work")
    assert not list((tmp_path / "work").iterdir())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"skip": "blk.1.ffn_up.weight"}, r"lacks 'model\.layers\.1\.mlp\.up_proj\.weight'"),
        ({"extra": "blk.0.ssm_in.weight"}, r"'blk\.0\.ssm_in\.weight' .* it is not understood"),
        ({"architecture": "rwkv7"}, r"GGUF architecture 'rwkv7' is not understood"),
        ({"architecture": "gemma2", "extra": "blk.0.ffn_up_exps.weight"}, "gemma2 with experts"),
    ],
)
def test_what_is_not_understood_is_named(tmp_path: Path, change: dict[str, str], message: str) -> None:
    path = write_gguf(tmp_path / "odd.gguf", **change)
    with pytest.raises(InputError, match=message):
        open_model(path)


@pytest.mark.parametrize("size", [0, 10, 100, 3000, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, size: int) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(InputError, match=r"tiny\.gguf"):
        open_model(path)


@given(st.binary(max_size=200))
def test_no_bytes_make_the_reader_fail_otherwise(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.gguf"
    path.write_bytes(b"GGUF\x03\x00\x00\x00" + raw)
    try:
        read_gguf_header(path)
    except TightfitError as error:
        assert error.remedy


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.gguf: cannot be read"):
        open_model(tmp_path / "none.gguf")
