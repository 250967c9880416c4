"""A checkpoint's headers and its description agree, or the difference is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from passes.errors import InputError
from passes.ir.model import Role
from passes.ir.readers.headers import read_folder_header
from passes.ir.sources import open_model
from passes.ir.state import FullKV
from tests.ir.checkpoints import TINY, tensors_of, write


def opened(folder: Path) -> Any:
    """The source of a folder, its description checked against the headers tensor for tensor."""
    source = open_model(folder)
    header = read_folder_header(folder)
    assert header is not None
    assert {tensor.name: tensor for tensor in source.ir.tensors()} == dict(header.tensors)
    assert source.ir.tensor_bytes == source.stored_bytes == header.tensor_bytes
    return source


def test_a_folder_is_described_tensor_for_tensor(tmp_path: Path) -> None:
    source = opened(write(tmp_path / "tiny"))
    assert (source.kind, source.has_weights, source.path) == ("folder", True, tmp_path / "tiny")
    assert [path.name for path in source.files] == ["tokenizer.json"]
    assert source.materialize(tmp_path / "work") == tmp_path / "tiny"
    assert source.ir.decoder.layers == (0, 0)
    assert source.ir.decoder.block(0).state == FullKV(2, 16, 16)


def test_headers_win_on_dtypes_and_biases(tmp_path: Path) -> None:
    tensors = tensors_of(TINY)
    tensors["model.layers.1.self_attn.q_proj.bias"] = np.zeros(64, np.float16)
    tensors["model.layers.0.mlp.down_proj.weight"] = tensors["model.layers.0.mlp.down_proj.weight"].astype(np.float32)
    ir = opened(write(tmp_path / "tiny", tensors=tensors)).ir
    assert len(ir.decoder.classes) == 2
    assert {lin.bias for lin in ir.decoder.block(1).linears if lin.role is Role.Q} == {"F16"}
    assert {lin.storage.label for lin in ir.decoder.block(0).linears if lin.role is Role.DOWN} == {"fp32"}


def test_a_stored_copy_of_a_tied_head_is_seen(tmp_path: Path) -> None:
    config = TINY | {"tie_word_embeddings": True}
    with_copy, without = tensors_of(TINY), tensors_of(config)
    copied, tied = (
        opened(write(tmp_path / "a", config, with_copy)).ir,
        opened(write(tmp_path / "b", config, without)).ir,
    )
    assert copied.tied_embeddings and tied.tied_embeddings
    assert [lin.role for lin in copied.outer] == [Role.EMBEDDING, Role.HEAD]
    assert [lin.role for lin in tied.outer] == [Role.EMBEDDING]


def test_buffers_are_ignored_and_said(tmp_path: Path) -> None:
    tensors = tensors_of(TINY)
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.zeros(8, np.float32)
    source = open_model(write(tmp_path / "tiny", tensors=tensors))
    assert any("inv_freq" in note for note in source.ir.notes)


def test_calibrated_kv_scales_are_part_of_the_layers(tmp_path: Path) -> None:
    tensors = tensors_of(TINY)
    for layer in range(2):
        for name in ("k_scale", "v_scale"):
            tensors[f"model.layers.{layer}.self_attn.{name}"] = np.ones(1, np.float16)
    assert opened(write(tmp_path / "tiny", tensors=tensors)).ir.kv_cache.scales


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        (
            "model.layers.0.self_attn.extra.weight",
            (4, 4),
            r"'model\.layers\.0\.self_attn\.extra\.weight' is not explained",
        ),
        ("model.layers.9.mlp.up_proj.weight", (96, 64), r"'model\.layers\.9\.mlp\.up_proj\.weight' is not explained"),
        ("model.layers.0.mlp.up_proj.weight", (95, 64), r"has shape \[95, 64\], expected \[96, 64\]"),
        ("model.layers.1.mlp.up_proj.weight", None, r"lacks 'model\.layers\.1\.mlp\.up_proj\.weight'"),
        ("model.norm.weight", None, r"lacks 'model\.norm\.weight'"),
    ],
)
def test_the_first_thing_not_understood_is_named(
    tmp_path: Path, name: str, shape: tuple[int, ...] | None, message: str
) -> None:
    tensors = tensors_of(TINY)
    if shape is None:
        del tensors[name]
    else:
        tensors[name] = np.zeros(shape, np.float16)
    with pytest.raises(InputError, match=message) as error:
        open_model(write(tmp_path / "tiny", tensors=tensors))
    assert "full-attention" in str(error.value)


def test_quantized_weights_without_a_quantization_config_are_refused(tmp_path: Path) -> None:
    tensors = tensors_of(TINY)
    tensors["model.layers.0.mlp.up_proj.weight"] = np.zeros((96, 64), np.int8)
    with pytest.raises(InputError, match="names no quantization"):
        open_model(write(tmp_path / "tiny", tensors=tensors))


def test_an_unknown_architecture_fails_closed_with_an_escape(tmp_path: Path) -> None:
    folder = write(tmp_path / "tiny", TINY | {"architectures": ["LamaForCausalLM"]}, tensors_of(TINY))
    with pytest.raises(
        InputError, match=r"'LamaForCausalLM' is not understood. Nearest known: LlamaForCausalLM"
    ) as error:
        open_model(folder)
    assert "assume: full-attention" in str(error.value)
    ir = open_model(folder, assume="full-attention").ir
    assert any("assumes full-attention" in note for note in ir.notes)


@pytest.mark.parametrize("field", ["num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size"])
def test_a_missing_field_is_named(tmp_path: Path, field: str) -> None:
    config = {key: value for key, value in TINY.items() if key != field}
    with pytest.raises(InputError, match=f"lacks '{field}'"):
        open_model(write(tmp_path / "tiny", config, tensors_of(TINY)))


def test_the_source_is_never_written_to(tmp_path: Path) -> None:
    folder = write(tmp_path / "tiny")
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()}
    open_model(folder)
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.iterdir()} == before
