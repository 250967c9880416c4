"""A candidate and what became of it: the estimates, the goals met or missed, and the typed reasons why it is out."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from passes.base import Pass
from passes.errors import Reason, ReasonKind
from passes.ir.model import ModelIR
from planner.choice.goals import Goal
from planner.quality.expected import Quality, perplexity_growth
from planner.spec.spec import Goals
from targets.engines.engine import MemoryEstimate, Settings, SpeedEstimate
from targets.quantity import Quantity


@dataclass(frozen=True, slots=True)
class Candidate:
    """An engine with settings, and a chain of passes that makes what it serves."""

    engine: str
    passes: tuple[Pass, ...]
    settings: Settings
    changed: tuple[str, ...] = ()
    """Fields of the settings that the search changed from what the spec or the engine's defaults say."""

    @property
    def label(self) -> str:
        """`vllm: gptq w4a16-g64 → KV fp8 on 2 cards, max_num_seqs 8`."""
        chain = " → ".join(p.text() for p in self.passes) or "as it is"
        parallel = self.settings.parallel
        cards = f" on {parallel.gpus} cards" if parallel.gpus > 1 else ""
        stages = f" in {parallel.pp} stages" if parallel.pp > 1 else ""
        changes = "".join(f", {name} {getattr(self.settings, name)}" for name in self.changed)
        return f"{self.engine}: {chain}{cards}{stages}{changes}"


@dataclass(frozen=True, slots=True)
class GoalResult:
    """One goal: what was asked and what is predicted, both in the goal's unit, and whether it is met."""

    goal: Goal
    wanted: float
    predicted: Quantity

    @property
    def met(self) -> bool:
        """Whether the predicted value meets the goal."""
        return self.predicted.value <= self.wanted if self.goal.at_most else self.predicted.value >= self.wanted

    @property
    def miss(self) -> float:
        """By which share of the goal it is missed; 0 when met."""
        if self.met:
            return 0.0
        return abs(self.predicted.value - self.wanted) / max(abs(self.wanted), 1e-12)

    def reason(self) -> Reason:
        """The reason of a missed goal."""
        sign = ">" if self.goal.at_most else "<"
        predicted, wanted = apart(self.predicted.value, self.wanted, self.goal.unit)
        figures = {"wanted": self.wanted, "predicted": self.predicted.value}
        return Reason(
            self.goal.reason_code, f"{self.goal} {predicted} {sign} {wanted}", None, figures, ReasonKind.GOAL_MISSED
        )


def show(value: float, unit: str, more: int = 0) -> str:
    """A figure as people read it, with so many `more` digits. `%`: the share by which something grows, with its sign."""
    if unit == "%":
        percent = 100 * value
        places = 2 if abs(percent) < 9.995 else 1 if abs(percent) < 99.95 else 0
        return f"{percent:+,.{places + more}f} %"
    if unit == "ms":
        return f"{value / 1000:.{2 + more}f} s" if value >= 1000 else f"{value:.{more}f} ms"
    if unit == "GiB":
        return f"{value:,.{2 + more}f} GiB"
    return f"{value:,.{3 + more}g} {unit}".strip()


def show_interval(quantity: Quantity, unit: str, shown: str | None = None) -> str:
    """A figure with its interval; `shown`: the figure as it stands elsewhere in the same line."""
    ends = f"({show(quantity.low, unit)} … {show(quantity.high, unit)})"
    return f"{shown or show(quantity.value, unit)} {ends}"


#: Digits beyond the usual ones, at most, that tell two figures apart; those that are closer are equal to people.
_MORE_DIGITS = 9


def apart(one: float, other: float, unit: str) -> tuple[str, str]:
    """Two figures as people read them, with as many digits as tell them apart."""
    shown = show(one, unit), show(other, unit)
    for more in range(1, _MORE_DIGITS + 1):
        if one == other or shown[0] != shown[1]:
            break
        shown = show(one, unit, more), show(other, unit, more)
    return shown


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is predicted of a candidate, and every reason against it (empty: it meets all goals)."""

    candidate: Candidate
    ir: ModelIR
    memory: MemoryEstimate
    speed: SpeedEstimate | None
    quality: Quality
    goals: tuple[GoalResult, ...] = ()
    reasons: tuple[Reason, ...] = ()
    notes: tuple[str, ...] = field(default=(), compare=False)

    @property
    def feasible(self) -> bool:
        """Legal, fits, and meets every goal."""
        return not self.reasons

    @property
    def distance(self) -> tuple[int, float]:
        """How far from feasible: reasons that no figure measures first, then by how many e-folds memory and goals are missed."""
        memory = self.memory.memory
        needed = memory.budget.value - min(0.0, self.memory.margin.value)
        short = math.log(needed / memory.budget.value) if memory.budget.value > 0 else math.inf
        hard = sum(reason.kind is ReasonKind.ILLEGAL for reason in self.reasons)
        return hard, short + sum(math.log1p(goal.miss) for goal in self.goals)


def judge(goals: Goals, speed: SpeedEstimate, quality: Quality) -> Iterator[GoalResult]:
    """The goals of a spec against the estimates."""
    yield from judge_speed(goals, speed)
    yield from judge_quality(goals, quality)


def judge_speed(goals: Goals, speed: SpeedEstimate) -> Iterator[GoalResult]:
    """The goals on speed."""
    if goals.ttft is not None:
        yield GoalResult(Goal.TTFT, goals.ttft * 1000, speed.ttft_ms)
    if goals.tpot is not None:
        yield GoalResult(Goal.TPOT, goals.tpot * 1000, speed.tpot_ms)
    if goals.decode is not None:
        yield GoalResult(Goal.DECODE, goals.decode, speed.decode_tok_s_per_request)
    if goals.throughput is not None:
        yield GoalResult(Goal.THROUGHPUT, goals.throughput, speed.throughput_tok_s)


def judge_quality(goals: Goals, quality: Quality) -> Iterator[GoalResult]:
    """The goals on quality."""
    if goals.quality.max_perplexity_increase is not None:
        grown = perplexity_growth(quality.log_ppl_increase)
        yield GoalResult(Goal.PERPLEXITY, goals.quality.max_perplexity_increase, grown)
    if goals.quality.max_kl is not None:
        yield GoalResult(Goal.KL, goals.quality.max_kl, quality.kl)
