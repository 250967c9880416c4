"""The plan as a document: what was chosen, why each other lost, and a lock on every input it rests on.

`planner.plan.codec` writes the fields as the keys of the command-line contract, in their order, and reads them back.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from pathlib import Path
from typing import Any

from passes import chain
from passes.base import Pass
from passes.errors import DoesNotFitError, GoalMissedError, InputError
from passes.record import dataclass
from planner.choice.capacity import Capacity
from planner.choice.goals import Goal
from planner.choice.verdict import GoalResult
from planner.plan.codec import to_json
from planner.plan.effort import Effort
from planner.plan.stated import StatedReason
from planner.quality.expected import Quality
from planner.spec.parse import validated
from planner.spec.parts.goals import Bands
from planner.spec.parts.workload import WorkloadSpec
from planner.spec.spec import Spec
from targets.engines.engine import KVEstimate, Memory, Parallel, Settings, SpeedEstimate
from targets.quantity import Quantity
from targets.workload import Workload

#: The parts of a spec that name texts.
TEXTS = ("calibration", "evaluation")


@dataclass(frozen=True, slots=True)
class PlannedEngine:
    """The engine, and the version that was asked, else the newest one known."""

    name: str
    version: str | None


@dataclass(frozen=True, slots=True)
class PlannedSettings:
    """Engine settings that were set, and the layout over cards; data and expert parallel degrees only where one of them is above 1."""

    tensor_parallel: int
    pipeline_parallel: int
    data_parallel: int | None = None
    expert_parallel: int | None = None
    version: str | None = None
    gpu_memory_utilization: float | None = None
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    block_size: int | None = None
    kv_cache_memory_bytes: int | None = None
    enforce_eager: bool = False

    @property
    def gpus(self) -> int:
        """Cards in use."""
        return self.tensor_parallel * self.pipeline_parallel * (self.data_parallel or 1)

    @property
    def settings(self) -> Settings:
        """The settings as engines take them; what a plan does not keep (a reserve) is at its default."""
        return Settings(
            version=self.version,
            parallel=Parallel(
                self.tensor_parallel, self.pipeline_parallel, self.data_parallel or 1, self.expert_parallel or 1
            ),
            gpu_memory_utilization=self.gpu_memory_utilization,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            enforce_eager=self.enforce_eager,
            block_size=self.block_size,
            kv_cache_memory_bytes=self.kv_cache_memory_bytes,
        )


@dataclass(frozen=True, slots=True)
class PlannedGoal:
    """A goal of the spec with what is predicted, both in `unit`."""

    name: Goal
    wanted: float
    unit: str
    at_most: bool
    met: bool
    predicted: Quantity
    odds: float | None = None
    """The probability that it is met; plans of older versions do not say."""
    statistic: str = "mean"
    """What over requests is asked: their mean, or a percentile (`p95`)."""
    missed_by: float | None = None
    """By how much it is missed, in `unit` (a share where that is `%`); None where it is met."""
    band: float | None = None
    """A miss of no more than this is none that anybody can tell: the plan is chosen all the same (docs/choosing.md)."""

    @property
    def said(self) -> str:
        """`TTFT`, `TTFT p95`."""
        return self.name if self.statistic == "mean" else f"{self.name} {self.statistic}"


@dataclass(frozen=True, slots=True)
class ChosenPlan:
    """The chosen candidate. `passes`: as `passes.chain.to_json` writes them. `state`: `bounded` while a choice waits to be measured, and
    `tensor_bytes` is a bound, else `resolved`. `missing`: what `apply` lacks to run it, empty where it is `executable`.
    `apply`: what running it takes where the plan was made; `apply_on_card`: on the plan's own card, where another one computes here.
    `why`: what decided, in one line. `weights`, `kv_cache_dtype`: as `check --weights` and `--kv-cache-dtype` take them. `published`: the
    Hub id of the checkpoint that is served as it is in the model's place. `capacity`: the cache that is needed, against what is left.
    `fit_odds`: the probability that it fits.
    """

    engine: PlannedEngine
    label: str
    passes: tuple[Mapping[str, Any], ...]
    settings: PlannedSettings
    memory: Memory
    kv_cache: KVEstimate
    speed: SpeedEstimate | None
    quality: Quality
    goals: tuple[PlannedGoal, ...]
    tensor_bytes: int
    apply: Effort
    state: str
    executable: bool
    missing: tuple[str, ...]
    notes: tuple[str, ...]
    apply_on_card: Effort | None = None
    why: str = ""
    weights: str | None = None
    kv_cache_dtype: str | None = None
    published: str | None = None
    capacity: Capacity | None = None
    fit_odds: float | None = None

    @property
    def nothing_to_make(self) -> bool:
        """Whether the checkpoint is served as it is."""
        return chain.nothing_to_make(self.chain)

    @property
    def chain(self) -> tuple[Pass, ...]:
        """The passes."""
        return chain.from_json(self.passes)


@dataclass(frozen=True, slots=True)
class RejectedPlan:
    """A candidate that lost, and why; where it was judged, its figures. `weights`, `kv_cache_dtype`: as `check` takes them. `ranked`: the
    means of speed by the formula, of every candidate alike; in `speed` some were simulated.
    """

    candidate: str
    reasons: tuple[StatedReason, ...]
    memory: Memory | None = None
    speed: SpeedEstimate | None = None
    quality: Quality | None = None
    making: str = ""
    cards: int = 1
    weights: str | None = None
    kv_cache_dtype: str | None = None
    ranked: SpeedEstimate | None = None


@dataclass(frozen=True, slots=True)
class Alternative:
    """A change of the question that would meet the goals, and the candidate that it leads to."""

    change: str
    candidate: str
    message: str


@dataclass(frozen=True, slots=True)
class IllegalKind:
    """A kind of illegality, and how many candidates it ruled out."""

    code: str
    message: str
    remedy: str | None
    data: Mapping[str, Any] = field(default_factory=dict)
    candidates: int = field(kw_only=True)


@dataclass(frozen=True, slots=True)
class ParetoPlan:
    """A candidate that no other one beats in quality, speed, memory, work, cards and waiting at once. `making`: what is to be made;
    `ranked`: as of a RejectedPlan.
    """

    candidate: str
    memory: Memory
    kv_cache: KVEstimate
    speed: SpeedEstimate | None
    quality: Quality
    making: str = ""
    cards: int = 1
    weights: str | None = None
    kv_cache_dtype: str | None = None
    ranked: SpeedEstimate | None = None


@dataclass(frozen=True, slots=True)
class PortableTarget:
    """The card by name, size or facts; `reserve` with its unit."""

    gpu: str | Mapping[str, Any]
    count: int | str
    reserve: str
    nodes: int | None = None
    max: int | None = None
    network_gb_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PortableWorkload:
    """What is asked of the served model, in tokens and requests."""

    context: int
    concurrency: int | str | None = None
    input_tokens: int | Mapping[str, int]
    output_tokens: int | Mapping[str, int]
    images: Mapping[str, int] | None = None
    requests: int | None = None
    rate: str | None = None
    burstiness: float = 1.0
    max_concurrency: int | None = None
    shared_prefix: int | str = 0
    trace: str | None = None

    @property
    def asked(self) -> Workload:
        """What engines are asked."""
        return WorkloadSpec.model_validate(to_json(self)).asked


@dataclass(frozen=True, slots=True)
class PortableText:
    """A text without its folder."""

    dataset: str
    samples: int
    length: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PortableSpec:
    """The spec without the model and the places of its files. What only the spec's own reader understands stands as people write it."""

    revision: str | None = None
    assume: str | None = None
    trust_remote_code: bool
    target: PortableTarget
    engine: str | Mapping[str, Any]
    workload: PortableWorkload
    goals: Mapping[str, Any]
    passes: Mapping[str, Any]
    calibration: PortableText
    evaluation: PortableText
    launch: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class LockedText:
    """A text, and the sha256 of its file; None where it is no file."""

    dataset: str
    samples: int
    length: int
    seed: int
    digest: str | None


