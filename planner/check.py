"""`optimize check`: does a given model, in a given format, with given settings, fit a card? No search."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from passes.errors import Reason
from passes.ir.model import ModelIR
from passes.ir.sources import Source, open_model
from planner.asked import chain_of, rewrite, with_dtype
from planner.choice.remedies import Misfit, Remedy, remedies
from planner.plan.codec import FORMAT_VERSION, to_json
from planner.plan.stated import StatedReason, figures_alone, stated, whole_bytes
from planner.quality.expected import Quality, expected_quality
from targets.engines.engine import (
    DEFAULT_ENGINE,
    Engine,
    KVEstimate,
    Memory,
    MemoryEstimate,
    Settings,
    SpeedEstimate,
    find_engine,
)
from targets.gpu import Gpu, find_gpu
from targets.quantity import Quantity
from targets.workload import Workload

#: z of a two-sided 90 % interval.
_Z90 = 1.645


@dataclass(frozen=True, slots=True)
class CheckDocument:
    """The answer of `check` as the command-line contract has it."""

    format_version: str
    model: str
    gpu: str
    engine: str
    fits: bool
    starts: bool
    serves: bool
    margin: Quantity
    confidence: float
    reasons: tuple[StatedReason, ...]
    remedies: tuple[Remedy, ...]
    memory: Memory
    kv_cache: KVEstimate
    speed: SpeedEstimate
    quality: Quality
    notes: tuple[str, ...]


@dataclass(frozen=True)
class CheckResult:
    """The answer of `check`; `document` is the contract. `starts`, `serves`, `fits` as in `MemoryEstimate`, legality included."""

    model: str
    gpu: Gpu
    engine: str
    estimate: MemoryEstimate
    speed: SpeedEstimate
    quality: Quality
    workload: Workload
    illegal: tuple[Reason, ...]
    remedies: tuple[Remedy, ...] = ()
    """What would make it fit: one change a knob."""

    @property
    def starts(self) -> bool:
        """The engine comes up at this context length."""
        return self.estimate.starts and not self.illegal

    @property
    def serves(self) -> bool:
        """The asked concurrency at full context fits without preemption."""
        return self.estimate.serves and not self.illegal

    @property
    def fits(self) -> bool:
        """`starts`, and `serves` where a concurrency was asked."""
        return self.serves if self.workload.concurrency else self.starts

    @property
    def confidence(self) -> float:
        """Probability that the verdict on memory is right, from the margin's interval taken as normal."""
        margin: Quantity = self.estimate.margin
        if self.illegal or margin.high <= margin.low:
            return 1.0
        sigma = (margin.high - margin.low) / (2 * _Z90)
        return round(0.5 * (1 + math.erf(abs(margin.value) / sigma / math.sqrt(2))), 4)

    @property
    def reasons(self) -> tuple[Reason, ...]:
        """Everything against it."""
        return (*self.illegal, *self.estimate.reasons)

    @property
    def document(self) -> CheckDocument:
        """The answer as the command-line contract has it."""
        return CheckDocument(
            format_version=FORMAT_VERSION,
            model=self.model,
            gpu=self.gpu.name,
            engine=self.engine,
            fits=self.fits,
            starts=self.starts,
            serves=self.serves,
            margin=self.estimate.margin,
            confidence=self.confidence,
            reasons=tuple(map(stated, self.reasons)),
            remedies=self.remedies,
            memory=whole_bytes(self.estimate.memory),
            kv_cache=self.estimate.kv,
            speed=figures_alone(self.speed),
            quality=self.quality,
            notes=(*self.estimate.notes, *self.speed.notes),
        )

    def as_json(self) -> dict[str, Any]:
        """The document as JSON."""
        document: dict[str, Any] = to_json(self.document)
        return document


def _served(source: Source, engine: Engine, settings: Settings) -> ModelIR:
    """The model as the engine reads the source: a file of another kind as it is, or what is made of it, which is said."""
    if source.as_stored is None:
        return source.ir
    unread = engine.unread_file(source.kind, settings)
    if unread is None:
        return source.as_stored
    note = f"{unread}: counted dequantized to 16 bits, as a plan would store it"
    return replace(source.ir, notes=(*source.ir.notes, note))


def check(
    model: str | Source,
    gpu: str | Gpu,
    engine: str = DEFAULT_ENGINE,
    *,
    settings: Settings | None = None,
    context: int | None = None,
    concurrency: int | None = None,
    input_tokens: int | None = None,
    output_tokens: int | None = None,
    weights: str | None = None,
    kv_cache_dtype: str = "auto",
    dtype: str | None = None,
) -> CheckResult:
    """Whether `model` fits `gpu` under `engine`. `weights` names a format; None: the checkpoint's own.

    Raises InputError for unknown names. Illegal combinations are answered, with the reason.
    """
    settings = replace(settings or Settings(), dtype=dtype)
    source = open_model(model) if isinstance(model, str) else model
    card = find_gpu(gpu) if isinstance(gpu, str) else gpu
    target = find_engine(engine)
    dense = with_dtype(_served(source, target, settings) if weights is None else source.ir, weights, dtype)
    chain = chain_of(weights, kv_cache_dtype)
    ir, illegal = rewrite(dense, chain)
    workload = Workload(context or source.ir.max_context, concurrency, input_tokens or 512, output_tokens or 128)
    if context is not None and input_tokens is None:
        workload = replace(
            workload, input_tokens=max(1, min(512, context - 1)), output_tokens=max(1, min(128, context // 2))
        )
    estimate = target.estimate(ir, card, settings, workload)
    result = CheckResult(
        source.ir.name, card, engine, estimate.memory, estimate.speed, expected_quality(dense, chain), workload,
        (*illegal, *target.illegal(ir, card, settings)),
    )  # fmt: skip
    if result.fits or illegal:
        return result
    dense_source = source.ir.quant_method is None
    found = remedies(Misfit(target, dense, ir, card, settings, workload), may_quantize=dense_source and weights is None)
    return replace(result, remedies=found)
