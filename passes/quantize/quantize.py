"""The quantize pass: a method (which integers) times a format (how they are stored), on the model's description.

The methods' algorithms run in the walk (`passes.walk.walk`); a method without one here says so through `missing()`.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

from passes.algorithms.damping import DAMPING
from passes.base import NATIVE, Pass, Stage
from passes.errors import Reason, nearest
from passes.formats.dense import Dense
from passes.formats.format import Format
from passes.ir.distortions import Distortion, WeightRounding
from passes.ir.fused import head_shape, split_fused, with_head
from passes.ir.model import Block, Linear, ModelIR, Stack
from passes.ir.operations import error_operations
from passes.record import dataclass, replace
from passes.steps.cost import StepCost, WalkSize, Work

if TYPE_CHECKING:
    from passes.algorithms.method import Method

#: Methods whose algorithm the walk runs (`passes.algorithms.method`).
EXECUTABLE_METHODS = ("rtn", "gptq", "awq", "smoothquant")
#: Exponents that AWQ tries, each by the error tr(E H Eᵀ) of a group (`passes.algorithms.smoothing`).
_SCALE_TRIES = 20


@dataclass(frozen=True)
class Quantize(Pass):
    """Store every quantizable matrix in `storage`, its integers chosen by `method`.

    `assigned`: (full name without `.weight`, format) of matrices that take another one, a dense format included; `{e}` stands
    for the experts of a bank. `head`: the format of the output head, None to leave it as it is. `backend`: who makes it.
    `damping`: of GPTQ's Hessians, the share of the mean of their diagonal that is added to it.
    """

    name: ClassVar[str] = "quantize"
    stage: ClassVar[Stage] = Stage.QUANTIZE
    method: str
    storage: Format
    assigned: tuple[tuple[str, Format], ...] = ()
    head: Format | None = None
    backend: str = "native"
    damping: float = DAMPING

    def illegal(self, ir: ModelIR) -> tuple[Reason, ...]:
        """Refuse shapes the format cannot hold (one reason for each kind of trouble), and sources that are quantized already."""
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
        """Return every quantizable matrix of the decoder in its new storage; memoised per block class and choice."""
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

    def missing(self, ir: ModelIR) -> str | None:
        """Say which algorithm or codec is not there; outside tools have their own."""
        if self.backend != NATIVE:
            return None
        if self.method not in EXECUTABLE_METHODS:
            return f"the method {self.method!r} has no executing face yet"
        if self.storage.grid is None:
            return f"the format {self.storage.label} has no writer yet"
        return None

    @property
    def rounds_by(self) -> str:
        """Its method."""
        return self.method

    @property
    def weights_name(self) -> str:
        """The format's name, whatever the method."""
        return self.storage.label

    @property
    def keeps_zeros(self) -> bool:
        """Whether GPTQ chooses them in its loop, or values that follow the weights (FP8) are rounded to nearest."""
        grid = self.storage.grid
        return self.method == "gptq" or (self.method == "rtn" and grid is not None and grid.kind == "e4m3")

    @property
    def reads_inputs(self) -> bool:
        """All methods but rounding to nearest."""
        return self.method != "rtn"

    def algorithm(self, before: Method) -> Method:
        """Return its method, with the zeros of the passes before it; an outside tool has its own."""
        from passes.algorithms.method import method

        return before if self.backend != NATIVE else method(self.method, before.mask, self.damping)

    def distortions(self, ir: ModelIR) -> tuple[Distortion, ...]:
        """Return its rounding, each format with the share of the weights that it holds."""
        shares = _shares(ir, self.storage, self.assigned) if self.assigned else ((self.storage, 1.0),)
        return (WeightRounding(self.method, shares),)

    def cost(self, source: ModelIR, walk: WalkSize) -> dict[str, StepCost]:
        """Return what its method adds to the walk."""
        return method_cost(self.method, source)

    def title(self) -> str:
        """Return `quantize gptq w4a16-g64`, and by which tool."""
        return f"quantize {self.method} {self.storage.label}{by_tool(self.backend)}"

    def text(self) -> str:
        """Write `quantize{gptq, w4a16-g64}`, with how many matrices take another format, and what else is not as usual."""
        mixed = f", {len(self.assigned)} assigned" if self.assigned else ""
        by = "" if self.backend == "native" else f", by {self.backend}"
        return f"quantize{{{self.method}, {self.storage.label}{mixed}{damping_text(self.damping)}{by}}}"


@lru_cache(maxsize=64)
def _shares(ir: ModelIR, storage: Format, assigned: tuple[tuple[str, Format], ...]) -> tuple[tuple[Format, float], ...]:
    """The share of the decoder's quantizable weights that each format holds, plain numbers left out."""
    chosen, weights = dict(assigned), Counter[Format]()
    for layer in range(len(ir.decoder.layers)):
        prefix = ir.decoder.layer_prefix(layer)
        for linear in ir.decoder.block(layer).linears:
            if linear.quantizable:
                weights[chosen.get(prefix + linear.name, storage)] += linear.weights
    return tuple((form, count / weights.total()) for form, count in weights.items() if not isinstance(form, Dense))


def method_cost(method: str, source: ModelIR) -> dict[str, StepCost]:
    """Return what a method adds to the walk: AWQ tries its scales by the error of each group."""
    return {"walk": StepCost(Work(errors=_SCALE_TRIES * error_operations(source)))} if method == "awq" else {}


def by_tool(backend: str) -> str:
    """Return what a pass's title says of who makes it; nothing of this project's own walk."""
    return "" if backend == NATIVE else f" by {backend}"


def damping_text(damping: float) -> str:
    """Return what a pass's text says of its damping; nothing where it is the usual one."""
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
