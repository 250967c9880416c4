"""GGUF files for what they are: parts of a split model, adapters and projectors, types that only some programs read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from passes.errors import InputError
from passes.ir.sources import open_model
from planner.check import check
from planner.plan.make import plan
from targets.engines.engine import Settings

_SIZES = {
    "block_count": 2, "context_length": 128, "embedding_length": 64, "feed_forward_length": 128, "attention.head_count": 2,
    "attention.head_count_kv": 1, "vocab_size": 96,
}  # fmt: skip
_BLOCK = {
    "attn_norm": (64,), "ffn_norm": (64,), "attn_q": (64, 64), "attn_k": (32, 64), "attn_v": (32, 64), "attn_output": (64, 64),
    "ffn_gate": (128, 64), "ffn_up": (128, 64), "ffn_down": (64, 128),
}  # fmt: skip
_OUTSIDE = {"token_embd.weight": (96, 64), "output_norm.weight": (64,)}
_TENSORS = _OUTSIDE | {f"blk.{i}.{name}.weight": shape for i in range(2) for name, shape in _BLOCK.items()}


def write(path: Path, tensors: Mapping[str, tuple[int, ...]] = _TENSORS, kind: str = "Q4_0", **more: int | str) -> Path:
    """A llama of two layers (or some of its tensors) of zeros in a ggml type, with further metadata (`__` for a dot)."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    for key, value in {f"llama.{key}": value for key, value in _SIZES.items()}.items():
        writer.add_uint32(key, value)
    for key, value in more.items():
        add = writer.add_string if isinstance(value, str) else writer.add_uint16
        add(key.replace("__", "."), value)
    number = gguf.GGMLQuantizationType[kind]
    elements, size = gguf.GGML_QUANT_SIZES[number]
    for name, shape in tensors.items():
        if len(shape) == 1:
            writer.add_tensor(name, np.zeros(shape, np.float32))
        else:
            packed = np.zeros((shape[0], shape[1] // elements * size), np.uint8)
            writer.add_tensor(name, packed, raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def split(folder: Path) -> tuple[Path, Path]:
    """The same model in two parts."""
    first = {name: shape for name, shape in _TENSORS.items() if not name.startswith("blk.1")}
    rest = {name: shape for name, shape in _TENSORS.items() if name not in first}
    return (
        write(folder / "tiny-00001-of-00002.gguf", first, split__no=0, split__count=2),
        write(folder / "tiny-00002-of-00002.gguf", rest, split__no=1, split__count=2),
    )


def test_a_split_model_is_read_whole_from_any_of_its_parts(tmp_path: Path) -> None:
    whole = open_model(write(tmp_path / "tiny.gguf"))
    for part in split(tmp_path):
        source = open_model(part)
        assert source.ir.stacks == whole.ir.stacks and source.stored_bytes == whole.stored_bytes
        assert source.header_digest == whole.header_digest
        with pytest.raises(InputError, match="split into 2 files"):
            source.require_readable()


def test_a_part_that_is_missing_is_named(tmp_path: Path) -> None:
    first, second = split(tmp_path)
    second.unlink()
    with pytest.raises(InputError, match=r"part 1 of 2 .* tiny-00002-of-00002\.gguf is not beside it"):
        open_model(first)
    with pytest.raises(InputError, match="under a name that does not tell the others"):
        open_model(first.rename(tmp_path / "renamed.gguf"))


@pytest.mark.parametrize(("more", "said"), [
    ({"general__type": "adapter", "adapter__type": "lora"}, r"an adapter .*\(LoRA\), not a model"),
    ({"general__type": "mmproj"}, "mmproj"), ({"general__type": "imatrix"}, "an importance matrix"),
])  # fmt: skip
def test_a_file_that_is_no_model_is_named_for_what_it_is(tmp_path: Path, more: dict[str, str], said: str) -> None:
    with pytest.raises(InputError, match=said) as error:
        open_model(write(tmp_path / "other.gguf", {"blk.0.attn_q.weight.lora_a": (8,)}, **more))
    assert "Download" not in (error.value.remedy or "")


@pytest.mark.parametrize("kind", ["NVFP4", "Q8_1"])
def test_plan_refuses_what_apply_could_not_dequantize(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path / "tiny.gguf", kind=kind)
    assert check(str(path), "RTX 4090", context=64).fits
    (tmp_path / "spec.yaml").write_text(f"model: {path}\ntarget: {{gpu: RTX 4090}}\n")
    with pytest.raises(InputError, match=f"tensors in {kind} cannot be dequantized here"):
        plan(tmp_path / "spec.yaml")


def test_vllm_held_a_file_as_it_is_stored_and_reads_none_since_0_24(tmp_path: Path) -> None:
    path = write(tmp_path / "tiny.gguf")
    source = open_model(path)
    old, new = (
        check(source, "RTX 4090", context=64, settings=Settings(version=version)) for version in ("0.10.2", "0.33.0")
    )
    assert source.as_stored is not None and source.stored_bytes is not None
    # Norms are stored in 32 bits and loaded in 16.
    assert source.as_stored.tensor_bytes == source.stored_bytes - 5 * 64 * 2
    assert old.document.memory.weights.value < 0.3 * new.document.memory.weights.value
    assert [note for note in new.document.notes if "vllm-gguf-plugin" in note and "16 bits" in note]
    assert not [note for note in old.document.notes if "GGUF" in note]
