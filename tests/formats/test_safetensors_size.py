"""Predicted file sizes are those of the files that safetensors writes."""

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from passes.formats.safetensors_size import checkpoint_bytes, file_bytes, split_shards
from passes.formats.tensor import Tensor

_TORCH = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2, "F8_E8M0": torch.float8_e8m0fnu, "I64": torch.int64, "I32": torch.int32, "I16": torch.int16,
    "I8": torch.int8, "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_NAMES = st.text(st.sampled_from('abzAZ01_."\\é漢\t\n\x7f '), min_size=1, max_size=20)
_KINDS = st.tuples(st.sampled_from(sorted(_TORCH)), st.lists(st.integers(0, 17), max_size=3).map(tuple))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(described=st.dictionaries(_NAMES, _KINDS, max_size=12), metadata=st.sampled_from([{"format": "pt"}, {}]))
def test_one_file(tmp_path: Path, described, metadata):
    path = tmp_path / "model.safetensors"
    save_file({n: torch.zeros(s, dtype=_TORCH[d]) for n, (d, s) in described.items()}, path, metadata=metadata or None)
    assert file_bytes([Tensor(n, d, s) for n, (d, s) in described.items()], metadata) == path.stat().st_size


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(1, 90), max_size=20), limit=st.integers(16, 128))
def test_shards_split_as_huggingface_hub_splits(sizes, limit):
    from huggingface_hub import split_torch_state_dict_into_shards

    tensors = {f"t{i:02d}": torch.zeros(size, dtype=torch.uint8) for i, size in enumerate(sizes)}
    ours = split_shards([Tensor(n, "U8", (len(t),)) for n, t in tensors.items()], limit)
    theirs = split_torch_state_dict_into_shards(tensors, max_shard_size=limit).filename_to_tensors.values()
    assert [[t.name for t in shard] for shard in ours] == [list(names) for names in theirs if names]


def test_a_checkpoint_is_the_sum_of_its_shards():
    tensors = [Tensor(f"layers.{i}.w", "BF16", (64, 32)) for i in range(5)]
    shards = split_shards(tensors, 2 * 64 * 32 * 2)
    assert [len(shard) for shard in shards] == [2, 2, 1]
    assert checkpoint_bytes(shards) == sum(file_bytes(shard) for shard in shards)


@pytest.mark.parametrize("count", [0, 1])
def test_nearly_empty_files(tmp_path: Path, count):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(())} if count else {}, path)
    assert file_bytes([Tensor("a", "F32", ())] if count else [], {}) == path.stat().st_size
