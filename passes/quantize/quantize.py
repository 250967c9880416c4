"""The quantize pass: a method (which integers) times a format (how they are stored), on the model's description.

The methods' algorithms run in the walk (`passes.walk`); a method without one here says so through `missing()`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar

from passes.base import Pass
from passes.formats.format import Format
from passes.ir.model import Block, Linear, ModelIR
from passes.reason import Reason

#: Methods whose algorithm the walk runs.
EXECUTABLE_METHODS = ("rtn", "gptq")


@dataclass(frozen=True)
class Quantize(Pass):
    """Store every quantizable matrix in `storage`, its integers chosen by `method`."""

    name: ClassVar[str] = "quantize"
    method: str
    storage: Format

    def illegal(self, ir: ModelIR) -> tuple[Reason, ...]:
        """Shapes the format cannot hold (one reason for each kind of trouble), and sources that are quantized already."""
        if ir.quant_method is not None:
            return (
                Reason(
                    "already_quantized",
                    f"{ir.name} is quantized already ({ir.quant_method})",
                    "name the model it was made from",
                ),
            )
        reasons: dict[str, Reason] = {}
        for block, _ in ir.decoder.counts:
            for reason in _block_reasons(block, self.storage):
                reasons.setdefault(reason.code, reason)
        return tuple(reasons.values())

    def rewrite(self, ir: ModelIR) -> ModelIR:
        """Every quantizable matrix of the decoder in the new storage; memoised per block class."""
        return ir.with_decoder(ir.decoder.map_blocks(lambda block: _stored(block, self.storage)))

    def missing(self) -> str | None:
        """Which algorithm or codec is not there."""
        if self.method not in EXECUTABLE_METHODS:
            return f"the method {self.method!r} has no executing face yet"
        if self.storage.grid is None:
            return f"the format {self.storage.label} has no writer yet"
        return None

    def text(self) -> str:
        """`quantize{gptq, w4a16-g64}`."""
        return f"quantize{{{self.method}, {self.storage.label}}}"


@lru_cache(maxsize=1 << 12)
def _stored(block: Block, storage: Format) -> Block:
    change: Callable[[Linear], Linear] = lambda lin: replace(lin, storage=storage) if lin.quantizable else lin  # noqa: E731
    return block.map_linears(change)


@lru_cache(maxsize=1 << 12)
def _block_reasons(block: Block, storage: Format) -> tuple[Reason, ...]:
    out = []
    for linear in block.linears:
        if not linear.quantizable:
            continue
        for _, rows in linear.stacking.parts if linear.stacking else ((linear.name, linear.out_features),):
            reason = storage.illegal(rows, linear.in_features)
            if reason is not None:
                out.append(replace(reason, message=f"{reason.message} of {linear.name}"))
    return tuple(out)