@dataclass(frozen=True, slots=True)
class LockedGpu:
    """The card, its bytes, and how many there are."""

    name: str
    memory_bytes: int
    count: int


@dataclass(frozen=True, slots=True)
class Lock:
    """Every input that a plan rests on. `data`: sha256 of the tool's own tables by their file names; plans of older states do not say."""

    model: str
    revision: str | None
    header_digest: str
    config_digest: str
    calibration: LockedText
    evaluation: LockedText
    gpu: LockedGpu
    engine: PlannedEngine | None
    tightfit: str
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Places:
    """Where the plan's files are on this machine: absolute paths, and names of what is no file."""

    model: str
    calibration: str
    evaluation: str
    spec: str | None = None
    asked: str | None = None
    """The model that was asked for, where a published checkpoint of it is served."""
    moved: tuple[str, ...] = ()
    """What lies elsewhere now than it did when the plan was made, by the names above."""


@dataclass(frozen=True, slots=True)
class PlanDocument:
    """A plan as it is saved. `weights`: their count. `searched`: candidates settled. `digest`: sha256 over all but itself and `places`;
    no timestamp or path is inside of what is hashed. A plan that has left the place where it was made has no `places`.
    """

    format_version: str
    model: str
    weights: int
    spec: PortableSpec
    chosen: ChosenPlan | None
    rejected: tuple[RejectedPlan, ...]
    alternatives: tuple[Alternative, ...]
    illegal: tuple[IllegalKind, ...]
    pareto: tuple[ParetoPlan, ...]
    searched: int
    lock: Lock
    digest: str
    places: Places | None = None
    lost: int = 0
    """Designs that lost, each with its best settings: `explain` lists so many."""

    @property
    def decision(self) -> ChosenPlan:
        """What was chosen. Raises DoesNotFitError where nothing was."""
        if self.chosen is None:
            raise DoesNotFitError(
                "the plan found nothing that meets the goals",
                remedy="loosen a goal or change the target, then plan again",
            )
        return self.chosen


