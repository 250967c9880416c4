"""EXL2 at any number of bits a weight: a budget over the decoder's slots, bounded until measured, resolved after.

A slot is the attention or the MLP of one layer (all experts together); it takes one of ExLlamaV2's parameter sets. The budget is
ExLlamaV2's: floor(bpw × Σ weights of all attention and MLP matrices, outputs padded to 32); embeddings, norms and head are outside.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from passes.base import NATIVE, Pass, Stage
from passes.errors import Reason
from passes.formats.compressed_tensors.integers import PackQuantized
from passes.formats.exllama.exl2 import Exl2
from passes.formats.exllama.exl2_bounded import Exl2Bounded
from passes.formats.exllama.exl2_options import ATTENTION, HEAD, MLP
from passes.formats.format import Format
from passes.ir.distortions import Distortion, WeightRounding
from passes.ir.fused import head_shape, split_fused, with_head
from passes.ir.model import Block, Linear, ModelIR, Role
from passes.ir.operations import forward_operations, hessian_operations, quantizable_weights
from passes.ir.quant_config.exl2 import exl2_config
from passes.quantize.allocation_cost import ALLOCATION_STEPS, allocation_cost
from passes.quantize.quantize import by_tool
from passes.record import dataclass, replace
from passes.steps.cost import NOTHING, StepCost, WalkSize, Work

if TYPE_CHECKING:
    from passes.algorithms.method import Method
    from passes.blocks.dense_model import DenseModel
    from passes.steps.context import RunContext
    from passes.text.source import TextSource

#: Operations a weight, at the rate of a processor's forwards: all options tried on it; the chosen one's scales searched and rounded.
#: Measured once (`planner.apply_cost`).
OPTIONS_OPERATIONS, _SEARCH_OPERATIONS = 150e3, 20e3
#: Which column of an option's row a matrix takes.
_ATTENTION_COLUMN = {Role.Q: 0, Role.K: 0, Role.V: 1, Role.O: 2}
_MLP_COLUMN = {Role.GATE: 0, Role.GATE_UP: 0, Role.UP: 1, Role.DOWN: 2}
#: What a slot's loss at four bits is estimated with: a scale a row fits every shape.
_FOUR_BITS = PackQuantized(4, -1)


@dataclass(frozen=True)
class QuantizeExl2(Pass):
    """Store the decoder in EXL2 at `bpw` bits a weight on average, the head at `head_bits`.

    `choices`: (attention, MLP) rows of `exl2_options` for every layer; empty while the plan is bounded, and where `backend`
    (exllamav2) chooses itself.
    """

    name: ClassVar[str] = "quantize_exl2"
    stage: ClassVar[Stage] = Stage.QUANTIZE
    method: ClassVar[str] = "exl2"
    bpw: float
    head_bits: int = 6
    choices: tuple[tuple[int, int], ...] = ()
    backend: str = "native"

    @classmethod
    def named(cls, name: str) -> QuantizeExl2 | None:
        """Return the pass that `exl2-4.65` or, with the bits of the head, `exl2-4.65-h8` stands for, None for other names."""
        match = re.fullmatch(rf"(.+?)(?:-h({'|'.join(map(str, HEAD))}))?", name)
        form = Exl2Bounded.named(match[1]) if match else None
        return cls(form.bpw, int(match[2] or cls.head_bits)) if match and form else None

    @property
    def storage(self) -> Exl2Bounded:
        """The decoder's format as a whole."""
        return Exl2Bounded(self.bpw)

    @property
    def weights_name(self) -> str:
        """`exl2-4.65`."""
        return self.storage.label

    @property
    def resolved(self) -> bool:
        """Whether every matrix has its layout."""
        return bool(self.choices)

    def illegal(self, ir: ModelIR) -> tuple[Reason, ...]:
        """Refuse quantized sources, parts that ExLlamaV2 does not know, shapes, and budgets that no choice of options meets."""
        if ir.quant_method is not None:
            return (
                Reason(
                    "already_quantized", f"{ir.name} is quantized already ({ir.quant_method})", "name the dense model"
                ),
            )
        if self.head_bits not in HEAD:
            return (
                Reason("exl2_head_bits", f"no head of {self.head_bits} bits", f"one of {', '.join(map(str, HEAD))}"),
            )
        for block, _ in ir.decoder.counts:
            for linear in _quantized(split_fused(block)):
                if linear.role not in _ATTENTION_COLUMN and linear.role not in _MLP_COLUMN:
                    return (
                        Reason("exl2_unknown_part", f"ExLlamaV2 has no module for {linear.name}", "exl3, gptq or awq"),
                    )
                if reason := self.storage.illegal(linear.out_features, linear.in_features):
                    return (replace(reason, message=f"{reason.message} ({linear.name})"),)
        if reason := HEAD[self.head_bits].illegal(*head_shape(ir)):
            return (replace(reason, message=f"{reason.message} (head)"),)
        least = lowest_bpw(ir)
        if self.bpw < least:
            return (
                Reason(
                    "exl2_bpw_too_low",
                    f"{self.bpw:g} bits a weight: the smallest options of {ir.name} take {least:.3f}",
                    f"at least {math.ceil(least * 100) / 100:g}",
                ),
            )
        if self.choices and len(self.choices) != len(ir.decoder.layers):
            return (
                Reason(
                    "exl2_options", f"{len(self.choices)} options for {len(ir.decoder.layers)} layers", "measure again"
                ),
            )
        if self.choices and resolved_bytes(ir, self.choices) > budget_bytes(ir, self.bpw):
            return (Reason("exl2_over_budget", f"the options exceed {self.bpw:g} bits a weight", "allocate again"),)
        return ()

    def rewrite(self, ir: ModelIR) -> ModelIR:
        """Return the layouts of the options, or each matrix's share of the budget; the head as a matrix of its own."""
        if self.choices:
            layers = range(len(ir.decoder.layers))
            blocks = tuple(stored_block(ir.decoder.block(i), *self.choices[i]) for i in layers)
            decoder = ir.decoder.with_blocks(blocks)
        else:
            decoder = ir.decoder.map_blocks(lambda block: _bounded(block, self.storage))
        return with_head(ir.with_decoder(decoder), HEAD[self.head_bits])

    @property
    def rounds_by(self) -> str:
        """Its method."""
        return self.method

    @property
    def keeps_zeros(self) -> bool:
        """Never: its grids are chosen as if no weight were zero."""
        return False

    @property
    def reads_inputs(self) -> bool:
        """Always: each error is compensated."""
        return True

    def algorithm(self, before: Method) -> Method:
        """Return EXL2's own quantizer; an outside tool has its own."""
        from passes.algorithms.method import method

        return before if self.backend != NATIVE else method(self.method, before.mask)

    def config(self, config: Mapping[str, Any], text: TextSource) -> dict[str, Any]:
        """Return the config with EXL2's block: bits of the decoder and of the head, and the text they were measured on."""
        dataset = Path(text.dataset).name
        return exl2_config(config, self.bpw, self.head_bits, text.samples, text.length, dataset)

    def distortions(self, ir: ModelIR) -> tuple[Distortion, ...]:
        """Return the rounding of EXL2 at its bits a weight, whatever the layouts."""
        return (WeightRounding(self.method, ((self.storage, 1.0),)),)

    def cost(self, source: ModelIR, walk: WalkSize) -> dict[str, StepCost]:
        """Return what it adds to the walk, and what choosing the layouts takes while they are open.

        An outside tool chooses its own in its own time; the room for it is counted alike.
        """
        weights = quantizable_weights(source)
        steps = {"walk": StepCost(Work(options=_SEARCH_OPERATIONS * weights))}
        if self.resolved:
            return steps
        choosing = allocation_cost(source, walk, steps["walk"].work)
        if self.backend != NATIVE:
            return steps | {name: replace(cost, work=NOTHING) for name, cost in choosing.items()}
        measuring = Work(
            forwards=walk.tokens * forward_operations(source),
            hessians=walk.tokens * hessian_operations(source),
            options=OPTIONS_OPERATIONS * weights,
            moved=source.tensor_bytes,
        )
        return steps | {"measure EXL2": StepCost(measuring)} | choosing

    @property
    def choice_steps(self) -> tuple[str, ...]:
        """The errors of the options, what they cost, and which layout is nearest, while the layouts are open."""
        return () if self.resolved or self.backend != NATIVE else ("measure EXL2", *ALLOCATION_STEPS)

    def title(self) -> str:
        """Return `quantize exl2 4.65 bpw, head 6 bit`, and by which tool."""
        return f"quantize exl2 {self.bpw:g} bpw, head {self.head_bits} bit{by_tool(self.backend)}"

    def resolve(self, dense: DenseModel, run: RunContext) -> QuantizeExl2:
        """Measure every option of every slot, kept for any budget; spend this pass's budget exactly, in three ways; keep the nearest."""
        if self.resolved or self.backend != NATIVE:
            return self
        from passes.measure.fisher import format_costs
        from passes.measure.trial import nearest
        from passes.quantize.exl2_errors import allocate_exl2, in_divergence, measured_errors, uniform_exl2

        errors = measured_errors(dense, run)
        weighed = in_divergence(dense.ir, errors, format_costs(dense, (_FOUR_BITS,), run))
        allocations = (
            allocate_exl2(dense.ir, self.bpw, weighed),
            allocate_exl2(dense.ir, self.bpw, errors),
            uniform_exl2(dense.ir, self.bpw, weighed),
        )
        return nearest([replace(self, choices=choices) for choices in dict.fromkeys(allocations)], dense, run)

    def text(self) -> str:
        """Write `quantize{exl2, exl2-4.65}`."""
        by = "" if self.backend == "native" else f", by {self.backend}"
        return f"quantize{{exl2, {self.storage.label}{by}}}"


