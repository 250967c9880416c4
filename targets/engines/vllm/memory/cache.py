"""What the KV cache of a version is laid out by: bytes of an element, blocks, the caches of a pipeline stage's layers."""

from __future__ import annotations

from dataclasses import replace

from passes.formats.kv_dtypes import cache_bits, head_bytes
from passes.ir.model import Block, ModelIR, Role, remembered
from passes.ir.state import FullKV, LatentKV, LayerState
from targets.engines.engine import Settings
from targets.engines.kv_spec import CacheSettings
from targets.engines.resident_weights import stage_blocks
from targets.engines.vllm.memory import activations
from targets.engines.vllm.rules.checkpoint_cache import index_dim, packed_entry
from targets.engines.vllm.rules.runner import has_states, uses_v2_runner
from targets.engines.vllm.rules.versions import Rules

#: Tokens of a block where nothing is set.
BLOCK = 16
#: Head size that DeepSeek's expanded keys and values were padded to before MLA (0.5–0.6, `deepseek_v2.py`).
_EXPANDED_HEAD = 256


def element_bytes(ir: ModelIR) -> float:
    """Return bytes of one cached key or value, scales of whole heads apart."""
    return cache_bits(ir.kv_cache.dtype, 32 if ir.dtype == "F32" else 16) / 8


def cache_settings(ir: ModelIR, settings: Settings, profile: activations.Profile, rules: Rules) -> CacheSettings:
    """Return what the cache layout depends on, on a CUDA card."""
    return CacheSettings(
        settings.block_size or BLOCK, element_bytes(ir), 4 if ir.dtype == "F32" else 2, profile.tp,
        profile.tokens * _in_flight(ir, profile.pp, rules), caches_prefixes(has_states(ir), settings, rules),
        head_bytes=head_bytes(ir.kv_cache.dtype), context_parallel=settings.features.context_parallel,
        draft_tokens=settings.features.drafting.tokens if settings.features.drafting else 0,
        latent_bytes=packed_entry(ir, rules, profile.tp),
    )  # fmt: skip


def caches_prefixes(states: bool, settings: Settings, rules: Rules) -> bool:
    """Return whether a prompt's beginning is found again: as asked, or by version and whether recurrent states are kept."""
    asked = settings.features.prefix_caching
    if asked is not None:
        return asked
    return rules.hybrid_prefix_caching if states else rules.v1


def _in_flight(ir: ModelIR, pp: int, rules: Rules) -> int:
    """Batches that may hold a recycled block: with asynchronous scheduling two; across stages one each, and one more in V2."""
    if rules.in_flight_batches == 1 or pp == 1:
        return rules.in_flight_batches
    return pp + int(uses_v2_runner(ir, rules))


def stage_states(ir: ModelIR, pp: int, stage: int, rules: Rules) -> tuple[tuple[LayerState, int], ...]:
    """Return the layers' caches of one pipeline stage, with their counts."""
    return tuple((_as_stored(block, rules), count) for block, count in stage_blocks(ir, pp, stage))


def _as_stored(block: Block, rules: Rules) -> LayerState:
    """A layer's cache as this version keeps it: without MLA, latents were expanded to heads padded to 256."""
    if isinstance(block.state, LatentKV) and not rules.mla:
        return FullKV(block.heads, _EXPANDED_HEAD, _EXPANDED_HEAD)
    return block.state


def with_own_indexers(ir: ModelIR, rules: Rules) -> ModelIR:
    """Return the model as a version holds it that builds an indexer, with its cache, in layers too that use another's (GLM-5.2)."""
    return ir if rules.shares_indexers or not index_dim(ir) else _every_layer_indexes(ir)


@remembered
def _every_layer_indexes(ir: ModelIR) -> ModelIR:
    decoder = ir.decoder
    blocks = [decoder.block(i) for i in range(len(decoder.layers))]
    owner = next(block for block in blocks if isinstance(block.state, LatentKV) and block.state.index_dim)
    linears = tuple(linear for linear in owner.linears if linear.role is Role.INDEXER)
    tensors = tuple(tensor for tensor in owner.tensors if ".indexer." in tensor.name)
    whole = [
        block.replace(state=owner.state, linears=(*block.linears, *linears), tensors=(*block.tensors, *tensors))
        if isinstance(block.state, LatentKV) and not block.state.index_dim
        else block
        for block in blocks
    ]
    return replace(ir, stacks=tuple(s.with_blocks(tuple(whole)) if s.name == "decoder" else s for s in ir.stacks))
