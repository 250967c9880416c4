"""Which kernel an engine runs for a stored matrix, and in which arithmetic.

A weight-only format is multiplied in 16 bit after unpacking; a format with quantized activations uses the card's faster rate
where the card has one, else the engine falls back to weight-only (vLLM runs FP8 weights through Marlin below compute
capability 8.9, and FP4 below 10.0).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from passes.formats.dense import Dense
from passes.formats.format import Format


@dataclass(frozen=True, slots=True)
class Kernel:
    """`family` names the row of fitted efficiencies; `arithmetic` the card's rate it is limited by: bf16, fp8, int8, fp4."""

    family: str
    arithmetic: str


#: Kernel families that have fitted efficiencies.
FAMILIES = ("w16", "w8", "w4", "awq", "w8a8", "fp8", "fp4", "mx", "bnb", "exl", "exl-gptq")

_EXLLAMA = ("exllamav2", "exllamav3")


@lru_cache(maxsize=1 << 10)
def kernel_of(engine: str, storage: Format, capability: float) -> Kernel:
    """The kernel of one storage format on a card of this CUDA compute capability (9.0 for Hopper; 0 for a processor)."""
    if isinstance(storage, Dense):
        return Kernel("w16", "bf16")
    if engine in _EXLLAMA:
        return Kernel("exl-gptq" if storage.kind == "gptq" else "exl", "bf16")
    kind = f"{storage.kind} {storage.label}"
    if "fp4" in kind:
        native = capability >= 10 and "nvfp4" in kind
        return Kernel("fp4", "fp4") if native else Kernel("mx" if "mxfp4" in kind else "w4", "bf16")
    if "nf4" in kind or "bnb" in kind:
        return Kernel("bnb", "bf16")
    if "fp8" in kind:
        return Kernel("fp8", "fp8") if capability >= 8.9 else Kernel("w8", "bf16")
    if "w8a8" in kind:
        return Kernel("w8a8", "int8") if capability >= 7.5 or engine == "vllm-cpu" else Kernel("w8", "bf16")
    if "awq" in kind:
        return Kernel("awq", "bf16")
    grid = storage.grid
    bits = grid.bits if grid is not None else 8 * storage.bytes(4096, 4096) / 4096**2
    return Kernel("w8", "bf16") if bits > 5 else Kernel("w4", "bf16")
