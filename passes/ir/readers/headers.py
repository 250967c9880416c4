"""Safetensors headers, read strictly and without torch: the truth about what a checkpoint holds.

Format: 8 bytes little-endian length, a JSON object `{name: {dtype, shape, data_offsets}}`, then the data
(https://github.com/huggingface/safetensors, README "Format").
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from passes.errors import InputError
from passes.formats.tensor import DTYPE_BITS, Tensor
from passes.ir.fields import Fields, file_bytes, json_object, shown
from passes.ir.readers.strange import LOOKED_AT, PICKLE_REMEDY, strange
from passes.record import dataclass

#: The safetensors library's own limit of a header's length.
MAX_HEADER_BYTES = 100_000_000

#: No file is longer (ext4's own limit is 16 TiB).
_FAR = 1 << 48

_AGAIN = "Its header and its data do not belong together: fetch the file anew where it comes from (`hf download` goes on where it stopped)."


@dataclass(frozen=True)
class Header:
    """What a checkpoint's headers say: every tensor with the file that holds it, and the metadata of the first file."""

    tensors: Mapping[str, Tensor]
    files: Mapping[str, str]
    """Tensor name -> file name."""

    @property
    def digest(self) -> str:
        """sha256 over sorted names, dtypes and shapes."""
        return digest(self.tensors.values())

    @property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.bytes for tensor in self.tensors.values())


def digest(tensors: Iterable[Tensor]) -> str:
    """Return the sha256 over names, dtypes and shapes, sorted by name."""
    lines = sorted(f"{t.name} {t.dtype} {list(t.shape)}\n" for t in tensors)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def header_length(first: bytes, file_bytes: int, where: str) -> int:
    """Read the length of the JSON header in bytes, from how a file begins. Raises InputError that says what else the file is."""
    length = int.from_bytes(first[:8], "little")
    if length > MAX_HEADER_BYTES or length < 2 or 8 + length > file_bytes:
        if (other := strange(first, where, "safetensors")) is not None:
            raise other
        if len(first) < 8:
            raise InputError(f"{where}: only {file_bytes} bytes, no safetensors file", remedy=_AGAIN)
        raise InputError(f"{where}: the header claims {length:,} bytes, the file has {file_bytes:,}", remedy=_AGAIN)
    return length


def parse_header(raw: bytes, file_bytes: int, where: str) -> dict[str, Tensor]:
    """Read the tensors of one file from the JSON bytes of its header. Checks that offsets tile the data exactly."""
    entries = json_object(raw, f"{where}: the header", remedy=_AGAIN, pairs=_no_duplicates)
    entries.pop("__metadata__", None)
    spans: list[tuple[int, int, str]] = []
    tensors: dict[str, Tensor] = {}
    for name, entry in entries.items():
        tensor, start, end = _entry(name, entry, where)
        tensors[name] = tensor
        spans.append((start, end, name))
    position = 0
    for start, end, name in sorted(spans):
        if start != position:
            what = (
                "overlaps another tensor"
                if start < position
                else f"leaves {start - position:,} bytes unnamed before it"
            )
            raise InputError(f"{where}: tensor {name!r} {what}", remedy=_AGAIN)
        position = end
    if 8 + len(raw) + position != file_bytes:
        raise InputError(
            f"{where}: the header describes {8 + len(raw) + position:,} bytes, the file has {file_bytes:,}"
            + (" (truncated)" if file_bytes < 8 + len(raw) + position else ""),
            remedy=_AGAIN,
        )
    return tensors


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name stands twice")
    return result


def _entry(name: str, entry: Any, where: str) -> tuple[Tensor, int, int]:
    if not isinstance(entry, dict):
        raise InputError(f"{where}: tensor {name!r} should be an object, found {shown(entry)}", remedy=_AGAIN)
    said = Fields(entry, where, f"tensor {name!r}", remedy=_AGAIN)
    dtype, shape = said.text("dtype"), said.counts("shape", at_most=_FAR)
    start, end = said.counts("data_offsets", 2, at_most=_FAR)
    if dtype not in DTYPE_BITS:
        raise said.wrong("dtype", f"one of {', '.join(DTYPE_BITS)}", dtype)
    bits = math.prod(shape) * DTYPE_BITS[dtype]
    if bits % 8 or bits // 8 != end - start:
        raise said.refused(f"{dtype} {shape} is {bits // 8:,} bytes, its data_offsets give it {end - start:,}")
    return Tensor(name, dtype, tuple(shape)), start, end


