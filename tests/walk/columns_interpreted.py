"""GPTQ's kernel for a card without a card: cases, and a program of its own for a Python that has Triton (tests run it in the engine's).

TRITON_INTERPRET=1 python -m tests.walk.columns_interpreted CASE …    # JSON: of each the share of equal codes, and the losses' ratio
"""

from __future__ import annotations

import json
import sys
from functools import partial

import torch

from passes.algorithms.gptq import GptqOptions, gptq, sparse
from passes.algorithms.kernels import columns
from passes.algorithms.scale_search import ScaleSearch
from passes.algorithms.sparsity import Mask
from passes.formats.format import Grid, Quantized

ROWS, COLUMNS = 40, 192
TWO_OF_FOUR, HALF, WANDA = Mask("sparsegpt", 0.5, 4), Mask("sparsegpt", 0.5), Mask("wanda", 0.5)
CASES = {
    "static": (Grid(4, 96), "static", None),
    "zero points": (Grid(4, 96, False), "static", None),
    "levels as groups come": (Grid(4, 96), "group", None),
    "small groups as they come": (Grid(4, 16), "group", None),
    "act order": (Grid(4, 96), "full", None),
    "rows": (Grid(8, -1), "static", None),
    "floats": (Grid(4, 16, True, "e2m1"), "static", None),
    "2:4": (Grid(4, 96), "static", TWO_OF_FOUR),
    "2:4 with zero points": (Grid(4, 96, False), "static", TWO_OF_FOUR),
    "zeros anywhere": (Grid(4, 96), "static", HALF),
    "zeros known before": (Grid(4, 96), "static", WANDA),
}


#: Compute capabilities: an A100, an RTX 4090, an H100.
CARDS = (80, 89, 90)


def problem() -> tuple[torch.Tensor, torch.Tensor]:
    """Weights `[N, K]` and the Hessian of correlated inputs."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.eye(COLUMNS) + 0.3 * torch.randn(COLUMNS, COLUMNS, generator=generator)
    inputs = torch.randn(512, COLUMNS, generator=generator) @ mixing
    return torch.randn(ROWS, COLUMNS, generator=generator), inputs.T @ inputs


def quantized(case: str) -> tuple[Quantized, float]:
    grid, order, mask = CASES[case]
    weight, hessian = problem()
    options = GptqOptions(order, 0.01, ScaleSearch(20, 0.7), mask)
    return gptq(weight, hessian, grid, torch.float16, options, "w")


def zeros_alone(mask: Mask) -> tuple[torch.Tensor, float]:
    weight, hessian = problem()
    return sparse(weight, hessian, GptqOptions(mask=mask), "w")


def _always(answer: bool, work: torch.Tensor) -> bool:
    return answer


def compared(case: str) -> tuple[float, float]:
    """The kernel beside the processor's loop; of zeros alone ("zeros"), the share of weights that are close."""
    found = []
    for kernel in (False, True):
        columns.usable = partial(_always, kernel)
        found.append(zeros_alone(TWO_OF_FOUR) if case == "zeros" else quantized(case))
    (expected, loss), (ours, our_loss) = found
    if isinstance(expected, torch.Tensor) and isinstance(ours, torch.Tensor):
        same = torch.isclose(ours, expected, rtol=1e-3, atol=1e-4)
    else:
        assert isinstance(expected, Quantized) and isinstance(ours, Quantized)
        same = ours.codes == expected.codes
    return float(same.float().mean()), our_loss / loss


def compile_all() -> None:
    """Raises where it does not compile for a card. Prints how much it takes there."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from passes.algorithms.kernels.columns_triton import round_columns

    floats = ("work", "codes", "errors", "upper", "scale", "zero")
    types = dict.fromkeys(round_columns.arg_names, "i32") | dict.fromkeys(floats, "*fp32")
    types |= {"group": "*i32", "keep": "*i8", "low": "fp32", "high": "fp32"}
    for card in CARDS:
        for kind, zero, keep, run in (
            (1, False, False, 0),
            (1, True, False, 4),
            (2, False, True, 0),
            (0, False, False, 4),
        ):
            fixed = {"KIND": kind, "ZERO": zero, "KEEP": keep, "RUN": run, "BLOCK": 32, "TILE": 64}
            source = ASTSource(round_columns, types | dict.fromkeys(fixed, "constexpr"), constexprs=fixed)
            made = triton.compile(source, target=GPUTarget("cuda", card, 32), options={"num_warps": 2})
            print(card, fixed, len(made.asm["cubin"]))


if __name__ == "__main__":
    if sys.argv[1:] == ["compile"]:
        compile_all()
    else:
        print(json.dumps({case: compared(case) for case in sys.argv[1:]}))
