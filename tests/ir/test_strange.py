"""Files that are not what their names say are named for what they are, with what to do; none is told to be downloaded again."""

from __future__ import annotations

from pathlib import Path

import pytest

from passes.errors import InputError
from passes.ir.sources import open_model
from tests.ir.checkpoints import write
from tests.ir.test_gguf_parts import write as write_gguf

_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 4976698672\n"
_PAGE = b"\n<!DOCTYPE html>\n<html><head><title>Hugging Face</title></head><body>404</body></html>"
_REFUSAL = b"Access to model org/name is restricted. You must have access to it and be authenticated to access it."
#: How a file begins -> what it is called, and what its remedy speaks of.
STRANGE = {
    "pointer": (_POINTER, "a Git LFS pointer", "git lfs pull"),
    "page": (_PAGE, "a web page", "hf download"),
    "refusal": (_REFUSAL, "text .'Access to model org/name is", "hf download"),
    "zeros": (bytes(4096), "zeros", "hf download"),
    "archive": (b"\x1f\x8b\x08\x00" + bytes(100), "a gzip archive", "Unpack"),
    "keras": (b"\x89HDF\r\n\x1a\n" + bytes(100), "an HDF5 file", "safetensors version"),
    "pickle": (b"PK\x03\x04" + bytes(100), "a pickle", "safetensors version"),
    "old pickle": (b"\x80\x02}q\x00" + bytes(100), "a pickle", "safetensors version"),
}


@pytest.mark.parametrize("kind", [*STRANGE, "gguf"])
def test_what_stands_in_the_place_of_safetensors_is_named(tmp_path: Path, kind: str) -> None:
    begins, said, remedy = {**STRANGE, "gguf": (b"GGUF" + bytes(200), "a GGUF file", "ends in .gguf")}[kind]
    folder = write(tmp_path / "model")
    (folder / "model.safetensors").write_bytes(begins)
    with pytest.raises(InputError, match=rf"model\.safetensors: {said}.*, not safetensors") as error:
        open_model(folder)
    assert error.value.remedy is not None and "again" not in error.value.remedy
    assert remedy in error.value.remedy


@pytest.mark.parametrize("kind", ["pointer", "page"])
def test_what_stands_in_the_place_of_a_config_is_named(tmp_path: Path, kind: str) -> None:
    begins, said, remedy = STRANGE[kind]
    folder = write(tmp_path / "model")
    (folder / "config.json").write_bytes(begins)
    with pytest.raises(InputError, match=rf"config\.json: {said}, not JSON") as error:
        open_model(folder)
    assert error.value.remedy is not None and remedy in error.value.remedy


@pytest.mark.parametrize("kind", [*STRANGE, "ggml", "safetensors"])
def test_what_stands_in_the_place_of_a_gguf_file_is_named(tmp_path: Path, kind: str) -> None:
    inside = (write(tmp_path / "model") / "model.safetensors").read_bytes()
    begins, said, remedy = {
        **STRANGE,
        "ggml": (b"tjgg" + bytes(200), "a GGML file of before GGUF", "current llama.cpp"),
        "safetensors": (inside, "a safetensors file", "Name the folder"),
    }[kind]
    (tmp_path / "model.gguf").write_bytes(begins)
    with pytest.raises(InputError, match=rf"model\.gguf: {said}.*, not GGUF") as error:
        open_model(tmp_path / "model.gguf")
    assert error.value.remedy is not None and remedy in error.value.remedy


def test_a_big_endian_file_is_named_and_can_be_turned_round(tmp_path: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "big.gguf", "llama", endianess=gguf.GGUFEndian.BIG)
    writer.add_uint32("llama.block_count", 2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(InputError, match="a big-endian GGUF file") as error:
        open_model(tmp_path / "big.gguf")
    assert "gguf-convert-endian FILE little" in (error.value.remedy or "")


def test_a_file_that_is_cut_off_says_how_much_is_missing(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(InputError, match=r"truncated: .* 1,000 are missing") as error:
        open_model(path)
    assert "goes on where it stopped" in (error.value.remedy or "")


def test_a_file_of_the_right_kind_that_ends_in_its_header_is_not_told_that_it_is_of_another(tmp_path: Path) -> None:
    folder, shortest = write(tmp_path / "model"), tmp_path / "tiny.gguf"
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(InputError, match=r"model\.safetensors: the header claims [\d,]+ bytes, the file has 100"):
        open_model(folder)
    shortest.write_bytes(b"GGUF" + bytes(8))
    with pytest.raises(InputError, match="only 12 bytes, no GGUF file"):
        open_model(shortest)


def test_a_folder_of_gguf_files_is_told_its_model_not_what_goes_with_one(tmp_path: Path) -> None:
    for name in ("mmproj-F16.gguf", "zebra-00002-of-00002.gguf", "zebra-00001-of-00002.gguf", "imatrix.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(InputError) as error:
        open_model(tmp_path)
    assert f"{tmp_path / 'zebra-00001-of-00002.gguf'} (or one of 2 others there)" in (error.value.remedy or "")


def test_a_file_without_a_tokenizer_is_sized_and_not_planned(tmp_path: Path) -> None:
    source = open_model(write_gguf(tmp_path / "tiny.gguf"))
    with pytest.raises(InputError, match=r"has no tokenizer \(tokenizer\.ggml\.tokens\)") as error:
        source.require_readable()
    assert "beside its tokenizer" in (error.value.remedy or "")
