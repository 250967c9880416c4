"""The distillation pass: trains the pruned model to follow its source. The description does not change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from passes.base import Pass, Stage
from passes.errors import Reason
from passes.ir.distortions import Distortion, Recovered
from passes.ir.model import ModelIR

#: `logits`: the source's next-token distribution; `sequences`: text that it wrote; `blockwise`: each block's output.
METHODS = ("logits", "sequences", "blockwise")


@dataclass(frozen=True)
class Distill(Pass):
    """Train on `tokens` tokens with `method`."""

    name: ClassVar[str] = "distill"
    stage: ClassVar[Stage] = Stage.DISTILL
    method: str = "logits"
    tokens: int = 100_000_000

    def illegal(self, ir: ModelIR) -> tuple[Reason, ...]:
        """Unknown methods, no tokens, weights that are quantized already."""
        if self.method not in METHODS:
            return (Reason("unknown_distillation", f"no method {self.method!r}", f"one of {', '.join(METHODS)}"),)
        if self.tokens <= 0:
            return (Reason("distill_tokens", f"{self.tokens} tokens", "tokens: 100000000"),)
        if any(linear.storage.is_quantized for block, _ in ir.decoder.counts for linear in block.linears):
            return (Reason("distill_needs_dense", "quantized weights cannot be trained", "distil before quantizing"),)
        return ()

    def rewrite(self, ir: ModelIR) -> ModelIR:
        """Only values change."""
        return ir

    def distortions(self, ir: ModelIR) -> tuple[Distortion, ...]:
        """Return the recovery that its tokens bring."""
        return (Recovered(self.tokens),)

    def missing(self, ir: ModelIR) -> str | None:
        """Say that the training loop is not there."""
        return f"distillation ({self.method}) has no executing face yet"
