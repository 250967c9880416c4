"""Which kernel an engine runs for a stored matrix, and in which arithmetic.

A weight-only format is multiplied in 16 bit after unpacking; a format with quantized activations uses the card's faster rate
where the card has one, else the engine falls back to weight-only (vLLM runs FP8 weights through Marlin below compute
capability 8.9, and FP4 below 10.0).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from passes.formats.format import Format, KernelFamily, integer_kernel


@dataclass(frozen=True, slots=True)
class Kernel:
    """`family` names the row of fitted efficiencies; `arithmetic` the card's rate it is limited by: bf16, fp8, int8, fp4."""

    family: str
    arithmetic: str


#: Kernel families that have fitted efficiencies.
FAMILIES = ("w16", "w8", "w4", "awq", "w8a8", "fp8", "fp4", "mx", "bnb", "exl", "exl-gptq")

_EXLLAMA = ("exllamav2", "exllamav3")
#: Families with quantized activations: their arithmetic, the least card that has it, the weight-only family below.
_NATIVE = {
    KernelFamily.FP4: ("fp4", 10.0, KernelFamily.W4),
    KernelFamily.FP8: ("fp8", 8.9, KernelFamily.W8),
    KernelFamily.W8A8: ("int8", 7.5, KernelFamily.W8),
}


@lru_cache(maxsize=1 << 10)
def kernel_of(engine: str, form: Format, capability: float) -> Kernel:
    """Return the kernel of one storage format on a card of this CUDA compute capability (9.0 for Hopper; 0 for a processor)."""
    family = form.kernel
    if family is KernelFamily.W16:
        return Kernel(family, "bf16")
    if engine in _EXLLAMA:
        return Kernel("exl-gptq" if family is KernelFamily.GPTQ else "exl", "bf16")
    if family in (KernelFamily.GPTQ, KernelFamily.EXL):
        return Kernel(integer_kernel(form.bits), "bf16")
    if family not in _NATIVE:
        return Kernel(family, "bf16")
    arithmetic, least, below = _NATIVE[family]
    # A processor multiplies int8 itself.
    native = capability >= least or (engine == "vllm-cpu" and family is KernelFamily.W8A8)
    return Kernel(family, arithmetic) if native else Kernel(below, "bf16")
