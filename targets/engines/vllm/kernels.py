"""Which kernel vLLM runs for a stored matrix, and in which arithmetic.

A weight-only format is multiplied in 16 bit after unpacking; a format with quantized activations uses the card's faster rate
where the card has one, else vLLM falls back to weight-only (FP8 weights run through Marlin below compute capability 8.9, and FP4
below 10.0).
"""

from __future__ import annotations

from functools import lru_cache

from passes.formats.dense import Dense
from passes.formats.format import Format
from targets.speed.kernels import Kernel


@lru_cache(maxsize=1 << 10)
def kernel_of(storage: Format, capability: float, *, int8: bool = False) -> Kernel:
    """Return the kernel of a format on a card of this CUDA compute capability (9.0 for Hopper; 0 for a processor).

    `int8`: the backend multiplies INT8 whatever the capability.
    """
    if isinstance(storage, Dense):
        return Kernel("w16", "bf16")
    kind = f"{storage.kind} {storage.label}"
    if "fp4" in kind:
        native = capability >= 10 and "nvfp4" in kind
        return Kernel("fp4", "fp4") if native else Kernel("mx" if "mxfp4" in kind else "w4", "bf16")
    if "nf4" in kind or "bnb" in kind:
        return Kernel("bnb", "bf16")
    if "fp8" in kind:
        return Kernel("fp8", "fp8") if capability >= 8.9 else Kernel("w8", "bf16")
    if "w8a8" in kind:
        return Kernel("w8a8", "int8") if int8 or capability >= 7.5 else Kernel("w8", "bf16")
    if "awq" in kind:
        return Kernel("awq", "bf16")
    grid = storage.grid
    bits = grid.bits if grid is not None else 8 * storage.bytes(4096, 4096) / 4096**2
    return Kernel("w8", "bf16") if bits > 5 else Kernel("w4", "bf16")