def _quantized(block: Block) -> list[Linear]:
    return [linear for linear in block.linears if linear.quantizable]


@lru_cache(maxsize=1 << 12)
def _bounded(block: Block, storage: Format) -> Block:
    return split_fused(block).map_linears(lambda linear: _store(linear, storage) if linear.quantizable else linear)


def _store(linear: Linear, storage: Format) -> Linear:
    return replace(linear, storage=storage, bias="F16" if linear.bias else None)


@lru_cache(maxsize=1 << 16)
def stored_block(block: Block, attention: int, mlp: int) -> Block:
    """Return one layer with a row of `ATTENTION` for its attention and a row of `MLP` for its MLP or experts."""

    def store(linear: Linear) -> Linear:
        layout = _layout(linear, attention, mlp)
        return linear if layout is None else _store(linear, layout)

    return split_fused(block).map_linears(store)


def in_attention(linear: Linear) -> bool:
    """Return whether a matrix, fused or not, belongs to its layer's attention slot."""
    return linear.role in _ATTENTION_COLUMN or linear.role is Role.QKV


def apart(ir: ModelIR) -> ModelIR:
    """Return the model with fused matrices in the parts that EXL2 stores."""
    return ir.with_decoder(ir.decoder.map_blocks(split_fused))


def _layout(linear: Linear, attention: int, mlp: int) -> Exl2 | None:
    if not linear.quantizable:
        return None
    if linear.role in _ATTENTION_COLUMN:
        return ATTENTION[attention][_ATTENTION_COLUMN[linear.role]]
    return MLP[mlp][_MLP_COLUMN[linear.role]]