def read_file_header(path: Path) -> dict[str, Tensor]:
    """Read the tensors of one safetensors file."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = header_length(file.read(LOOKED_AT), size, str(path))
            file.seek(8)
            return parse_header(file.read(length), size, str(path))
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror})", remedy="Check the path and its permissions."
        ) from error


def is_whole(path: Path) -> bool:
    """Tell whether a safetensors file is there with all that its header names."""
    try:
        read_file_header(path)
    except InputError:
        return False
    return True


_INDEX = "Fetch the index file anew; or remove it where all the weights are in model.safetensors."
#: Bytes of a file's name on Linux.
_LONGEST_NAME = 255


def shard_names(index: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """List the shards that a `model.safetensors.index.json` names, in order; paths that leave the folder are refused."""
    weights = Fields(index, where, "the index", remedy=_INDEX).inside("weight_map")
    names = tuple(sorted({weights.text(tensor) for tensor in weights.values}))
    for shard in names:
        strange = "/" in shard or "\\" in shard or shard.startswith(".") or not shard.isprintable()
        if strange or len(shard.encode()) > _LONGEST_NAME or not shard.endswith(".safetensors"):
            raise InputError(
                f"{where}: shard {shard!r:.200} is not a safetensors file of this folder",
                remedy=_INDEX,
            )
    return names


def merge(parts: Mapping[str, Mapping[str, Tensor]], index: Mapping[str, Any] | None, where: str) -> Header:
    """Join the headers of several files; where there is an index, both must name the same tensors in the same files."""
    tensors: dict[str, Tensor] = {}
    files: dict[str, str] = {}
    for file, found in parts.items():
        for name, tensor in found.items():
            if name in tensors:
                raise InputError(
                    f"{where}: tensor {name!r} is in {files[name]} and in {file}", remedy="Remove the stray file."
                )
            tensors[name], files[name] = tensor, file
    for name, file in (index["weight_map"] if index is not None else {}).items():
        if files.get(name) != file:
            raise InputError(
                f"{where}: the index puts {name!r} in {file}, "
                + (f"it is in {files[name]}" if name in files else "which lacks it"),
                remedy="Shards and index do not belong together: take all from one commit (`hf download REPOSITORY --local-dir …`).",
            )
    return Header(tensors, files)


def read_folder_header(folder: Path) -> Header | None:
    """Read the headers of a local checkpoint; None where the folder has no weights at all."""
    index_path = folder / "model.safetensors.index.json"
    if index_path.is_file():
        try:
            index = json_object(file_bytes(index_path), str(index_path), remedy=_INDEX)
        except OSError as error:
            raise InputError(f"{index_path}: cannot be read ({error})", remedy=_INDEX) from error
        shards = shard_names(index, str(index_path))
        for shard in shards:
            if not (folder / shard).is_file():
                raise InputError(
                    f"{folder / shard}: missing; the index names it",
                    remedy=f"Fetch it: `hf download REPOSITORY {shard} --local-dir {folder}`.",
                )
        return merge({shard: read_file_header(folder / shard) for shard in shards}, index, str(index_path))
    found = sorted(path for path in folder.glob("*.safetensors") if path.is_file())
    if len(found) > 1 and (folder / "model.safetensors") in found:
        found = [folder / "model.safetensors"]
    if found:
        return merge({path.name: read_file_header(path) for path in found}, None, str(folder))
    pickles = sorted(
        path
        for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt")
        for path in folder.glob(pattern)
        if "training_args" not in path.name
    )
    if pickles:
        raise InputError(f"{pickles[0]}: a pickle checkpoint is not read", remedy=PICKLE_REMEDY)
    return None
