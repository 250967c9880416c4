"""Finds the attention that keeps a block's keys and values, and makes the scales that are stored for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from passes.formats.format import E4M3_MAX
from passes.ir.model import Block, Role
from passes.ir.state import ChunkedKV, FullKV, SlidingKV

if TYPE_CHECKING:
    import torch

_ATTENTION = (Role.K, Role.QKV)


def attention_name(block: Block) -> str | None:
    """Name a block's caching attention (`self_attn.`), None where it keeps no keys and values of its own."""
    if not isinstance(block.state, FullKV | SlidingKV | ChunkedKV):
        return None
    return next((linear.name.rpartition(".")[0] + "." for linear in block.linears if linear.role in _ATTENTION), None)


def scale_tensors(block: Block, prefix: str, key_max: float, value_max: float) -> dict[str, torch.Tensor]:
    """Make the two stored scales of one layer from the largest magnitudes seen; empty for a layer without a cache."""
    import torch

    name = attention_name(block)
    if name is None:
        return {}
    return {
        f"{prefix}{name}{which}_scale": torch.tensor([max(peak, 1e-6) / E4M3_MAX], dtype=torch.float32)
        for which, peak in (("k", key_max), ("v", value_max))
    }
