"""The certificate of a result: what was promised and what was measured, slot by slot. Pure; `planner.apply` writes it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from passes.files.atomic import read_json
from passes.files.checkpoint import Checkpoint
from passes.record import dataclass
from planner.choice.goals import Goal
from planner.figures import show_interval
from planner.plan.codec import FORMAT_VERSION, from_json, upgraded
from planner.plan.document import PlanDocument
from planner.plan.effort import Effort
from planner.plan.parts.chosen import PlannedEngine, PlannedGoal
from planner.quality.expected import Quality, growth, perplexity_growth
from targets.engines.engine import KVEstimate, Memory, SpeedEstimate
from targets.quantity import Basis, Quantity
from targets.serve.load import LoadTiming
from targets.serve.watch import Watched

if TYPE_CHECKING:
    from passes.measure.evaluate import Measured
    from passes.run.job import Outcome

NAME = "certificate.json"


@dataclass(frozen=True, slots=True)
class Comparison:
    """A figure that was promised against what was measured, both as people read them. One that is not `binding` is informative. `better`:
    it lies outside of what was predicted, on the good side.
    """

    name: str
    predicted: str
    measured: str
    holds: bool
    binding: bool
    better: bool = False


@dataclass(frozen=True, slots=True)
class MeasuredGoal:
    """A goal on quality, and whether the result meets it."""

    name: Goal
    wanted: float
    measured: float
    met: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredQuality:
    """What was measured (`passes.measure.evaluate.Measured`) with its 90 % intervals, nothing of it where nothing could be; the digests
    of the tokens that were used; what was expected.
    """

    kl: float | None = None
    kl_stderr: float | None = None
    perplexity: float | None = None
    source_perplexity: float | None = None
    log_ppl_increase: float | None = None
    log_ppl_stderr: float | None = None
    tokens: int | None = None
    sequences: int | None = None
    intervals: Quality | None = None
    calibration_digest: str | None
    evaluation_digest: str
    predicted: Quality


@dataclass(frozen=True)
class SoakReport:
    """What a soak of the served result showed (`verify --soak`): its requests, what was watched, and each figure beside what the plan
    promised of it. `engine_version`: of what ran.
    """

    checks: tuple[Comparison, ...]
    timing: LoadTiming
    watched: Watched
    engine_version: str | None = None

    @property
    def holds(self) -> bool:
        """Whether every promise is kept."""
        return kept(self.checks)


@dataclass(frozen=True, slots=True)
class PredictedFigures:
    """What the plan expects of the served result; `verify` holds it against the engine."""

    memory: Memory
    kv_cache: KVEstimate
    speed: SpeedEstimate | None


@dataclass(frozen=True, slots=True)
class FinishedStep:
    """What a step took, and what the plan expected of it."""

    name: str
    seconds: float
    expected_seconds: float | None
    peak_bytes: int
    reused: bool


@dataclass(frozen=True, slots=True)
class Certificate:
    """The document on a result. `holds`: every binding check does, of the soak too, and every goal on quality is met. `planned_passes`: the
    passes as they were planned, choices that had to be measured still open. `soak`: what held at full context; None until `verify --soak`.
    """

    format_version: str
    model: str
    label: str
    plan_digest: str
    engine: PlannedEngine
    checks: tuple[Comparison, ...]
    goals: tuple[MeasuredGoal, ...]
    quality: MeasuredQuality
    predicted: PredictedFigures
    tensor_bytes: int
    steps: tuple[FinishedStep, ...]
    losses: Mapping[str, Any]
    without_calibration: tuple[str, ...]
    holds: bool
    planned_passes: tuple[Mapping[str, Any], ...] | None = None
    notes: tuple[str, ...] = ()
    soak: SoakReport | None = None

    def soaked(self, soak: SoakReport) -> Certificate:
        """Return the certificate with what a soak showed, in place of an earlier one."""
        made = kept(self.checks) and all(goal.met for goal in self.goals)
        return replace(self, soak=soak, holds=made and soak.holds)


def certificate(
    plan: PlanDocument,
    outcome: Outcome,
    folder: Path,
    planned_passes: tuple[Mapping[str, Any], ...],
    expected: Effort,
) -> Certificate:
    """Make the document on the result in `folder`. `plan`: with every choice made; `planned_passes`: as they were before; `expected`: what
    the work was to take where it ran.
    """
    chosen = plan.decision
    stored = list(Checkpoint(folder).describe())
    measured_bytes = sum(tensor.bytes for tensor in stored)
    intervals = None if outcome.measured is None else _intervals(outcome.measured)
    seconds, peak = sum(step.seconds for step in outcome.steps), max(step.peak_bytes for step in outcome.steps)
    checks = (
        _check(
            "bytes of tensors", f"{chosen.tensor_bytes:,}", f"{measured_bytes:,}", measured_bytes == chosen.tensor_bytes
        ),
        _check(
            "tensors in their format",
            f"{sum(1 for _ in outcome.target.tensors()):,}",
            f"{len(stored):,}",
            _same(outcome, stored),
        ),
        *_losses(chosen.quality, intervals),
        _cost("seconds of work", expected.seconds, seconds, "{:.0f}"),
        _cost("peak memory, MiB", expected.memory_bytes, peak, "{:.0f}", 1 << 20),
    )
    goals = tuple(_goals(chosen.goals, outcome.measured))
    return Certificate(
        format_version=FORMAT_VERSION,
        model=plan.model,
        label=chosen.label,
        plan_digest=plan.digest,
        engine=chosen.engine,
        checks=checks,
        goals=goals,
        quality=MeasuredQuality(
            **({} if outcome.measured is None else asdict(outcome.measured)),
            intervals=intervals,
            calibration_digest=outcome.calibration_digest,
            evaluation_digest=outcome.evaluation_digest,
            predicted=chosen.quality,
        ),
        predicted=PredictedFigures(chosen.memory, chosen.kv_cache, chosen.speed),
        tensor_bytes=measured_bytes,
        steps=tuple(
            FinishedStep(step.name, step.seconds, _expected(expected.steps, step.name), step.peak_bytes, step.reused)
            for step in outcome.steps
        ),
        losses=outcome.losses,
        without_calibration=tuple(outcome.unseen),
        holds=kept(checks) and all(goal.met for goal in goals),
        planned_passes=planned_passes,
        notes=tuple(_guessing(outcome.measured, outcome.target.vocab_size)) if outcome.measured else (),
    )


def _guessing(measured: Measured, vocabulary: int) -> Iterator[str]:
    """What is to be said where there is no quality to lose."""
    if measured.source_guesses(vocabulary):
        yield (
            f"the source's own perplexity is {measured.source_perplexity:,.0f} with {vocabulary:,} tokens to choose from, no better "
            "than guessing: its weights look random, untrained or damaged, and figures of quality mean nothing. Check the checkpoint, "
            "its tokenizer and the evaluation text"
        )


def kept(checks: Iterable[Comparison]) -> bool:
    """Return whether every binding check holds."""
    return all(check.holds or not check.binding for check in checks)


def _expected(steps: Mapping[str, float], name: str) -> float | None:
    """What the plan expected of a step; an outside tool's has its version behind the name."""
    return steps.get(name, steps.get(name.split()[0]))


