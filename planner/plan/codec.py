"""The JSON shapes of the command-line contract, from the rooms' result types."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from targets.engines.engine import KVEstimate, Memory, Parallel, Settings, SpeedEstimate
from targets.quantity import Quantity

if TYPE_CHECKING:
    from planner.quality.expected import Quality

FORMAT_VERSION = "1"


def quantity_json(quantity: Quantity) -> dict[str, Any]:
    """A quantity; infinities (a model without a cache) become null."""
    return {k: (None if isinstance(v, float) and not math.isfinite(v) else v) for k, v in quantity.as_json().items()}


def memory_json(memory: Memory) -> dict[str, Any]:
    """Bytes by term, of the tightest rank."""
    terms = ("weights", "kv_cache", "activations", "non_torch", "cuda_graphs", "total", "budget")
    out: dict[str, Any] = {term: quantity_json(_whole(getattr(memory, term))) for term in terms}
    if memory.per_rank:
        out["per_rank"] = [dict(rank) for rank in memory.per_rank]
    return out


def _whole(quantity: Quantity) -> Quantity:
    return Quantity(round(quantity.value), round(quantity.low), round(quantity.high), quantity.basis)


def kv_json(kv: KVEstimate) -> dict[str, Any]:
    """What the cache holds."""
    return {
        "bytes_per_token": kv.bytes_per_token,
        "bytes_per_sequence": kv.bytes_per_sequence,
        "tokens": quantity_json(kv.tokens),
        "max_concurrency": quantity_json(kv.max_concurrency),
        "max_context": kv.max_context,
    }


def speed_json(speed: SpeedEstimate | None) -> dict[str, Any] | None:
    """Latency and throughput; None where nothing could be said."""
    if speed is None:
        return None
    names = ("ttft_ms", "tpot_ms", "prefill_tok_s", "decode_tok_s_per_request", "throughput_tok_s")
    return {name: quantity_json(getattr(speed, name)) for name in names}


def quality_json(quality: Quality) -> dict[str, Any]:
    """Expected rise of log-perplexity and KL divergence."""
    return {"log_ppl_increase": quantity_json(quality.log_ppl_increase), "kl": quantity_json(quality.kl)}


#: Settings that a plan names where they were set.
_SETTINGS = (
    "version", "gpu_memory_utilization", "max_num_seqs", "max_num_batched_tokens", "block_size", "kv_cache_memory_bytes",
)  # fmt: skip


def settings_json(settings: Settings) -> dict[str, Any]:
    """Engine settings that were set, and the parallel layout."""
    p = settings.parallel
    out: dict[str, Any] = {"tensor_parallel": p.tp, "pipeline_parallel": p.pp}
    if p.dp > 1 or p.ep > 1:
        out |= {"data_parallel": p.dp, "expert_parallel": p.ep}
    for name in _SETTINGS:
        value = getattr(settings, name)
        if value is not None:
            out[name] = value
    if settings.enforce_eager:
        out["enforce_eager"] = True
    return out


def settings_from(document: Mapping[str, Any]) -> Settings:
    """Return the settings that `settings_json` wrote; what a plan does not keep (a reserve) is at its default."""
    degrees = ("tensor_parallel", "pipeline_parallel", "data_parallel", "expert_parallel")
    return Settings(
        parallel=Parallel(*(document.get(degree, 1) for degree in degrees)),
        enforce_eager=document.get("enforce_eager", False),
        **{name: document[name] for name in _SETTINGS if name in document},
    )
