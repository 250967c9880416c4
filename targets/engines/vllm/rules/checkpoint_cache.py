"""What vLLM's `--kv-cache-dtype auto` is, by version: the type that a checkpoint's quantization declares, or its own where attention picks
tokens by an indexer, whose entries may be packed.
"""

from __future__ import annotations

from dataclasses import replace

from passes.formats.kv_dtypes import OWN, kv_dtype
from passes.ir.model import ModelIR, remembered
from passes.ir.state import LatentKV
from targets.engines.vllm.rules.versions import Rules, Version

#: Start of a `quant_method` -> the first version whose `auto` takes the type from its files. Read in 0.13.0–0.32.0: ModelOpt's in
#: `utils/torch_utils.py:resolve_kv_cache_dtype_string` (pull request 30785), compressed-tensors' in the `Attention` layer
#: (pull request 30141), which latent caches do not go through.
_TAKEN_SINCE: dict[str, Version] = {"modelopt": (0, 14, 0), "compressed": (0, 15, 0)}
_LATENT_TAKE = ("modelopt",)
#: The one of those architectures whose `auto` is a rule of its own.
_GLM = "GlmMoeDsaForCausalLM"
#: Bytes of a token's latent in the packed types of attention that picks tokens.
PACKED = {"fp8_ds_mla": 656, "nvfp4_ds_mla": 352}
#: Types that `auto` knows later than fp8 (0.19.1 falls back to the model's own numbers, 0.20.2 does not).
_KNOWN_SINCE: dict[str, Version] = {"nvfp4": (0, 20, 0)}


def as_cached(ir: ModelIR, rules: Rules) -> ModelIR:
    """Return the model with the cache that this version keeps for it where none was asked for: the checkpoint's type where it is taken,
    else what `auto` is for attention that picks tokens.
    """
    if _taken(ir, rules):
        return _as_declared(ir)
    return _kept_in(ir, kept) if (kept := _by_itself(ir, rules)) else ir


def _by_itself(ir: ModelIR, rules: Rules) -> str:
    """What `auto` is for attention that picks tokens; empty where that is the model's own numbers."""
    if ir.kv_cache.dtype != OWN or not index_dim(ir):
        return ""
    return rules.blackwell_sparse_auto if ir.architecture == _GLM else rules.sparse_auto


@remembered
def _kept_in(ir: ModelIR, dtype: str) -> ModelIR:
    return replace(ir, kv_cache=replace(ir.kv_cache, dtype=dtype))


@remembered
def _as_declared(ir: ModelIR) -> ModelIR:
    return replace(ir, kv_cache=replace(ir.kv_cache, dtype=ir.kv_cache.declared or OWN))


@remembered
def index_dim(ir: ModelIR) -> int:
    """Return the elements of an indexer's key of a token, 0 for models whose latent attention picks none."""
    return max(
        (block.state.index_dim for block, _ in ir.decoder.counts if isinstance(block.state, LatentKV)), default=0
    )


def packed_entry(ir: ModelIR, rules: Rules, tp: int) -> int:
    """Return the bytes of a token's latent where its back end packs it with its scales, 0 where it does not.

    512 values in FP8 with four fp32 scales, 64 rotary in 16 bits; FP4 has scales of 16, rotary in FP8 (`MLAAttention.get_kv_cache_spec`).
    """
    if not index_dim(ir):
        return 0
    if ir.kv_cache.dtype != "fp8":
        return PACKED.get(ir.kv_cache.dtype, 0)
    few = max(block.heads for block, _ in ir.decoder.counts) // tp <= rules.few_heads
    return 0 if few else rules.packed_latent


def cache_note(ir: ModelIR, rules: Rules) -> str | None:
    """Say what becomes of the type that the checkpoint declares; None where one was asked for, or none is declared."""
    declared = ir.kv_cache.declared
    if not _taken(ir, rules) and (kept := _by_itself(ir, rules)):
        return f"vLLM {rules.said} keeps the KV cache of {ir.architecture} in {kept} here where nothing is set"
    if declared is None or ir.kv_cache.dtype != OWN:
        return None
    if _taken(ir, rules):
        return f"the checkpoint asks for a KV cache in {declared}, which vLLM's auto takes"
    return f"the checkpoint asks for a KV cache in {declared}, which vLLM {rules.said} does not take by itself: counted unquantized"


def _taken(ir: ModelIR, rules: Rules) -> bool:
    declared = ir.kv_cache.declared
    if ir.kv_cache.dtype != OWN or declared is None or kv_dtype(declared) is None:
        return False
    method = next((start for start in _TAKEN_SINCE if (ir.quant_method or "").startswith(start)), None)
    if method is None or rules.version < max(_TAKEN_SINCE[method], _KNOWN_SINCE.get(declared, _TAKEN_SINCE[method])):
        return False
    latent = any(isinstance(block.state, LatentKV) for block, _ in ir.decoder.counts)
    return method in _LATENT_TAKE or not latent
