"""What a CUDA rank of vLLM allocates for its parameters beyond the bytes of the matrices themselves.

allocator   torch hands out segments of 2 MiB from 10 MiB on and keeps a rest of at most 1 MiB with the tensor
            (`kMinLargeAlloc`, `kRoundLarge`, `kLargeBuffer` / `should_split` in c10/cuda/CUDACachingAllocator.cpp), so fused
            matrices of 87.5 segments cost 88
rotary      one table of cosines and sines a kind of rotary embedding, as long as the model's longest position
            (vLLM `layers/rotary_embedding`): 2.5 GiB for Llama 4 Scout's 10 M positions
latent      MLA keeps kv_b_proj for prompts and its two absorbed halves for decoding (`MLACommonImpl`)
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from passes.ir.model import ModelIR
from passes.ir.state import FullKV, LatentKV

_SEGMENT, _LARGE, _KEPT = 2 << 20, 10 << 20, 1 << 20


def allocated(size: int) -> int:
    """Bytes that torch's allocator counts for a tensor of `size` bytes."""
    rounded = math.ceil(size / 512) * 512
    if rounded < _LARGE:
        return rounded
    segment = math.ceil(rounded / _SEGMENT) * _SEGMENT
    return segment if segment - rounded <= _KEPT else rounded


def rotary_bytes(ir: ModelIR) -> int:
    """Bytes of all rotary tables of a model; the same on every rank."""
    text = ir.config.get("text_config")
    config: Mapping[str, Any] = text if isinstance(text, Mapping) else ir.config
    dims = _rotary_dims(ir, config)
    if not dims:
        return 0
    size = 4 if ir.dtype == "F32" else 2
    latent = any(isinstance(block.state, LatentKV) for block, _ in ir.decoder.counts)
    longest = int(config.get("max_position_embeddings") or ir.max_context)
    return sum(
        _positions(rope, longest) * dims * (4 if latent and _kind(rope) == "yarn" else size) for rope in _ropes(config)
    )


def _rotary_dims(ir: ModelIR, config: Mapping[str, Any]) -> int:
    """Elements of one position: the part of a head that rotates; 0 for models without rotary positions."""
    if not any(key in config for key in ("rope_theta", "rope_scaling", "rope_parameters", "rotary_pct", "rotary_dim")):
        return 0
    for block, _ in ir.decoder.counts:
        if isinstance(block.state, LatentKV):
            return block.state.rope_dim
        if isinstance(block.state, FullKV):
            rope = config.get("rope_parameters")
            partial = config.get("partial_rotary_factor") or (
                rope.get("partial_rotary_factor") if isinstance(rope, Mapping) else None
            )
            return int(block.state.head_dim * float(partial or 1.0))
    return 0


def _ropes(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The kinds of rotary embedding in use: one, or one a layer type."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    nested = [value for value in rope.values() if isinstance(value, Mapping)]
    yield from nested or [rope]
    if not nested and config.get("rope_local_base_freq"):
        yield {}


def _kind(rope: Mapping[str, Any]) -> str:
    return str(rope.get("rope_type") or rope.get("type") or "default")


def _positions(rope: Mapping[str, Any], longest: int) -> int:
    factor, original = float(rope.get("factor") or 1.0), rope.get("original_max_position_embeddings")
    kind = _kind(rope)
    if rope.get("mrope_section"):
        return 4 * longest
    if kind in ("linear", "dynamic"):
        return int(longest * factor)
    if kind == "yarn" and original:
        return int(int(original) * factor)
    if kind in ("longrope", "su") and original:
        return longest + int(original)
    return longest


@lru_cache(maxsize=1 << 10)
def absorbed_bytes(heads_rows: int, rank: int) -> int:
    """Bytes of the absorbed halves of one layer's kv_b_proj on a rank, in 16 bit."""
    return allocated(heads_rows * rank * 2)
