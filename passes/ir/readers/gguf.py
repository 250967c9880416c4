"""GGUF files: the header read without loading weights, its config in Hugging Face's words, and dequantization into a folder.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Block sizes: ggml's `ggml_type` traits.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from passes.errors import InputError
from passes.ir.fields import Fields
from passes.ir.readers.strange import LOOKED_AT, strange
from passes.record import dataclass

_AGAIN = "The file is damaged: fetch it anew where it comes from, or convert the model again with a current llama.cpp."
_REST = "Fetch the rest: `hf download REPOSITORY FILE` goes on where it stopped."
#: GGUF's version where its numbers stand the other way round.
_SWAPPED = frozenset(int.from_bytes(version.to_bytes(4, "little"), "big") for version in (1, 2, 3))

#: GGUF metadata value types by number: struct code of the scalar ones; 8 is a string, 9 an array.
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}

#: ggml tensor types by number: name, elements a block, bytes a block.
_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18),
}  # fmt: skip

#: Types that llama.cpp has taken out again: repacked for processors.
_REMOVED = frozenset({4, 5, 31, 32, 33, 36, 37, 38})

#: No real file comes near these; a header beyond them lies.
_MAX_ITEMS = 10_000_000
_MAX_DIMS, _MAX_DEPTH = 4, 4
#: Bytes of the shortest header.
_LEAST = 24


def blocks(kind: str) -> tuple[int, int]:
    """Return the elements and the bytes of a block of a ggml type, by its name."""
    return next((elements, size) for name, elements, size in _TYPES.values() if name == kind)


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor of a GGUF file. `shape` is row-major (the reverse of what the file says); `bytes` as stored."""

    name: str
    type: str
    shape: tuple[int, ...]
    bytes: int


@dataclass(frozen=True)
class GgufHeader:
    """Metadata (arrays only by their length, except short ones) and tensors."""

    metadata: Mapping[str, Any]
    tensors: Mapping[str, GgufTensor]

    @property
    def digest(self) -> str:
        """sha256 over names, types and shapes of the tensors."""
        lines = sorted(f"{t.name} {t.type} {list(t.shape)}\n" for t in self.tensors.values())
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors as stored."""
        return sum(tensor.bytes for tensor in self.tensors.values())


@dataclass(frozen=True, slots=True)
class LongArray:
    """An array that was skipped: how many items it has."""

    length: int


class _Reader:
    def __init__(self, data: mmap.mmap, where: str) -> None:
        self.data, self.where, self.at = data, where, 0

    def fail(self, what: str) -> InputError:
        return InputError(f"{self.where}: {what}", remedy=_REST if what.startswith("truncated") else _AGAIN)

    def scalar(self, code: str) -> Any:
        size = struct.calcsize(code)
        if self.at + size > len(self.data):
            raise self.fail(f"truncated within the header, at byte {self.at:,}")
        (value,) = struct.unpack_from("<" + code, self.data, self.at)
        self.at += size
        return value

    def skip_string(self) -> None:
        self.at += 8 + int.from_bytes(self.data[self.at : self.at + 8], "little")
        if self.at > len(self.data):
            raise self.fail("truncated within the header")

    def string(self) -> str:
        length = self.scalar("Q")
        if self.at + length > len(self.data):
            raise self.fail(f"truncated within the header, at byte {self.at:,}")
        raw = self.data[self.at : self.at + length]
        self.at += length
        return raw.decode("utf-8", "replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind])
        if kind == 8:
            return self.string()
        if kind == 9:
            return self.array(depth + 1)
        raise self.fail(f"unknown metadata type {kind}")

    def array(self, depth: int) -> Any:
        """Read an array of metadata; of a long one, which is skipped, its length."""
        kind, length = self.scalar("I"), self.scalar("Q")
        if length > _MAX_ITEMS:
            raise self.fail(f"an array claims {length:,} items")
        if depth > _MAX_DEPTH:
            raise self.fail(f"arrays stand more than {_MAX_DEPTH} deep in each other")
        if length <= 1024:
            return [self.value(kind, depth) for _ in range(length)]
        if kind in _SCALARS:
            self.at += length * struct.calcsize(_SCALARS[kind])
        elif kind == 8:
            for _ in range(length):
                self.skip_string()
        else:
            raise self.fail("nested arrays of this size are not read")
        if self.at > len(self.data):
            raise self.fail("truncated within the header")
        return LongArray(length)

    def tensor(self) -> tuple[GgufTensor, int]:
        """Read a tensor's entry, and the position of its data in bytes from where the data begin."""
        name, dims = self.string(), self.scalar("I")
        if dims > _MAX_DIMS:
            raise self.fail(f"tensor {name!r} claims {dims} dimensions")
        shape = tuple(reversed([self.scalar("Q") for _ in range(dims)]))
        number, offset = self.scalar("I"), self.scalar("Q")
        if number in _REMOVED:
            what = f"{self.where}: tensor {name!r} has a type ({number}) that llama.cpp no longer reads"
            raise InputError(what, remedy="Convert the model again with a current llama.cpp.")
        if number not in _TYPES:
            raise self.fail(f"tensor {name!r} has the unknown type {number}")
        kind, block, block_bytes = _TYPES[number]
        if 0 in shape:
            raise self.fail(f"tensor {name!r} of {list(shape)} has no elements")
        if shape and shape[-1] % block:
            raise self.fail(f"tensor {name!r} of {list(shape)} is no whole number of {kind} blocks")
        return GgufTensor(name, kind, shape, math.prod(shape) // block * block_bytes), offset


def read_gguf_header(path: Path) -> GgufHeader:
    """Read the header of a GGUF file (version 2 or 3), checked against the file's size."""
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{path}: not a file", remedy="Name the .gguf file itself.")
        with path.open("rb") as file:
            if (size := path.stat().st_size) < _LEAST:
                begins = strange(file.read(LOOKED_AT), str(path), "GGUF")
                raise begins or InputError(f"{path}: only {size} bytes, no GGUF file", remedy=_REST)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _read(_Reader(data, str(path)))
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror})", remedy="Check the path and its permissions."
        ) from error


