"""Which kernel vLLM runs for a stored matrix, and in which arithmetic.

A weight-only format is multiplied in 16 bit after unpacking; a format with quantized activations uses the card's faster rate
where the card has one, else vLLM falls back to weight-only (FP8 weights run through Marlin below compute capability 8.9, and FP4
below 10.0).
"""

from __future__ import annotations

from functools import lru_cache

from passes.formats.format import Format, KernelFamily, integer_kernel
from targets.speed.kernels import Kernel

#: Families with quantized activations: their arithmetic, the least card that has it, the weight-only family below.
_NATIVE = {
    KernelFamily.FP4: ("fp4", 10.0, KernelFamily.W4),
    KernelFamily.FP8: ("fp8", 8.9, KernelFamily.W8),
    KernelFamily.W8A8: ("int8", 7.5, KernelFamily.W8),
}
#: FP8 in blocks: below it Marlin's kernel stands before Triton's (`_POSSIBLE_FP8_BLOCK_KERNELS` of 0.20–0.33). Experts, whose Triton kernel
#: rounds inputs from 8.9 on, are not told apart.
_FP8_BLOCKS = 9.0


@lru_cache(maxsize=1 << 10)
def kernel_of(form: Format, capability: float, *, int8: bool = False) -> Kernel:
    """Return the kernel of a format on a card of this CUDA compute capability (9.0 for Hopper; 0 for a processor).

    `int8`: the backend multiplies INT8 whatever the capability.
    """
    family = form.kernel
    if family in (KernelFamily.GPTQ, KernelFamily.EXL):
        return Kernel(integer_kernel(form.bits), "bf16")
    if family not in _NATIVE:
        return Kernel(family, "bf16")
    arithmetic, least, below = _NATIVE[family]
    if family is KernelFamily.FP8 and form.block is not None:
        least = _FP8_BLOCKS
    native = capability >= least or (int8 and family is KernelFamily.W8A8)
    return Kernel(family, arithmetic) if native else Kernel(below, "bf16")