def planned_settings(settings: Settings) -> PlannedSettings:
    """Return settings as documents state them."""
    parallel = settings.parallel
    spread = parallel.dp > 1 or parallel.ep > 1
    return PlannedSettings(
        parallel.tp, parallel.pp, parallel.dp if spread else None, parallel.ep if spread else None, settings.version,
        settings.gpu_memory_utilization, settings.max_num_seqs, settings.max_num_batched_tokens, settings.block_size,
        settings.kv_cache_memory_bytes, settings.enforce_eager,
    )  # fmt: skip


def planned_goal(result: GoalResult, bands: Bands) -> PlannedGoal:
    """Return a judged goal as documents state it."""
    goal = result.goal
    return PlannedGoal(
        goal,
        result.wanted,
        goal.unit,
        goal.at_most,
        result.met,
        result.predicted,
        round(result.odds, 4),
        result.statistic,
        result.short,
        None if result.met else result.band(bands),
    )


def digest(document: Mapping[str, Any]) -> str:
    """Return the sha256 over a plan's JSON but for the places of files."""
    said = {key: value for key, value in document.items() if key not in ("digest", "places")}
    return hashlib.sha256(json.dumps(said, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sealed(document: PlanDocument) -> PlanDocument:
    """Return a plan with the digest of what it says."""
    return replace(document, digest=digest(to_json(document)))


def portable(document: PlanDocument) -> PlanDocument:
    """Return a plan as it travels with its result: without the places of this machine."""
    return replace(document, places=None)


def resolved_plan(document: PlanDocument, passes: Sequence[Pass], tensor_bytes: int) -> PlanDocument:
    """Return a plan whose measured choices are filled in: the same decision where it was resolved already.

    Raises GoalMissedError where the resolved bytes exceed what the bounded plan promised.
    """
    chosen = document.decision
    if tensor_bytes > chosen.tensor_bytes or (chosen.state == "resolved" and tensor_bytes != chosen.tensor_bytes):
        raise GoalMissedError(
            f"the measured choices take {tensor_bytes:,} bytes, the plan promised {chosen.tensor_bytes:,}",
            remedy="plan again",
        )
    steps = tuple(to_json(chain.to_json(passes)))
    return sealed(replace(document, chosen=replace(chosen, passes=steps, tensor_bytes=tensor_bytes, state="resolved")))


def asked_spec(document: PlanDocument) -> Spec:
    """Return the spec as `spec_of` does, with the model that was asked for where a published checkpoint of it was chosen."""
    spec = spec_of(document)
    asked = document.places.asked if document.places else None
    return spec if asked is None else spec.model_copy(update={"model": asked})


def spec_of(document: PlanDocument) -> Spec:
    """Return the spec inside a plan, with the model where the plan found it."""
    if document.places is None:
        raise InputError(
            "this plan has left the place it was made at: it names neither model nor texts",
            remedy="say where the model is (apply --model), apply the plan that `optimize plan` saved, or plan again",
        )
    spec = to_json(document.spec)
    texts = {role: spec[role] | {"dataset": getattr(document.places, role)} for role in TEXTS}
    return validated(None, spec | texts | {"model": document.places.model}, "the spec in the plan")


def moved_plan(document: PlanDocument, places: Mapping[str, Path]) -> PlanDocument:
    """Return a plan whose model and texts lie elsewhere now, by what they are called in `Places`. What they are decides whether it is
    stale, not what they are called.
    """
    known = document.places or Places("", document.spec.calibration.dataset, document.spec.evaluation.dataset)
    if not known.model and "model" not in places:
        raise InputError("this plan has left the place it was made at", remedy="say where the model is: --model PATH")
    now = {name: str(path.resolve()) for name, path in places.items()}
    return replace(document, places=replace(known, spec=None, moved=tuple(now), **now))


def require_executable(document: PlanDocument) -> None:
    """Refuse a plan that chose nothing or cannot be run, before anything is done."""
    chosen = document.decision
    if not chosen.executable:
        raise InputError(
            f"this plan cannot be applied: {'; '.join(chosen.missing)}", remedy="name a model whose weights are here"
        )
