"""`optimize check`: does a given model, in a given format, with given settings, fit a card? No search."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from passes.errors import Reason
from passes.ir.model import ModelIR
from passes.ir.sources import Source, open_model
from planner.asked import AS_IS
from planner.choice.question import Load, Outcome, Question
from planner.choice.remedies import Remedy, remedies, said_to_mend
from planner.plan.codec import FORMAT_VERSION, to_json
from planner.plan.stated import StatedReason, figures_alone, stated, whole_bytes
from planner.quality.expected import Quality, expected_quality
from targets.engines.engine import (
    DEFAULT_ENGINE,
    KVEstimate,
    Memory,
    Settings,
    SpeedEstimate,
)
from targets.gpu import Gpu, find_gpu
from targets.quantity import Quantity


@dataclass(frozen=True, slots=True)
class CheckDocument:
    """The answer of `check` as the command-line contract has it."""

    format_version: str
    model: str
    gpu: str
    engine: str
    fits: bool
    modelled: bool
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
    """The answer of `check`; `document` is the contract."""

    model: str
    gpu: Gpu
    engine: str
    outcome: Outcome
    speed: SpeedEstimate
    quality: Quality
    said: tuple[Reason, ...] = ()
    """Everything against it, each reason with the options of `check` that take it away."""
    remedies: tuple[Remedy, ...] = ()
    """What would make it fit: one change a knob."""
    unread: str | None = None
    """What was counted in place of a file that the engine does not read."""

    @property
    def fits(self) -> bool:
        """The engine starts, and serves where a concurrency was asked."""
        return self.outcome.fits

    @property
    def exit_code(self) -> int:
        """0: it fits; 3: it does not; 6: what comes of it is not modelled."""
        return 0 if self.fits else 3 if self.outcome.modelled else 6

    @property
    def confidence(self) -> float:
        """Probability that the verdict is right; even odds where nothing is known, certain where something is refused."""
        if not self.outcome.modelled:
            return 0.5
        if self.outcome.illegal:
            return 1.0
        return round(self.outcome.odds if self.fits else 1 - self.outcome.odds, 4)

    @property
    def document(self) -> CheckDocument:
        """The answer as the command-line contract has it."""
        return CheckDocument(
            format_version=FORMAT_VERSION,
            model=self.model,
            gpu=self.gpu.name,
            engine=self.engine,
            fits=self.fits,
            modelled=self.outcome.modelled,
            starts=self.outcome.starts,
            serves=self.outcome.serves,
            margin=self.outcome.memory.margin,
            confidence=self.confidence,
            reasons=tuple(map(stated, self.said)),
            remedies=self.remedies,
            memory=whole_bytes(self.outcome.memory.memory),
            kv_cache=self.outcome.memory.kv,
            speed=figures_alone(self.speed),
            quality=self.quality,
            notes=(*self._unread, *self.outcome.memory.notes, *self.speed.notes) if self.outcome.modelled else (),
        )

    @property
    def _unread(self) -> tuple[str, ...]:
        return (self.unread,) if self.unread else ()

    def as_json(self) -> dict[str, Any]:
        """Return the document as JSON."""
        document: dict[str, Any] = to_json(self.document)
        return document


def _to_make(weights: str | None, ir: ModelIR) -> str | None:
    """The format that the weights are still to be brought into: none where they are to stay as they are, or are stored so already."""
    stored = {
        linear.storage.label
        for block, _ in ir.decoder.counts
        for linear in block.linears
        if linear.storage.is_quantized
    }
    return None if weights == AS_IS or stored == {weights} else weights


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
    load: Load | None = None,
) -> CheckResult:
    """Return whether `model` fits `gpu` under `engine`. `weights` names a format; None: the checkpoint's own.

    Raises InputError for unknown names. Illegal combinations are answered, with the reason.
    """
    source = open_model(model) if isinstance(model, str) else model
    card = find_gpu(gpu) if isinstance(gpu, str) else gpu
    question = Question(
        source.ir, card, engine, replace(settings or Settings(), dtype=dtype), context, concurrency, input_tokens,
        output_tokens, load or Load(), _to_make(weights, source.ir), kv_cache_dtype, source.as_stored,
    )  # fmt: skip
    question.refuse_contradictions()
    outcome = question.outcome()
    speed = question.engine.served(outcome.ir, card, question.settings, outcome.workload, outcome.memory)
    quality = expected_quality(question.dense, question.chain)
    result = CheckResult(source.ir.name, card, engine, outcome, speed, quality, unread=question.unread_file)
    if outcome.fits:
        return result
    whole = remedies(question, outcome)
    said = tuple(replace(reason, remedy=said_to_mend(question, outcome, reason, whole)) for reason in outcome.reasons)
    return replace(result, said=said, remedies=whole)
