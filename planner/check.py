"""`optimize check`: does a given model, in a given format, with given settings, fit a card? No search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from passes.errors import Reason, ReasonKind
from passes.ir.model import ModelIR
from passes.ir.purpose import purpose
from passes.ir.sources import Source, open_model
from passes.record import dataclass
from planner.asked import AS_IS
from planner.checking.terms import Terms
from planner.choice.mending.remedies import Remedy, first_that_keeps, flags, remedies, said_to_mend, surer
from planner.choice.mending.trial import SURE
from planner.choice.question import Load, Outcome, Question
from planner.plan.codec import FORMAT_VERSION, to_json
from planner.plan.stated import StatedReason, figures_alone, stated, whole_bytes
from planner.quality.expected import Quality
from planner.quality.origin import NOT_JUDGED, loss_since_origin, origin_unknown
from planner.spec.arguments import count, of_kind, optional_text, public, record
from targets.engines.engine import (
    DEFAULT_ENGINE,
    KVEstimate,
    Memory,
    Settings,
    SpeedEstimate,
)
from targets.gpu import Gpu, find_gpu
from targets.quantity import Quantity
from targets.simulation.serving import lengths_told, ramp_told, with_highest

if TYPE_CHECKING:
    from planner.choice.verdict import GoalResult


@dataclass(frozen=True, slots=True)
class CheckedGoal:
    """A goal that was asked of a check, and what is predicted, both in its unit. `kept`: met, or missed by less than the band that plans
    are judged with.
    """

    name: str
    wanted: float
    unit: str
    met: bool
    predicted: Quantity
    odds: float
    kept: bool = True


@dataclass(frozen=True, slots=True)
class CheckedLoad:
    """What the figures of speed are for: tokens of a prompt and of an answer in the mean, requests at once, and how many arrive a second
    where they come at a rate. `embeds`: the model reads texts and writes none, so that nothing is decoded.
    """

    input_tokens: int
    output_tokens: int
    concurrency: int
    request_rate: float | None = None
    embeds: bool = False


#: More requests than any engine runs at once, unless it runs as many as there are.
_CROWD = 1 << 20
#: Nothing besides fitting.
_NONE = Terms()


@dataclass(frozen=True, slots=True)
class CheckDocument:
    """The answer of `check` as the command-line contract has it. `meets`: whether goals and confidence that were asked are kept too; None
    where none was, or one cannot be judged (a reason `quality_not_judged`). `most_at_once`: requests that the engine runs at once, however
    much cache there is.
    """

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
    load: CheckedLoad
    goals: tuple[CheckedGoal, ...] = ()
    meets: bool | None = None
    context: int | None = None
    gpus: int = 1
    most_at_once: int | None = None


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
    """What would make it fit and keep what was asked, one change a knob; of what does so, but not surely, the settings with which it
    would.
    """
    mended: Mapping[str, str] = field(default_factory=dict)
    """The options of `check` that take a term away which is not kept, by the reason's code."""
    unread: str | None = None
    """What was counted in place of a file that the engine does not read."""
    terms: Terms = _NONE
    """What must be kept besides."""
    notes: tuple[str, ...] = ()
    """What is to be said of how it was asked."""
    here: tuple[Reason, ...] = ()
    """What this machine has against it, where it was looked at."""
    gpus: int = 1
    """Cards in use."""
    most_at_once: int | None = None
    """Requests that all replicas run at once at most, by the engine's scheduler."""
    origin_unknown: bool = False
    """The model is quantized already, and what it was made of is not known: `quality` is of what is done to it besides."""

    @property
    def goals(self) -> tuple[GoalResult, ...]:
        """The goals that were asked and can be judged, against what is predicted; a rate that is asked is one."""
        goals = self.terms.judged(self.outcome.workload, self.speed, self.quality)
        return tuple(goal for goal in goals if goal.goal.of_speed or not self.origin_unknown)

    @property
    def unjudged(self) -> tuple[Reason, ...]:
        """The goals that were asked and cannot be judged."""
        asked = self.terms.goals is not None and self.terms.goals.asks_quality
        not_known = Reason("quality_not_judged", f"quality {NOT_JUDGED}", kind=ReasonKind.NOT_MODELLED)
        return (not_known,) if asked and self.origin_unknown else ()

    @property
    def broken(self) -> tuple[Reason, ...]:
        """The terms that are not kept, each with the options of `check` that mend it."""
        broken = self.terms.kept(self.outcome, self.goals)
        return tuple(replace(reason, remedy=self.mended.get(reason.code)) for reason in broken)

    @property
    def fits(self) -> bool:
        """The engine starts, and serves where a concurrency was asked."""
        return self.outcome.fits and not self.here

    @property
    def exit_code(self) -> int:
        """0: it fits, and keeps what was asked besides; 3: it does not; 6: what comes of it is not modelled, or a goal cannot be judged."""
        if not self.outcome.modelled:
            return 6
        if not self.fits or self.broken:
            return 3
        return 6 if self.unjudged else 0

    @property
    def confidence(self) -> float:
        """Probability that the verdict is right; even odds where nothing is known, certain where something is refused."""
        if not self.outcome.modelled:
            return 0.5
        beyond = not self.outcome.starts and self.outcome.memory.margin.value >= 0
        if self.outcome.illegal or beyond or (self.here and self.outcome.fits):
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
            starts=self.outcome.starts and not self.here,
            serves=self.outcome.serves and not self.here,
            margin=self.outcome.memory.margin,
            confidence=self.confidence,
            reasons=tuple(map(stated, (*self.here, *self.said, *self.broken, *self.unjudged))),
            remedies=self.remedies,
            memory=whole_bytes(self.outcome.memory.memory),
            kv_cache=self.outcome.memory.kv,
            speed=figures_alone(self.speed),
            quality=self.quality,
            notes=(*self._unread, *self.outcome.memory.notes, *self.speed.notes, *self._drawn, *self.notes)
            if self.outcome.modelled
            else (),
            goals=tuple(_checked(goal, self.terms) for goal in self.goals),
            meets=self._meets,
            context=self.outcome.workload.context,
            gpus=self.gpus,
            load=self._load,
            most_at_once=self.most_at_once,
        )

    @property
    def _meets(self) -> bool | None:
        kept = self.fits and not self.broken
        unknown = self.terms == _NONE and not self.goals
        return None if unknown or (kept and self.unjudged) else kept

    @property
    def _load(self) -> CheckedLoad:
        load = self.outcome.workload
        return CheckedLoad(
            load.input_tokens,
            load.output_tokens,
            load.concurrency or 1,
            load.rate,
            not purpose(self.outcome.ir).writes,
        )

    @property
    def _drawn(self) -> tuple[str, ...]:
        if not self.speed.requests:
            return ()
        load = self.outcome.workload
        drawn, ramp = lengths_told(load), ramp_told(load)
        return tuple(told for told in (drawn and f"{drawn}; here by `--random-range-ratio 0`", ramp) if told)

    @property
    def _unread(self) -> tuple[str, ...]:
        return (self.unread,) if self.unread else ()

    def as_json(self) -> dict[str, Any]:
        """Return the document as JSON."""
        document: dict[str, Any] = to_json(self.document)
        return document


