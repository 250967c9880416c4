"""The quantize pass: a method (which integers) times a format (how they are stored), on the model's description.

The methods' algorithms run in the walk (`passes.walk.walk`); a method without one here says so through `missing()`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import ClassVar

from passes.algorithms.gptq import DAMPING
from passes.base import Pass
from passes.errors import Reason, nearest
from passes.formats.format import Format
from passes.ir.fused import head_shape, split_fused, with_head
from passes.ir.model import Block, Linear, ModelIR, Stack

#: Methods whose algorithm the walk runs (`passes.algorithms.method`).
EXECUTABLE_METHODS = ("rtn", "gptq", "awq", "smoothquant")


@dataclass(frozen=True)
class Quantize(Pass):
    """Store every quantizable matrix in `storage`, its integers chosen by `method`.

    `assigned`: (full name without `.weight`, format) of matrices that take another one, a dense format included; `{e}` stands
    for the experts of a bank. `head`: the format of the output head, None to leave it as it is. `backend`: who makes it.
    `damping`: of GPTQ's Hessians, the share of the mean of their diagonal that is added to it.
    """

    name: ClassVar[str] = "quantize"
    method: str
    storage: Format
    assigned: tuple[tuple[str, Format], ...] = ()
    head: Format | None = None
    backend: str = "native"
    damping: float = DAMPING

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
        unknown = sorted(dict(self.assigned).keys() - _names(ir)) if self.assigned else []
        if unknown:
            remedy = f"nearest: {', '.join(nearest(unknown[0], _names(ir))) or 'none'}"
            return (Reason("no_such_matrix", f"{ir.name} has no quantizable matrix {unknown[0]}", remedy),)
        reasons: dict[str, Reason] = {}
        for block, _ in self._decoder(ir).counts:
            for reason in _block_reasons(block):
                reasons.setdefault(reason.code, reason)
        if self.head is not None and (refused := self.head.illegal(*head_shape(ir))):
            reasons.setdefault(refused.code, replace(refused, message=f"{refused.message} of the head"))
        return tuple(reasons.values())

    def rewrite(self, ir: ModelIR) -> ModelIR:
        """Every quantizable matrix of the decoder in its new storage; memoised per block class and choice."""
        out = ir.with_decoder(self._decoder(ir))
        return out if self.head is None else with_head(out, self.head)

    def _decoder(self, ir: ModelIR) -> Stack:
        stack = ir.decoder
        if not self.assigned:
            return stack.map_blocks(lambda block: _stored(block, self.storage))
        chosen = dict(self.assigned)
        blocks = []
        for layer in range(len(stack.layers)):
            prefix, block = stack.layer_prefix(layer), stack.block(layer)
            own = tuple((lin.name, chosen[prefix + lin.name]) for lin in block.linears if prefix + lin.name in chosen)
            blocks.append(_stored(block, self.storage, own))
        return stack.with_blocks(tuple(blocks))

    def missing(self) -> str | None:
        """Which algorithm or codec is not there; outside tools have their own."""
        if self.backend != "native":
            return None
        if self.method not in EXECUTABLE_METHODS:
            return f"the method {self.method!r} has no executing face yet"
        if self.storage.grid is None:
            return f"the format {self.storage.label} has no writer yet"
        return None

    def text(self) -> str:
        """`quantize{gptq, w4a16-g64}`, with how many matrices take another format, and what else is not as usual."""
        mixed = f", {len(self.assigned)} assigned" if self.assigned else ""
        by = "" if self.backend == "native" else f", by {self.backend}"
        return f"quantize{{{self.method}, {self.storage.label}{mixed}{damping_text(self.damping)}{by}}}"


def damping_text(damping: float) -> str:
    """What a pass's text says of its damping; nothing where it is the usual one."""
    return "" if damping == DAMPING else f", damping {damping:g}"


def _names(ir: ModelIR) -> set[str]:
    stack = ir.decoder
    return {
        stack.layer_prefix(layer) + linear.name
        for layer in range(len(stack.layers))
        for linear in stack.block(layer).linears
        if linear.quantizable
    }


@lru_cache(maxsize=1 << 12)
def _stored(block: Block, storage: Format, own: tuple[tuple[str, Format], ...] = ()) -> Block:
    chosen = dict(own)
    base = split_fused(block) if storage.splits_fused else block
    return base.map_linears(
        lambda linear: replace(linear, storage=chosen.get(linear.name, storage)) if linear.quantizable else linear
    )


@lru_cache(maxsize=1 << 12)
def _block_reasons(block: Block) -> tuple[Reason, ...]:
    out = []
    for linear in block.linears:
        if not linear.quantizable:
            continue
        for _, rows in linear.stacking.parts if linear.stacking else ((linear.name, linear.out_features),):
            reason = linear.storage.illegal(rows, linear.in_features)
            if reason is not None:
                out.append(replace(reason, message=f"{reason.message} of {linear.name}"))
    return (*out, *_disagreements(block))


def _disagreements(block: Block) -> list[Reason]:
    """Matrices that engines fuse but that take different formats."""
    out, first = [], dict[str, Linear]()
    for linear in block.linears:
        other = first.setdefault(linear.agree, linear) if linear.agree and linear.quantizable else linear
        if other.storage != linear.storage:
            names = f"{other.name} and {linear.name}"
            message = f"{names} must agree, not {other.storage.label} and {linear.storage.label}"
            out.append(Reason("formats_must_agree", message, "give them one format"))
    return out
