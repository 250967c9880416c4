"""What vLLM's `--kv-cache-dtype auto` makes of the cache type that a checkpoint's quantization declares, by version."""

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
#: Types that `auto` knows later than fp8 (0.19.1 falls back to the model's own numbers, 0.20.2 does not).
_KNOWN_SINCE: dict[str, Version] = {"nvfp4": (0, 20, 0)}


def as_cached(ir: ModelIR, rules: Rules) -> ModelIR:
    """Return the model with the cache that this version keeps for it: the checkpoint's type where it is taken and none was asked for."""
    return _as_declared(ir) if _taken(ir, rules) else ir


@remembered
def _as_declared(ir: ModelIR) -> ModelIR:
    return replace(ir, kv_cache=replace(ir.kv_cache, dtype=ir.kv_cache.declared or OWN))


def cache_note(ir: ModelIR, rules: Rules) -> str | None:
    """Say what becomes of the type that the checkpoint declares; None where one was asked for, or none is declared."""
    declared = ir.kv_cache.declared
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