def _checked(goal: GoalResult, terms: Terms) -> CheckedGoal:
    figures = goal.name, goal.wanted, goal.goal.unit, goal.met, goal.predicted
    return CheckedGoal(*figures, odds=round(goal.odds, 4), kept=terms.keeps(goal))


def to_make(weights: str | None, ir: ModelIR) -> str | None:
    """Return the format that weights are still to be brought into: none where they stay as they are, or are stored so."""
    stored = {
        linear.storage.label
        for block, _ in ir.decoder.counts
        for linear in block.linears
        if linear.storage.is_quantized
    }
    return None if weights == AS_IS or stored == {weights} else weights


@public
def check(
    model: str | Path | Source,
    gpu: str | int | Gpu,
    engine: str = DEFAULT_ENGINE,
    *,
    settings: Settings | None = None,
    context: int | str | None = None,
    concurrency: int | None = None,
    input_tokens: int | str | None = None,
    output_tokens: int | str | None = None,
    weights: str | None = None,
    kv_cache_dtype: str = "auto",
    dtype: str | None = None,
    load: Load | None = None,
) -> CheckResult:
    """Return whether `model` fits `gpu` under `engine`. `weights` names a format; None: the checkpoint's own. Tokens may be written `32k`.

    Raises InputError for unknown names and for arguments that are none. Illegal combinations are answered, with the reason.
    """
    of_kind("model", model, (str, Path, Source), "a Hub id, a catalog name, a folder, a .gguf file, or an opened model")
    of_kind("gpu", gpu, (str, int, Gpu), "a card's name, or a size such as 24GB")
    of_kind("engine", engine, str, "the name of an engine")
    of_kind("kv_cache_dtype", kv_cache_dtype, str, "the name of a type, such as fp8")
    optional_text("weights", weights, "the name of a format, such as w4a16-g128")
    optional_text("dtype", dtype, "the name of a type, such as bfloat16")
    settings = Settings() if settings is None else settings
    load = Load() if load is None else load
    record("settings", settings, Settings)
    record("load", load, Load)
    source = model if isinstance(model, Source) else open_model(model)
    card = gpu if isinstance(gpu, Gpu) else find_gpu(str(gpu))
    return answer(
        Question(
            source.ir, card, engine, replace(settings, dtype=dtype or settings.dtype), count("context", context),
            count("concurrency", concurrency), count("input_tokens", input_tokens), count("output_tokens", output_tokens),
            load, to_make(weights, source.ir), kv_cache_dtype, source.as_stored,
        )
    )  # fmt: skip