def _losses(predicted: Quality, measured: Quality | None) -> list[Comparison]:
    """Quality against its interval; where nothing here reads the format back, that it was not measured."""
    rise, kl = (None, None) if measured is None else (measured.log_ppl_increase, measured.kl)
    return [
        _loss(Goal.PERPLEXITY, "perplexity", predicted.log_ppl_increase, rise, perplexity_growth),
        _loss(Goal.KL, "KL divergence", predicted.kl, kl, lambda kl: kl),
    ]


def _intervals(measured: Measured) -> Quality:
    """What was measured, with the 90 % interval of its spread over texts."""

    def around(value: float, stderr: float) -> Quantity:
        half = measured.half_width(stderr)
        return Quantity(value, value - half, value + half, Basis.MEASURED)

    return Quality(around(measured.log_ppl_increase, measured.log_ppl_stderr), around(measured.kl, measured.kl_stderr))


def _check(name: str, predicted: str, measured: str, holds: bool) -> Comparison:
    return Comparison(name, predicted, measured, holds, binding=True)


def _loss(
    goal: Goal, name: str, predicted: Quantity, measured: Quantity | None, shown: Callable[[Quantity], Quantity]
) -> Comparison:
    """A measured figure against the predicted 90 % interval: informative, one in ten lies outside by design. `shown`: as people read it."""
    return Comparison(
        name,
        show_interval(shown(predicted), goal.unit),
        "not measured" if measured is None else show_interval(shown(measured), goal.unit),
        holds=measured is not None and predicted.low <= measured.high and measured.low <= predicted.high,
        binding=False,
        better=measured is not None and measured.high < predicted.low,
    )


def _cost(name: str, predicted: Quantity, value: float, form: str, unit: int = 1) -> Comparison:
    """What the work took against what was predicted: informative."""
    expected, low, high = (form.format(end / unit) for end in (predicted.value, predicted.low, predicted.high))
    holds = predicted.low <= value <= predicted.high
    shown, less = form.format(value / unit), value < predicted.low
    return Comparison(name, f"{expected} ({low} … {high})", shown, holds, binding=False, better=less)


def _same(outcome: Outcome, stored: list[Any]) -> bool:
    return {(t.name, t.dtype, t.shape) for t in stored} == {
        (t.name, t.dtype, t.shape) for t in outcome.target.tensors()
    }


def _goals(goals: Iterable[PlannedGoal], measured: Measured | None) -> Iterator[MeasuredGoal]:
    """The goals on quality against the measurement; goals on speed are `verify`'s."""
    if measured is None:
        return
    values = {Goal.PERPLEXITY: growth(measured.log_ppl_increase), Goal.KL: measured.kl}
    for goal in goals:
        if not goal.name.of_speed:
            value = values[goal.name]
            yield MeasuredGoal(goal.name, goal.wanted, value, value <= goal.wanted)


def read_certificate(path: Path) -> Certificate:
    """Return a certificate that `apply` wrote. Raises InputError where it is missing or damaged."""
    return from_json(Certificate, upgraded(read_json(path, "certificate"), str(path)), str(path))


def result_folder(path: Path) -> bool:
    """Return whether a path is a finished result."""
    return (path / NAME).is_file()
