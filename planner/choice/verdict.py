"""A candidate and what became of it: the estimates, the goals met or missed, and the typed reasons why it is out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import field, replace
from functools import cached_property
from typing import TYPE_CHECKING

from passes.base import Pass, Stage
from passes.errors import Reason, ReasonKind
from passes.ir.model import ModelIR
from passes.ir.names import Published
from passes.record import dataclass
from planner.asked import AS_IS, spoken
from planner.choice import odds
from planner.choice.capacity import Capacity
from planner.choice.goals import Goal
from planner.figures import apart
from planner.quality.expected import Quality, perplexity_growth
from targets.engines.engine import MemoryEstimate, Parallel, Settings, SpeedEstimate
from targets.quantity import Quantity
from targets.workload import Workload

if TYPE_CHECKING:
    from planner.spec.parts.goals import Bands, Goals


@dataclass(frozen=True, slots=True)
class Candidate:
    """An engine with settings, and a chain of passes that makes what it serves."""

    engine: str
    passes: tuple[Pass, ...]
    settings: Settings
    changed: tuple[str, ...] = ()
    """Fields of the settings that the search changed from what the spec or the engine's defaults say."""
    published: Published | None = None
    """The checkpoint on the Hub that is served in the model's place."""

    @property
    def weights(self) -> str:
        """The format of the weights that are made, as `check --weights` takes it; `as-is` where none are."""
        names = (pass_.weights_name for pass_ in self.passes)
        return next((name for name in names if name is not None), AS_IS)

    @property
    def cards(self) -> int:
        """Cards in use."""
        return self.settings.parallel.gpus

    @property
    def label(self) -> str:
        """`vllm: 4 bit in groups of 64 by GPTQ (w4a16-g64), KV cache fp8, TP 2, max_num_seqs 8`: what is done, then how it runs."""
        served = f"{self.published.id} ({self.published.weights}) as it is" if self.published else None
        untouched = all(pass_.stage is Stage.KV_CACHE for pass_ in self.passes)
        done = (
            (served or "as it is", *map(spoken, self.passes))
            if served or untouched
            else tuple(map(spoken, self.passes))
        )
        changes = (f"{name} {getattr(self.settings, name)}" for name in self.changed)
        return f"{self.engine}: {', '.join((*done, *spread_words(self.settings.parallel), *changes))}"


def spread_words(parallel: Parallel) -> tuple[str, ...]:
    """Say how a model is spread over cards: `TP 8`, `PP 2`, `DP 4`, each where it is above 1; nothing on one card."""
    degrees = (("TP", parallel.tp), ("PP", parallel.pp), ("DP", parallel.dp), ("EP", parallel.ep))
    return tuple(f"{name} {degree}" for name, degree in degrees if degree > 1)


#: The share of the most that is served which a queue does not grow at.
_HELD = 0.95
#: The share of a rate that is asked which is none of it.
_NONE = 1e-6
#: The statistic that goals are on where they name none.
MEAN = "mean"
_TIMES = {"ttft": Goal.TTFT, "tpot": Goal.TPOT}


@dataclass(frozen=True, slots=True)
class GoalResult:
    """One goal: what was asked and what is predicted, both in the goal's unit, and whether it is met."""

    goal: Goal
    wanted: float
    predicted: Quantity
    statistic: str = MEAN
    """What over requests is asked: their mean, or a percentile (`p95`). A percentile that is not simulated yet is judged by the mean."""

    @property
    def name(self) -> str:
        """`TTFT`, `TTFT p95`."""
        return str(self.goal) if self.statistic == MEAN else f"{self.goal} {self.statistic}"

    @property
    def met(self) -> bool:
        """Whether the predicted value meets the goal."""
        return self.predicted.value <= self.wanted if self.goal.at_most else self.predicted.value >= self.wanted

    @property
    def endless(self) -> bool:
        """Whether it grows without end, as the wait for a first token does where requests arrive faster than they are answered: the goal on
        the rate says by how much.
        """
        return math.isinf(self.predicted.value)

    @property
    def odds(self) -> float:
        """The probability that the goal is met, from the interval of what is predicted."""
        return (odds.at_most if self.goal.at_most else odds.at_least)(self.predicted, self.wanted)

    def tolerated(self, bands: Bands) -> bool:
        """Return whether it is met, or missed by less than the band: nobody can tell such figures apart."""
        if self.goal is Goal.PERPLEXITY:
            return self.predicted.value <= self.wanted + bands.quality
        return not self.endless and self.miss <= bands.speed

    @property
    def short(self) -> float | None:
        """By how much it is missed, in the goal's unit (a share of perplexity in shares); None when met, and where it grows without end."""
        return None if self.met or self.endless else abs(self.predicted.value - self.wanted)

    def band(self, bands: Bands) -> float:
        """Return by how much it may be missed before that counts, in the goal's unit."""
        return bands.quality if self.goal is Goal.PERPLEXITY else bands.speed * abs(self.wanted)

    @property
    def miss(self) -> float:
        """By which share of the goal it is missed; 0 when met, and where no share tells it."""
        if self.met or self.endless:
            return 0.0
        return abs(self.predicted.value - self.wanted) / max(abs(self.wanted), 1e-12)

    @property
    def folds(self) -> float:
        """By how many e-folds it is missed; 0 when met, and where the goal on the rate tells it."""
        if self.met or self.endless:
            return 0.0
        if self.goal.at_most:
            return math.log1p(self.miss)
        return math.log(self.wanted / max(self.predicted.value, _NONE * self.wanted))

    def reason(self) -> Reason:
        """Return the reason of a missed goal."""
        sign = ">" if self.goal.at_most else "<"
        predicted, wanted = apart(self.predicted.value, self.wanted, self.goal.unit)
        figures = {"wanted": self.wanted, "predicted": self.predicted.value}
        message, remedy = f"{self.name} {predicted} {sign} {wanted}", None
        if self.goal is Goal.RATE:
            message = f"{self.wanted:g} requests a second arrive, at most {self.predicted.value:.3g} are served: the queue grows"
            remedy = f"{_HELD * self.predicted.value:.3g} a second are held, or more cards"
        return Reason(self.goal.reason_code, message, remedy, figures, ReasonKind.GOAL_MISSED)