@lru_cache(maxsize=1 << 12)
def slot_bytes(block: Block) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the bytes of every option of a layer's attention and of its MLP, biases included: what the allocator chooses from."""
    linears = _quantized(split_fused(block))
    return _slot(linears, ATTENTION, _ATTENTION_COLUMN), _slot(linears, MLP, _MLP_COLUMN)


def _slot(
    linears: Sequence[Linear], options: Sequence[tuple[Exl2, ...]], columns: Mapping[Role, int]
) -> tuple[int, ...]:
    """The bytes of a slot's matrices by each option."""
    inside = [(linear, columns[linear.role]) for linear in linears if linear.role in columns]
    return tuple(sum(_store(linear, option[column]).bytes for linear, column in inside) for option in options)


def budget_bytes(ir: ModelIR, bpw: float) -> int:
    """Return the bytes that the decoder's EXL2 matrices may take at `bpw`."""
    return math.floor(_weights(ir) * bpw / 8)


def resolved_bytes(ir: ModelIR, options: Sequence[tuple[int, int]]) -> int:
    """Return the bytes of the decoder's EXL2 matrices with these options."""
    sizes = [slot_bytes(ir.decoder.block(layer)) for layer in range(len(options))]
    return sum(a[first] + m[second] for (a, m), (first, second) in zip(sizes, options, strict=True))


def lowest_bpw(ir: ModelIR) -> float:
    """Return the bits a weight of the smallest options everywhere."""
    least = sum(count * sum(min(slot) for slot in slot_bytes(block)) for block, count in ir.decoder.counts)
    return 8 * least / _weights(ir)


def _weights(ir: ModelIR) -> int:
    return sum(count * _block_weights(block) for block, count in ir.decoder.counts)


@lru_cache(maxsize=1 << 12)
def _block_weights(block: Block) -> int:
    """Weights (and biases) that the budget counts, outputs padded."""
    total = 0
    for linear in _quantized(split_fused(block)):
        parts = linear.stacking.parts if linear.stacking else ((linear.name, linear.out_features),)
        rows = sum(Exl2().stored_rows(rows) for _, rows in parts)
        total += linear.copies * rows * (linear.in_features + (1 if linear.bias else 0))
    return total
