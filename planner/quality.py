"""Expected loss of quality of a chain of passes: the rise of log-perplexity and the KL divergence, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from passes.base import Pass
from passes.ir.model import ModelIR
from passes.kv_cache import KVCachePass
from passes.quantize.quantize import Quantize
from planner.quality_features import Scheme
from planner.quality_law import weight_loss
from planner.quality_traits import traits_of
from targets.quantity import Basis, Quantity

#: An fp8 KV cache: within the noise of most tables (speed-and-quality notes, section 4), never better than nothing.
_FP8_CACHE = Quantity(0.002, 0.0, 0.01, Basis.ASSUMED)


@dataclass(frozen=True, slots=True)
class Quality:
    """Rise of log-perplexity (nats a token) and KL divergence from the source (nats a token)."""

    log_ppl_increase: Quantity
    kl: Quantity


def expected_quality(ir: ModelIR, passes: Sequence[Pass]) -> Quality:
    """What a chain applied to the dense model `ir` is expected to cost. Losses of passes add up in log-perplexity."""
    rise = Quantity.exact(0.0)
    for one in passes:
        if isinstance(one, Quantize) and one.storage.grid is not None:
            grid = one.storage.grid
            kind = "fp8" if grid.kind == "float" else one.method
            rise = rise + weight_loss(
                traits_of(ir), Scheme(kind, 0 if grid.kind == "float" else grid.bits, grid.group_size)
            )
        elif isinstance(one, KVCachePass) and one.dtype != "auto":
            rise = rise + _FP8_CACHE
    return Quality(rise, rise)
