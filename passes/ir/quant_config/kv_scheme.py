"""The type of the KV cache that a checkpoint's quantization asks for, in the words of the tools that write it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: (bits, kind) of a scheme, and ModelOpt's names -> our name of the type, where there is one.
_SCHEMES = {(8, "float"): "fp8", (4, "float"): "nvfp4"}
_NAMES = {"fp8": "fp8", "nvfp4": "nvfp4"}


def declared_cache(settings: Mapping[str, Any]) -> str | None:
    """Return the type that `kv_cache_scheme` or ModelOpt's `kv_cache_quant_algo` names; None where neither is there or known.

    compressed-tensors and ModelOpt since 0.31 write a scheme of bits and kind, older ones of ModelOpt a name. Read as
    `get_kv_cache_quant_algo_string` in vLLM 0.32's `utils/torch_utils.py` does.
    """
    said = settings.get("kv_cache_scheme") or settings.get("kv_cache_quant_algo")
    if isinstance(said, Mapping):
        bits, kind = said.get("num_bits"), said.get("type")
        return _SCHEMES.get((bits, kind)) if isinstance(bits, int) and isinstance(kind, str) else None
    return _NAMES.get(said.lower()) if isinstance(said, str) else None
