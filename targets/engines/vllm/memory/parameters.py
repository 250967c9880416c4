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

from passes.ir.architectures.config import Config
from passes.ir.fields import Fields
from passes.ir.model import ModelIR, remembered
from passes.ir.state import FullKV, LatentKV

_SEGMENT, _LARGE, _KEPT = 2 << 20, 10 << 20, 1 << 20
#: Families whose positions have three axes, whatever of that stands in a config: their tables are four times as long
#: (`rotary_embedding/mrope.py`).
_THREE_AXES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")


def allocated(size: int) -> int:
    """Count the bytes that torch's allocator has for a tensor of `size` bytes."""
    rounded = math.ceil(size / 512) * 512
    if rounded < _LARGE:
        return rounded
    segment = math.ceil(rounded / _SEGMENT) * _SEGMENT
    return segment if segment - rounded <= _KEPT else rounded


@remembered
def rotary_bytes(ir: ModelIR) -> int:
    """Count the bytes of all rotary tables of a model; the same on every rank."""
    root = Config(ir.config, ir.name)
    config = root.part("text_config") if root.has("text_config") else root
    dims = _rotary_dims(ir, config)
    if not dims:
        return 0
    size = 4 if ir.dtype == "F32" else 2
    latent = any(isinstance(block.state, LatentKV) for block, _ in ir.decoder.counts)
    longest = config.integer("max_position_embeddings", default=ir.max_context)
    if ir.model_type in _THREE_AXES:
        return 4 * longest * dims * size
    return sum(
        _positions(rope, longest) * dims * (4 if latent and _kind(rope) == "yarn" else size) for rope in _ropes(config)
    )


def _rotary_dims(ir: ModelIR, config: Config) -> int:
    """Elements of one position: the part of a head that rotates; 0 for models without rotary positions."""
    if not any(
        key in config.values for key in ("rope_theta", "rope_scaling", "rope_parameters", "rotary_pct", "rotary_dim")
    ):
        return 0
    for block, _ in ir.decoder.counts:
        if isinstance(block.state, LatentKV):
            return block.state.rope_dim
        if isinstance(block.state, FullKV):
            inside = config.inside("rope_parameters", {}).number("partial_rotary_factor", default=1.0)
            return int(block.state.head_dim * (config.number("partial_rotary_factor", default=inside) or 1.0))
    return 0


def _ropes(config: Config) -> Iterator[Fields]:
    """The kinds of rotary embedding in use: one, or one a layer type."""
    rope = config.inside("rope_parameters", {})
    if not rope.values:
        rope = config.inside("rope_scaling", {})
    nested = [rope.inside(key) for key, value in rope.values.items() if isinstance(value, Mapping)]
    yield from nested or [rope]
    if not nested and config.has("rope_local_base_freq"):
        yield Fields({}, config.name, config.path)


def _kind(rope: Fields) -> str:
    return rope.text("rope_type", "") or rope.text("type", "default")


def _positions(rope: Fields, longest: int) -> int:
    factor = rope.number("factor", default=1.0) or 1.0
    original = rope.integer("original_max_position_embeddings", default=0)
    kind = _kind(rope)
    if rope.has("mrope_section"):
        return 4 * longest
    if kind in ("linear", "dynamic"):
        return int(longest * factor)
    if kind == "yarn" and original:
        return int(original * factor)
    if kind in ("longrope", "su") and original:
        return longest + original
    return longest


@lru_cache(maxsize=1 << 10)
def absorbed_bytes(heads_rows: int, rank: int) -> int:
    """Count the bytes of the absorbed halves of one layer's kv_b_proj on a rank, in 16 bit."""
    return allocated(heads_rows * rank * 2)
