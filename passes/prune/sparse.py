"""Sparse weights: SparseGPT (Frantar & Alistarh 2023) and Wanda (Sun et al. 2023). Zeros are stored like any other weight."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from passes.algorithms.sparsity import Mask
from passes.base import NATIVE, Pass, Stage
from passes.errors import Reason
from passes.ir.distortions import Distortion, Zeros
from passes.ir.model import ModelIR
from passes.record import dataclass

if TYPE_CHECKING:
    from passes.algorithms.method import Method

METHODS = ("sparsegpt", "wanda")


@dataclass(frozen=True)
class Sparsify(Pass):
    """Set a share `sparsity` of every quantizable matrix to zero; `pattern`: `unstructured`, or `n:m` (n of m weights are kept)."""

    name: ClassVar[str] = "prune_sparse"
    stage: ClassVar[Stage] = Stage.PRUNE
    method: str = "sparsegpt"
    sparsity: float = 0.5
    pattern: str = "unstructured"

    def illegal(self, ir: ModelIR) -> tuple[Reason, ...]:
        """Refuse unknown methods and patterns, shares that differ from the pattern's, rows that its runs do not divide."""
        if self.method not in METHODS:
            return (Reason("unknown_sparsity_method", f"no method {self.method!r}", f"one of {', '.join(METHODS)}"),)
        if not 0 < self.sparsity < 1:
            return (Reason("sparsity_share", f"a share of {self.sparsity:g} is not between 0 and 1", "0.5"),)
        if self.pattern == "unstructured":
            return ()
        found = re.fullmatch(r"([1-9]\d*):([1-9]\d*)", self.pattern)
        if not found or int(found[1]) >= int(found[2]):
            return (Reason("sparsity_pattern", f"{self.pattern!r} is no pattern", "unstructured or 2:4"),)
        kept, run = int(found[1]), int(found[2])
        if abs(1 - kept / run - self.sparsity) > 1e-9:
            share = 1 - kept / run
            return (Reason("sparsity_pattern", f"{self.pattern} zeroes a share of {share:g}", f"sparsity: {share:g}"),)
        odd = {
            lin.in_features
            for block, _ in ir.decoder.counts
            for lin in block.linears
            if lin.quantizable and lin.in_features % run
        }
        return (Reason("sparsity_pattern", f"{run} does not divide {min(odd)} inputs", "unstructured"),) if odd else ()

    def rewrite(self, ir: ModelIR) -> ModelIR:
        """Leave the description as it is: zeros take as much room."""
        return ir

    def conflict(self, chain: Sequence[Pass]) -> Reason | None:
        """Refuse what would fill the zeros: outside tools, and rounding that neither chooses them in its loop (GPTQ) nor follows
        the weights (FP8).
        """
        tool = next((pass_.backend for pass_ in chain if pass_.backend != NATIVE), None)
        if tool is not None:
            return Reason("backend_drops_zeros", f"{tool} would fill the zeros again", "backend: native")
        other = next((pass_ for pass_ in chain if not pass_.keeps_zeros), None)
        if other is None:
            return None
        message = f"zeros are chosen together with GPTQ's rounding, not with {other.rounds_by}'s"
        return Reason("zeros_need_gptq", message, "quantize with gptq or to fp8, or drop one of the passes")

    @property
    def reads_inputs(self) -> bool:
        """Always: what stays makes up for the zeros."""
        return True

    def algorithm(self, before: Method) -> Method:
        """Return GPTQ's loop with the zeros chosen in it; a method after this one takes them over."""
        from passes.algorithms.method import GPTQ_DEFAULT, Gptq

        return Gptq(GPTQ_DEFAULT, self.mask)

    def distortions(self, ir: ModelIR) -> tuple[Distortion, ...]:
        """Return its zeros."""
        return (Zeros(self.method, self.sparsity, self.pattern),)

    def title(self) -> str:
        """Return `50 % zeros by wanda`, or the pattern in place of the share."""
        share = f"{self.sparsity * 100:g} %" if self.pattern == "unstructured" else self.pattern
        return f"{share} zeros by {self.method}"

    @property
    def mask(self) -> Mask:
        """Which weights the walk drops."""
        return Mask(
            self.method, self.sparsity, 0 if self.pattern == "unstructured" else int(self.pattern.split(":")[1])
        )