def folds_missed(goals: Iterable[GoalResult]) -> float:
    """Return by how many e-folds goals are missed in all."""
    return sum(goal.folds for goal in goals)


@dataclass(frozen=True)
class Verdict:
    """What is predicted of a candidate, and every reason against it (empty: it meets all goals)."""

    candidate: Candidate
    ir: ModelIR
    memory: MemoryEstimate
    capacity: Capacity
    speed: SpeedEstimate | None
    """By the formula, which ranks."""
    quality: Quality
    goals: tuple[GoalResult, ...] = ()
    reasons: tuple[Reason, ...] = ()
    notes: tuple[str, ...] = field(default=(), compare=False)
    served: SpeedEstimate | None = None
    """What users see, where the load was simulated: by it the goals on speed are judged then."""

    @property
    def shown(self) -> SpeedEstimate | None:
        """The best that is known of its speed."""
        return self.served or self.speed

    @property
    def feasible(self) -> bool:
        """Legal, fits, and meets every goal, or misses it by less than the band."""
        return not self.reasons

    @cached_property
    def odds(self) -> tuple[float, ...]:
        """The probability of each goal, and of fitting as the last."""
        return (*(goal.odds for goal in self.goals), self.capacity.odds)

    def admissible(self, goals: Goals) -> bool:
        """Return whether it meets the goals, and all odds reach the confidence that is asked."""
        *met, fits = self.odds
        likely = self.feasible and self.likely
        return likely and fits >= goals.fit_confidence and all(each >= goals.confidence for each in met)

    @cached_property
    def likely(self) -> bool:
        """Whether every goal is met by the predicted value."""
        return all(goal.met for goal in self.goals)

    @cached_property
    def distance(self) -> tuple[int, float]:
        """How far from feasible: reasons that neither a figure measures nor a setting mends first, then by how many e-folds memory and
        goals are missed.
        """
        memory = self.memory.memory
        needed = memory.budget.value - min(0.0, self.capacity.room.value)
        short = math.log(needed / memory.budget.value) if memory.budget.value > 0 else math.inf
        return refusals(self.reasons), short + folds_missed(self.goals)


def undominated(verdict: Verdict) -> Verdict:
    """Return a verdict without what only says that another one is better."""
    reasons = tuple(reason for reason in verdict.reasons if reason.kind is not ReasonKind.DOMINATED)
    return verdict if reasons == verdict.reasons else replace(verdict, reasons=reasons)


def refusals(reasons: Iterable[Reason]) -> int:
    """Return the number of reasons that neither a figure measures nor a setting mends."""
    return sum(reason.kind is ReasonKind.ILLEGAL and not reason.options for reason in reasons)


def judge(goals: Goals, workload: Workload, speed: SpeedEstimate, quality: Quality) -> Iterator[GoalResult]:
    """Yield the goals of a spec against the estimates."""
    yield from judge_speed(goals, workload, speed)
    yield from judge_quality(goals, quality)


def judge_rate(workload: Workload, speed: SpeedEstimate) -> Iterator[GoalResult]:
    """Yield, of requests that arrive at a rate without end, that they are answered as fast as they come."""
    if workload.lasts and workload.rate is not None and speed.capacity_req_s is not None:
        yield GoalResult(Goal.RATE, workload.rate, speed.capacity_req_s)


def judge_speed(goals: Goals, workload: Workload, speed: SpeedEstimate) -> Iterator[GoalResult]:
    """Yield the goals on speed, a rate that is to be held first; where it is not, the time to the first token grows without end."""
    rate = tuple(judge_rate(workload, speed))
    yield from rate
    grows = not all(result.tolerated(goals.bands) for result in rate)
    for name, statistic, seconds in goals.times:
        predicted = speed.latency(name, statistic)
        if grows and name == "ttft":
            predicted = replace(predicted, value=math.inf, high=math.inf)
        yield GoalResult(_TIMES[name], seconds * 1000, predicted, statistic)
    if goals.decode is not None:
        yield GoalResult(Goal.DECODE, goals.decode, speed.decode_tok_s_per_request)
    if goals.throughput is not None:
        yield GoalResult(Goal.THROUGHPUT, goals.throughput, speed.throughput_tok_s)


def missed(goals: Iterable[GoalResult], bands: Bands) -> tuple[Reason, ...]:
    """Return the reasons of goals that are missed by more than the band; of what grows without end the rate's is one."""
    return tuple(goal.reason() for goal in goals if not goal.tolerated(bands) and not goal.endless)


def judge_quality(goals: Goals, quality: Quality) -> Iterator[GoalResult]:
    """Yield the goals on quality."""
    if goals.quality.max_perplexity_increase is not None:
        grown = perplexity_growth(quality.log_ppl_increase)
        yield GoalResult(Goal.PERPLEXITY, goals.quality.max_perplexity_increase, grown)
    if goals.quality.max_kl is not None:
        yield GoalResult(Goal.KL, goals.quality.max_kl, quality.kl)
