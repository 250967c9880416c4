"""Exact sizes of safetensors files from the description of their tensors, and the usual rule that splits them into shards.

A file is 8 bytes of length, a compact JSON header padded with spaces to a multiple of 8, then the data. The writer (safetensors'
`serialize`) orders tensors by descending dtype alignment, then by name, so offsets and the header's length follow from names,
dtypes and shapes alone. `tests/formats/test_safetensors_size.py` holds this to files written by `safetensors.torch.save_file`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence

from passes.formats.tensor import Tensor

#: safetensors' dtypes in the order its writer puts them (safetensors 0.8, `enum Dtype` reversed).
_ORDER = (
    "U64", "I64", "F64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16",
    "F8_E8M0", "F8_E4M3", "F8_E5M2", "I8", "U8", "F4", "BOOL",
)  # fmt: skip
_RANK = {dtype: rank for rank, dtype in enumerate(_ORDER)}
_ALIGNMENT = 8
#: What PyTorch writers put into the header.
PYTORCH = {"format": "pt"}


def header_bytes(tensors: Iterable[Tensor], metadata: Mapping[str, str] = PYTORCH) -> int:
    """Bytes before the data: the length field and the padded JSON."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    start = 0
    for tensor in sorted(tensors, key=lambda t: (_RANK[t.dtype], t.name.encode())):
        end = start + tensor.bytes
        entries[tensor.name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    return 8 + -(-len(text) // _ALIGNMENT) * _ALIGNMENT


def file_bytes(tensors: Iterable[Tensor], metadata: Mapping[str, str] = PYTORCH) -> int:
    """Bytes of one safetensors file with these tensors."""
    listed = tuple(tensors)
    return header_bytes(listed, metadata) + sum(tensor.bytes for tensor in listed)


def split_shards(tensors: Iterable[Tensor], limit_bytes: int) -> tuple[tuple[Tensor, ...], ...]:
    """Shards by huggingface_hub's rule: in the given order, a new shard where the next tensor would pass the limit.

    A tensor larger than the limit stands alone in a shard of its own and does not end the one being filled.
    """
    shards: list[list[Tensor]] = []
    current: list[Tensor] = []
    filled = 0
    for tensor in tensors:
        if tensor.bytes > limit_bytes:
            shards.append([tensor])
            continue
        if filled + tensor.bytes > limit_bytes:
            shards.append(current)
            current, filled = [], 0
        current.append(tensor)
        filled += tensor.bytes
    if current:
        shards.append(current)
    return tuple(tuple(shard) for shard in shards)


def checkpoint_bytes(shards: Sequence[Iterable[Tensor]], metadata: Mapping[str, str] = PYTORCH) -> int:
    """Bytes of all weight files of a checkpoint, the index not counted."""
    return sum(file_bytes(shard, metadata) for shard in shards)
