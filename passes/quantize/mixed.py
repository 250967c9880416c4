"""Bits where they matter: each group of matrices that must agree takes one of a few formats, a budget of bits a weight over all.

Bounded until the options were measured (`passes.measure.fisher`), resolved after. While it is bounded a stand-in within the budget
describes it: groups take wider formats from the last layer on. The measured choice gets at most the stand-in's bytes.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, ClassVar

from passes.algorithms.damping import DAMPING
from passes.base import NATIVE, Pass, Stage
from passes.errors import DoesNotFitError, Reason
from passes.formats.compressed_tensors.integers import IntQuantized, PackQuantized
from passes.formats.dense import Dense
from passes.formats.format import Format
from passes.formats.gptq import Gptq
from passes.ir.distortions import Distortion
from passes.ir.model import Block, Linear, ModelIR
from passes.quantize.allocation_cost import ALLOCATION_STEPS, allocation_cost
from passes.quantize.quantize import Quantize, by_tool, damping_text, method_cost
from passes.record import dataclass
from passes.steps.cost import StepCost, WalkSize

if TYPE_CHECKING:
    from passes.algorithms.method import Method
    from passes.blocks.dense_model import DenseModel
    from passes.steps.context import RunContext

Assigned = tuple[tuple[str, Format], ...]


@dataclass(frozen=True)
class QuantizeMixed(Pass):
    """Store the decoder's matrices in `options` (narrowest first), `bpw` bits a weight on average, all included.

    `assigned`: (full name, format) of matrices in another format than the narrowest; None while the plan is bounded.
    `damping`: as of `Quantize`.
    """

    name: ClassVar[str] = "quantize_mixed"
    stage: ClassVar[Stage] = Stage.QUANTIZE
    palette: tuple[Format, ...]
    bpw: float
    method: str = "gptq"
    assigned: Assigned | None = None
    backend: str = "native"
    damping: float = DAMPING

    @classmethod
    def named(cls, name: str) -> QuantizeMixed | None:
        """Return the pass that `mixed-5.0-g64` (`-w8a8`, `-gptq` after it) stands for, None for other names.

        4 bits, 8 bits (weights only, or with 8-bit activations where an engine has no other 8-bit kernel), plain numbers.
        """
        match = re.fullmatch(r"mixed-(\d(?:\.\d+)?)-g([1-9]\d*)(?:-(w8a8|gptq))?", name)
        if match is None:
            return None
        size = int(match[2])
        if match[3] == "gptq":
            return cls((Gptq(4, size), Gptq(8, size), Dense()), float(match[1]))
        eight: Format = IntQuantized() if match[3] == "w8a8" else PackQuantized(8, -1)
        return cls((PackQuantized(4, size), eight, Dense()), float(match[1]))

    @property
    def weights_name(self) -> str:
        """`mixed-5`, the bits of its budget."""
        return f"mixed-{self.bpw:g}"

    @property
    def resolved(self) -> bool:
        """Whether every matrix has its format."""
        return self.assigned is not None

    def illegal(self, ir: ModelIR) -> tuple[Reason, ...]:
        """Return what is illegal for any option, and budgets below the narrowest."""
        for form in self.palette:
            if reasons := Quantize(self.method, form).illegal(ir):
                return reasons
        least = 8 * sum(min(sizes) for _, sizes in groups(ir, self.formats(ir))) / quantized_weights(ir)
        if self.bpw < least:
            return (
                Reason(
                    "mixed_bpw_too_low",
                    f"{self.bpw:g} bits a weight: {self.palette[0].label} everywhere takes {least:.3f}",
                    f"at least {math.ceil(least * 100) / 100:g}",
                ),
            )
        return self.chosen(ir).illegal(ir)

    def formats(self, ir: ModelIR) -> tuple[Format, ...]:
        """Return the options on a model: plain numbers are its own."""
        return tuple(form if form.is_quantized else Dense(ir.dtype) for form in self.palette)

    def chosen(self, ir: ModelIR) -> Quantize:
        """Return the quantize pass that the choice amounts to, measured or standing in."""
        assigned = self.assigned if self.assigned is not None else _stand_in(ir, self.formats(ir), self.bpw)
        return Quantize(self.method, self.palette[0], assigned, damping=self.damping)

    def rewrite(self, ir: ModelIR) -> ModelIR:
        """Return every matrix in its format."""
        return self.chosen(ir).rewrite(ir)

    def missing(self, ir: ModelIR) -> str | None:
        """Say which algorithm or codec is not there."""
        stored = (form for form in self.palette if form.is_quantized)
        return next((lack for form in stored if (lack := Quantize(self.method, form).missing(ir))), None)

    @property
    def rounds_by(self) -> str:
        """Its method."""
        return self.method

    @property
    def keeps_zeros(self) -> bool:
        """Whether GPTQ chooses them in its loop."""
        return self.method == "gptq"

    @property
    def reads_inputs(self) -> bool:
        """All methods but rounding to nearest."""
        return self.method != "rtn"

    def algorithm(self, before: Method) -> Method:
        """Return its method, with the zeros of the passes before it; an outside tool has its own."""
        from passes.algorithms.method import method

        return before if self.backend != NATIVE else method(self.method, before.mask, self.damping)

    def allocated(self, ir: ModelIR, costs: Mapping[str, Sequence[float]], *, tied: bool = False) -> QuantizeMixed:
        """Resolve the choice: the one with the least total of measured `costs` (a matrix's full name -> one an option). Exact.

        `tied`: groups of the same name take one format in all layers, as rules by hand have it.
        """
        from passes.algorithms.knapsack import Unit, allocate

        formats = self.formats(ir)
        given = dict(_stand_in(ir, formats, self.bpw))
        together: dict[str, list[tuple[tuple[str, ...], tuple[int, ...]]]] = {}
        budget = 0
        for prefix, members, sizes in _by_layer(ir, formats):
            first = prefix + members[0]
            names = tuple(prefix + name for name in members)
            together.setdefault(members[0] if tied else first, []).append((names, sizes))
            budget += sizes[formats.index(given.get(first, formats[0]))]
        units = [
            Unit(
                name,
                tuple(map(sum, zip(*(sizes for _, sizes in found), strict=True))),
                tuple(math.fsum(costs[each][option] for names, _ in found for each in names) for option in range(len(formats))),
            )
            for name, found in together.items()
        ]  # fmt: skip
        choice = dict(zip(together, allocate(units, budget).choice, strict=True))
        assigned = [
            (name, formats[choice[unit]])
            for unit, found in together.items() if choice[unit] for names, _ in found for name in names
        ]  # fmt: skip
        return replace(self, assigned=tuple(assigned))

    def distortions(self, ir: ModelIR) -> tuple[Distortion, ...]:
        """Return its rounding, each format with the share of the weights that it holds, measured or standing in."""
        return self.chosen(ir).distortions(ir)

    def cost(self, source: ModelIR, walk: WalkSize) -> dict[str, StepCost]:
        """Return what its method adds to the walk, and what choosing the formats takes while they are open."""
        return method_cost(self.method, source) | ({} if self.resolved else allocation_cost(source, walk))

    @property
    def choice_steps(self) -> tuple[str, ...]:
        """What formats cost, and which allocation is nearest, while the formats are open."""
        return () if self.resolved else ALLOCATION_STEPS

    def title(self) -> str:
        """Return `quantize gptq mixed 5 bpw`."""
        return f"quantize {self.method} mixed {self.bpw:g} bpw{by_tool(self.backend)}"

    def resolve(self, dense: DenseModel, run: RunContext) -> QuantizeMixed:
        """Estimate every format of every matrix; allocate layer by layer, for all layers alike, and uniformly; keep the nearest."""
        if self.resolved:
            return self
        from passes.measure.fisher import format_costs
        from passes.measure.trial import nearest

        costs = format_costs(dense, self.palette, run)
        allocations = (
            self.allocated(dense.ir, costs),
            self.allocated(dense.ir, costs, tied=True),
            replace(self, assigned=()),
        )
        return nearest(list(dict.fromkeys(allocations)), dense, run)

    def text(self) -> str:
        """Write `quantize{gptq, mixed-5 of w4a16-g64, w8a16-channel, bf16}`."""
        formats = ", ".join(form.label for form in self.palette)
        return f"quantize{{{self.method}, mixed-{self.bpw:g} of {formats}{damping_text(self.damping)}}}"


def groups(ir: ModelIR, options: tuple[Format, ...]) -> list[tuple[tuple[str, ...], tuple[int, ...]]]:
    """Return every group of matrices that take one format, layer after layer: full names (`{e}`: all experts), bytes of each option."""
    return [(tuple(prefix + name for name in names), sizes) for prefix, names, sizes in _by_layer(ir, options)]


def _by_layer(ir: ModelIR, options: tuple[Format, ...]) -> Iterator[tuple[str, tuple[str, ...], tuple[int, ...]]]:
    """Every layer's prefix with its groups: names below it, bytes of each option."""
    for layer in range(len(ir.decoder.layers)):
        for names, sizes in _block_groups(ir.decoder.block(layer), options):
            yield ir.decoder.layer_prefix(layer), names, sizes


@lru_cache(maxsize=1 << 10)
def _block_groups(block: Block, options: tuple[Format, ...]) -> tuple[tuple[tuple[str, ...], tuple[int, ...]], ...]:
    found: dict[str, list[Linear]] = {}
    for linear in block.linears:
        if linear.quantizable:
            found.setdefault(linear.agree or linear.name, []).append(linear)
    return tuple(
        (
            tuple(linear.name for linear in group),
            tuple(sum(replace(linear, storage=form).bytes for linear in group) for form in options),
        )
        for group in found.values()
    )


def quantized_weights(ir: ModelIR) -> int:
    """Count the weights whose bits the budget counts."""
    return sum(
        count * sum(linear.weights for linear in block.linears if linear.quantizable)
        for block, count in ir.decoder.counts
    )


@lru_cache(maxsize=256)
def _assignment(
    members: tuple[tuple[tuple[str, ...], tuple[int, ...]], ...], options: tuple[Format, ...], budget: int
) -> Assigned:
    left = budget - sum(sizes[0] for _, sizes in members)
    if left < 0:
        raise DoesNotFitError("the narrowest formats exceed the budget", remedy="allow more bits a weight")
    out: list[tuple[str, Format]] = []
    for names, sizes in reversed(members):
        option = max(
            (number for number, size in enumerate(sizes) if size - sizes[0] <= left), key=lambda number: sizes[number]
        )
        left -= sizes[option] - sizes[0]
        out += [(name, options[option]) for name in names if option]
    return tuple(out)


def _stand_in(ir: ModelIR, options: tuple[Format, ...], bpw: float) -> Assigned:
    """Wider formats from the last group on, as long as the budget lasts."""
    return _assignment(tuple(groups(ir, options)), options, math.floor(bpw * quantized_weights(ir) / 8))
