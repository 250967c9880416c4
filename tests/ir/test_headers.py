"""Headers are read strictly: whatever is wrong with a file ends in one message that names it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from passes.errors import InputError, TightfitError
from passes.ir.readers.headers import parse_header, read_folder_header
from passes.ir.sources import open_model
from tests.ir.checkpoints import TINY, tensors_of, write


def rewrite_header(path: Path, change: Any) -> None:
    """Change a file's header, its data left as it is."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    change(header)
    raw = json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data[8 + length :])


def entry(header: dict[str, Any]) -> dict[str, Any]:
    """The first tensor of a header."""
    return next(value for name, value in header.items() if name != "__metadata__")


LIES = {
    "more elements than bytes": (lambda h: entry(h).update(shape=[999, 64]), "bytes, its data_offsets give"),
    "an unknown dtype": (lambda h: entry(h).update(dtype="Q9"), "'dtype' should be one of .*, found 'Q9'"),
    "a negative dimension": (lambda h: entry(h).update(shape=[-1, 64]), r"'shape\[0\]' should be a whole number .*, found -1"),
    "offsets backwards": (lambda h: entry(h).update(data_offsets=[8, 0]), "its data_offsets give"),
    "an overlap": (
        lambda h: h.update({"stray": {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]}}), "overlaps another tensor"
    ),
    "a gap": (lambda h: h.pop(next(n for n, v in h.items() if n != "__metadata__" and v["data_offsets"][0] == 0)), "unnamed"),
    "no description": (lambda h: h.update(lm_head=3), "'lm_head' should be an object, found 3"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_refused(tmp_path: Path, lie: str) -> None:
    change, message = LIES[lie]
    folder = write(tmp_path / "model")
    rewrite_header(folder / "model.safetensors", change)
    with pytest.raises(InputError, match=message) as error:
        open_model(folder)
    assert "model.safetensors" in str(error.value)
    assert error.value.remedy


@pytest.mark.parametrize("size", [0, 7, 8, 100, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, size: int) -> None:
    folder = write(tmp_path / "model")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(InputError, match=r"model\.safetensors"):
        open_model(folder)


@given(st.binary(max_size=300))
def test_no_bytes_make_the_reader_fail_otherwise(raw: bytes) -> None:
    try:
        parse_header(raw, 8 + len(raw), "file")
    except TightfitError as error:
        assert error.remedy


def test_a_missing_shard_and_a_wrong_index_are_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", shards=2)
    index = folder / "model.safetensors.index.json"
    document = json.loads(index.read_text())
    name, shard = next(iter(document["weight_map"].items()))
    document["weight_map"]["ghost.weight"] = shard
    index.write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"ghost\.weight"):
        open_model(folder)
    (folder / shard).unlink()
    with pytest.raises(InputError, match=f"{shard}: missing"):
        open_model(folder)
    document["weight_map"] = {name: "../elsewhere.safetensors"}
    index.write_text(json.dumps(document))
    with pytest.raises(InputError, match="not a safetensors file of this folder"):
        open_model(folder)
    index.write_text("{")
    with pytest.raises(InputError, match=r"index\.json: not valid JSON"):
        open_model(folder)


def test_pickles_are_refused_by_name_and_by_content(tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    (folder / "model.safetensors").write_bytes(b"PK\x03\x04" + bytes(200))
    with pytest.raises(InputError, match="pickle"):
        open_model(folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02")
    with pytest.raises(InputError, match="pickle"):
        open_model(folder)


def test_the_digest_is_of_names_dtypes_and_shapes_however_they_are_sharded(tmp_path: Path) -> None:
    one, two = write(tmp_path / "one"), write(tmp_path / "two", shards=3)
    assert open_model(one).header_digest == open_model(two).header_digest
    tensors = tensors_of(TINY)
    tensors["model.norm.weight"] = tensors["model.norm.weight"].astype(np.float32)
    assert open_model(write(tmp_path / "three", tensors=tensors)).header_digest != open_model(one).header_digest


def test_a_folder_without_weights_has_no_header(tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    assert read_folder_header(folder) is None
    assert not open_model(folder).has_weights
