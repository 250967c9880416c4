"""vLLM's cache for DeepSeek V4: pages of unlike size side by side in a block (0.20; a general rule from 0.29).

A layer keeps its window of compressed keys, its entries (one for `ratio` tokens), its indexer's entries, and what its
compressors have summed so far. All but the entries are sliding caches; the sums' have blocks of 4 and 8 tokens, so
that how many blocks of the pool a request holds follows the batched tokens.

Sources: vLLM 0.32's `models/deepseek_v4/attention.py`, `models/deepseek_v4/compressor.py:CompressorStateCache`,
`v1/attention/backends/mla/sparse_swa.py`, `v1/core/kv_cache_utils.py:_get_packed_kv_cache_groups`. Before 0.29 a
block held as many pages of each size of the entries as a group has layers (6.66 GiB for 30,000 tokens of V4-Flash in
0.22, vllm-project/vllm#44376).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from passes.ir.state import CompressedKV
from targets.engines.kv_spec import Spec

#: Tokens of a block of entries, and of the windows' blocks.
ENTRY_BLOCK, _WINDOW_BLOCK = 256, 64
#: Bytes of an entry (448 in FP8, 64 rotary in 16 bit, 8 of scales: `fp8_ds_mla`), and what pages are rounded up to.
_ENTRY_BYTES, _ALIGNMENT = 584, 576
#: Of the indexer: elements that share an fp32 scale.
_INDEX_GROUP = 128
#: Tokens of a block of a compressor's sums by ratio; at ratio 4 windows overlap, which doubles width and reach.
_SUM_BLOCK = {4: 4, 128: 8}
_OVERLAPPING = 4

#: Specs of one kind and block size, with the count of layers for each size of page.
Bucket = dict[Spec, int]


def _page(size: float) -> int:
    return math.ceil(size / _ALIGNMENT) * _ALIGNMENT


def index_entry_bytes(index_dim: int) -> int:
    """Return what an indexer keeps of a token or an entry: keys in FP8, and scales."""
    return index_dim + math.ceil(index_dim / _INDEX_GROUP) * 4


def compressed_specs(state: CompressedKV) -> Iterator[Spec]:
    """Yield all that one layer stores."""
    yield Spec("sliding", _page(_WINDOW_BLOCK * _ENTRY_BYTES), _WINDOW_BLOCK, state.window)
    if not state.ratio:
        return
    rows = ENTRY_BLOCK // state.ratio
    yield Spec("mla", _page(rows * _ENTRY_BYTES), ENTRY_BLOCK)
    yield _sums(state.head_dim, state.ratio)
    if state.index_dim:
        yield Spec("mla", _page(rows * index_entry_bytes(state.index_dim)), ENTRY_BLOCK)
        yield _sums(state.index_dim, state.ratio)


def _sums(width: int, ratio: int) -> Spec:
    """A compressor's running sums of keys and weights in fp32."""
    windows, block = (2 if ratio == _OVERLAPPING else 1), _SUM_BLOCK.get(ratio, 8)
    return Spec("sliding", _page(block * 2 * windows * width * 4), block, windows * ratio)


def packed_groups(
    states: Sequence[tuple[CompressedKV, int]], *, widest_group: bool
) -> tuple[tuple[tuple[Spec, int], ...], int]:
    """Return the groups, a spec with its layers each, and the bytes of a block: of the widest group's pages, or of the older rule."""
    buckets = _buckets(states)
    balanced = [bucket for bucket in buckets if len(set(bucket.values())) == 1]
    floor = max((next(iter(bucket.values())) for bucket in balanced if len(bucket) > 1), default=1)
    size = _least_padding([next(iter(bucket.values())) for bucket in balanced], floor) if balanced else floor
    groups: list[tuple[Spec, int]] = []
    widest = 0
    for bucket in buckets:
        parts = math.ceil(max(bucket.values()) / size) if bucket in balanced else 1
        groups += [(next(iter(bucket)), math.ceil(sum(bucket.values()) / parts))] * parts
        widest = max(widest, sum(math.ceil(count / parts) * spec.page_bytes for spec, count in bucket.items()))
    entries = [bucket for bucket in buckets if next(iter(bucket)).kind == "mla"]
    if not widest_group and entries:
        widest = size * sum(spec.page_bytes for spec in entries[0])
    return tuple(groups), widest


def _buckets(states: Sequence[tuple[CompressedKV, int]]) -> list[Bucket]:
    """Layers whose caches need equally many slots, whatever the size of their pages."""
    found: dict[tuple[str, int, int], Bucket] = {}
    for state, count in states:
        for spec in compressed_specs(state):
            bucket = found.setdefault((spec.kind, spec.block_size, spec.reach), {})
            bucket[spec] = bucket.get(spec, 0) + count
    return list(found.values())


def _least_padding(counts: Sequence[int], floor: int) -> int:
    """The size of groups, not below a floor, that pads least; the largest of equals (`_approximate_gcd`)."""
    sizes = range(max(1, floor), max(floor, *counts) + 1)
    return min(sizes, key=lambda size: (sum(-count % size for count in counts), -size))
