"""EXL2's kernels without a card, in a Python that has Triton. A program of its own: tests run it in the engine's environment.

    TRITON_INTERPRET=1 python -m tests.walk.exl2_interpreted quantize IN OUT    # in Triton's interpreter, on the processor
    python -m tests.walk.exl2_interpreted compile                               # for cards that need not be there

IN holds `parts`, the factor's `permutation` and `inverse`, and `free_bytes` where memory is short (how many parts are then worked on
together at first is printed); OUT gets a list of codes, scale indices, maxima and decoded weights.
"""

from __future__ import annotations

import sys
from typing import Any

import torch

from passes.algorithms.exl2 import Factor
from passes.algorithms.kernels import exl2_triton

#: Compute capabilities: an A100, an RTX 4090, an H100.
CARDS = (80, 89, 90)
FLOATS, INTEGERS, BYTES, HALVES, COUNT = "*fp32", "*i32", "*u8", "*fp16", "i32"
SIGNATURES = {
    "_peaks": (FLOATS, INTEGERS, FLOATS, FLOATS, COUNT),
    "_losses": (FLOATS, INTEGERS, FLOATS, FLOATS, FLOATS, COUNT),
    "_choose": (INTEGERS, FLOATS, FLOATS, FLOATS, HALVES, COUNT),
    "_round": (FLOATS, BYTES, FLOATS, FLOATS, FLOATS, COUNT),
}


def quantize(given: dict[str, Any]) -> list[tuple[torch.Tensor, ...]]:
    if "free_bytes" in given:
        exl2_triton._room = lambda device: given["free_bytes"]
        print(exl2_triton.fitting(given["parts"], given["free_bytes"]))
    found = exl2_triton.quantize_parts(given["parts"], Factor(given["permutation"], given["inverse"]))
    return [(stored.codes, stored.scale_index, stored.scale_max, decoded) for stored, decoded in found]


def compile_all() -> None:
    """Raises where one does not compile. Prints each kernel's card and size."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    for card in CARDS:
        for name, types in SIGNATURES.items():
            kernel = getattr(exl2_triton, name)
            source = ASTSource(fn=kernel, signature=dict(zip(kernel.arg_names, types, strict=True)), constexprs={})
            made = triton.compile(source, target=GPUTarget("cuda", card, 32), options={"num_warps": 4, "num_stages": 1})
            print(name, card, len(made.asm["cubin"]))


if __name__ == "__main__":
    if sys.argv[1] == "compile":
        compile_all()
    else:
        torch.save(quantize(torch.load(sys.argv[2])), sys.argv[3])