def _read(reader: _Reader) -> GgufHeader:
    if reader.data[:4] != b"GGUF":
        raise strange(reader.data[:LOOKED_AT], reader.where, "GGUF") or reader.fail("does not start with GGUF")
    reader.at = 4
    version, tensor_count, item_count = reader.scalar("I"), reader.scalar("Q"), reader.scalar("Q")
    if version in _SWAPPED:
        what = f"{reader.where}: a big-endian GGUF file, for machines such as IBM Z"
        raise InputError(
            what, remedy="Turn it round: `gguf-convert-endian FILE little` (pip install gguf), then name it again."
        )
    if version not in (2, 3):
        raise InputError(
            f"{reader.where}: GGUF version {version} is not read", remedy="Convert the file with a current llama.cpp."
        )
    if tensor_count > _MAX_ITEMS or item_count > _MAX_ITEMS:
        raise reader.fail(f"the header claims {tensor_count:,} tensors and {item_count:,} entries")
    metadata = {}
    for _ in range(item_count):
        key = reader.string()
        metadata[key] = reader.value(reader.scalar("I"))
    found = [reader.tensor() for _ in range(tensor_count)]
    alignment = Fields(metadata, reader.where, "metadata", remedy=_AGAIN).integer(
        "general.alignment", default=32, at_least=1
    )
    start = -(-reader.at // alignment) * alignment
    position = 0
    for tensor, offset in sorted(found, key=lambda pair: pair[1]):
        if offset < position:
            raise reader.fail(f"tensor {tensor.name!r} overlaps another")
        position = offset + tensor.bytes
    if start + position > len(reader.data):
        missing = start + position - len(reader.data)
        raise reader.fail(
            f"truncated: the header describes {start + position:,} bytes, the file has {len(reader.data):,}, {missing:,} are missing"
        )
    tensors = {tensor.name: tensor for tensor, _ in found}
    if len(tensors) != len(found):
        raise reader.fail("a tensor name stands twice")
    return GgufHeader(metadata, tensors)