def answer(
    question: Question, terms: Terms = _NONE, notes: tuple[str, ...] = (), quality: Quality | None = None
) -> CheckResult:
    """Return what comes of a question, held against the terms; `notes` are said with it. `quality`: where a plan knows it, of what it made
    or chose of the model that was asked for. Raises InputError for contradictions.
    """
    question.refuse_contradictions()
    outcome = question.outcome()
    engine, gpu, settings = question.engine, question.gpu, question.settings
    run = engine.as_run(outcome.ir, gpu, settings)
    speed = with_highest(engine, run, gpu, settings, outcome.workload, outcome.memory)
    unknown = quality is None and origin_unknown(question.file or question.model)
    quality = quality or loss_since_origin(question.dense, question.chain)
    crowd = replace(outcome.workload, concurrency=_CROWD)
    most = settings.parallel.dp * engine.scheduler(gpu, settings, crowd).sequences
    result = CheckResult(
        question.model.name, question.gpu, question.engine_name, outcome, speed, quality, most_at_once=most,
        unread=question.unread_file, terms=terms, notes=notes, gpus=question.settings.parallel.gpus, origin_unknown=unknown,
    )  # fmt: skip
    kept = terms.to_keep(quality)
    if not outcome.modelled:
        return replace(result, said=tuple(replace(reason, remedy=None) for reason in outcome.reasons))
    if outcome.fits and not result.broken:
        return result if outcome.odds >= SURE else replace(result, remedies=surer(question, kept))
    whole = remedies(question, outcome, kept)
    said = tuple(replace(reason, remedy=said_to_mend(question, outcome, reason, whole)) for reason in outcome.reasons)
    return replace(result, said=said, remedies=whole, mended=_mended(result, question, quality, whole))


def _mended(result: CheckResult, question: Question, quality: Quality, whole: Sequence[Remedy]) -> Mapping[str, str]:
    """What takes each term away that is not kept: the first remedy of all; where there is none, the first change that keeps this one
    term.
    """
    out, terms = {}, result.terms
    for reason in result.broken:
        alone = whole[0] if whole else None
        if alone is None and result.outcome.fits:
            alone = first_that_keeps(question, result.outcome, terms.to_keep(quality, only=reason.code))
        if alone is not None:
            out[reason.code] = flags(alone.options)
    return out
