"""What was chosen, as a plan states it: engine, settings, goals, and what making it takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from passes import chain
from passes.base import Pass
from passes.record import dataclass
from planner.choice.capacity import Capacity
from planner.choice.goals import Goal
from planner.choice.verdict import GoalResult
from planner.plan.effort import Effort
from planner.quality.expected import Quality
from planner.spec.parts.goals import Bands
from targets.engines.engine import KVEstimate, Memory, Parallel, Settings, SpeedEstimate
from targets.quantity import Quantity


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

    def sure(self, confidence: float) -> bool:
        """Tell whether it is met, and as surely as is asked; plans that name no odds are taken by their predicted value."""
        return self.met and (self.odds is None or self.odds >= confidence)


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
