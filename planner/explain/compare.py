"""Two candidates side by side: their figures with intervals, whether each meets the goals, and what decides between them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

from passes.errors import Reason, ReasonKind
from passes.ir.model import ModelIR
from passes.record import dataclass
from planner.apply_cost import effort
from planner.choice.demand import workload_of
from planner.choice.judging.candidate import complete
from planner.choice.judging.simulated import served
from planner.choice.rule.criteria import making
from planner.choice.rule.words import MAKING
from planner.choice.search import SearchResult, rule_of
from planner.choice.verdict import GoalResult, Verdict
from planner.figures import ALIKE, apart
from planner.plan.parts.chosen import PlannedGoal, planned_goal
from planner.plan.remedies import followable
from planner.plan.stated import StatedReason, unmended
from planner.quality.expected import perplexity_growth
from planner.spec.spec import Spec
from targets.engines.engine import find_engine
from targets.quantity import Quantity


@dataclass(frozen=True, slots=True)
class Judged:
    """A candidate under a spec: a search's verdict, judged in full, with the spec and the model it was judged for."""

    spec: Spec
    source: ModelIR
    result: SearchResult
    verdict: Verdict

    @classmethod
    def of(cls, spec: Spec, source: ModelIR, result: SearchResult, verdict: Verdict) -> Judged:
        """Judge a verdict of a search whole."""
        return cls(spec, source, result, complete(spec, result.gpu, verdict))

    @property
    def as_served(self) -> Judged:
        """The same with its load simulated, as the chosen one's is."""
        simulated = served(self.spec, self.result.gpu, self.verdict)
        return replace(self, verdict=simulated)

    @property
    def label(self) -> str:
        """The candidate's."""
        return self.verdict.candidate.label

    @property
    def missed(self) -> tuple[StatedReason, ...]:
        """Everything that keeps it from meeting the goals."""
        return tuple(map(unmended, self.against))

    @property
    def against(self) -> tuple[Reason, ...]:
        """Its reasons; what only says that another one is better is none of them."""
        return tuple(r for r in self.verdict.reasons if r.kind is not ReasonKind.DOMINATED)

    @property
    def decodes(self) -> bool:
        """Whether requests end with more than one token."""
        return workload_of(self.spec).decodes

    @property
    def rate_unit(self) -> str:
        """In what all clients together are counted: tokens a second, requests where each ends with its prompt."""
        return "tok/s" if self.decodes else "requests/s"

    @property
    def least(self) -> tuple[str, float]:
        """The bound whose odds fall most short of those asked, and how likely it is kept: a goal, or the fit."""
        return self._least(self.verdict.goals)

    @property
    def least_of_load(self) -> tuple[str, float]:
        """The same of what a load moves: quality is none of it."""
        return self._least([goal for goal in self.verdict.goals if goal.goal.of_speed])

    def _least(self, results: Iterable[GoalResult]) -> tuple[str, float]:
        goals = self.spec.goals
        odds = [(goal.name, goal.odds, goal.odds - goals.confidence) for goal in results]
        fit = self.verdict.capacity.odds
        name, least, _ = min((("fit", fit, fit - goals.fit_confidence), *odds), key=lambda bound: bound[2])
        return name, least

    @property
    def hours(self) -> Quantity:
        """Hours of work on the target card; none where nothing is to be made."""
        v = self.verdict
        if making(v) == 0:
            return Quantity.exact(0.0)
        return effort(self.spec, self.source, v.ir, v.candidate.passes, self.result.gpu).seconds.scaled(1 / 3600)


@dataclass(frozen=True, slots=True)
class Side:
    """One of two plans that are compared. `role`: `chosen` (`nearest` where nothing meets the goals) and `other`, or `now` and `then`.
    `weights`, `kv_cache_dtype`: as `check` takes them. `missed`: why it does not meet the goals.
    """

    role: str
    candidate: str
    on: str
    weights: str
    kv_cache_dtype: str
    making: str
    meets: bool
    fit_odds: float
    confidence: float
    fit_confidence: float
    goals: tuple[PlannedGoal, ...]
    missed: tuple[StatedReason, ...]


@dataclass(frozen=True, slots=True)
class Difference:
    """A figure of both, in `unit` (`%`: a share by which something grows; `B`: bytes). `change`: from the first to the second, in words."""

    what: str
    unit: str
    chosen: Quantity
    other: Quantity
    change: str


def side(judged: Judged, role: str) -> Side:
    """Say what is to say of one plan by itself."""
    v, gpu = judged.verdict, judged.result.gpu
    cards = v.candidate.settings.parallel.gpus
    return Side(
        role, judged.label, f"{cards} × {gpu.name}" if cards > 1 else gpu.name,
        v.candidate.published.weights if v.candidate.published else v.candidate.weights, v.ir.kv_cache.dtype, MAKING[making(v)],
        not judged.missed and v.likely, round(v.capacity.odds, 4), judged.spec.goals.confidence,
        judged.spec.goals.fit_confidence, tuple(planned_goal(result, judged.spec.goals.bands) for result in v.goals),
        tuple(followable(judged.spec, judged.source, replace(v, reasons=judged.against))),
    )  # fmt: skip


def differences(chosen: Judged, other: Judged) -> tuple[Difference, ...]:
    """Compare the figures of two plans that people look at: memory, speed of one client and of all, quality, work."""
    simulated = chosen.verdict.served is not None and other.verdict.served is not None
    mine, theirs = dict(_figures(chosen, simulated)), dict(_figures(other, simulated))
    return tuple(
        Difference(what, unit, mine[what, unit], theirs[what, unit], _change(mine[what, unit], theirs[what, unit], unit))
        for what, unit in mine if (what, unit) in theirs
    )  # fmt: skip


def _figures(judged: Judged, simulated: bool) -> Iterator[tuple[tuple[str, str], Quantity]]:
    """The figures of one plan; of its speed as simulated where both are, else by the formula."""
    v, speed = judged.verdict, judged.verdict.shown if simulated else judged.verdict.speed
    yield ("weights", "B"), v.memory.memory.weights
    yield ("memory", "B"), v.memory.memory.total
    if speed is not None:
        if judged.decodes:
            yield ("one client", "tok/s"), speed.decode_tok_s_per_request
        yield ("all clients", judged.rate_unit), speed.throughput_tok_s
        yield ("TTFT", "ms"), speed.ttft_ms
    yield ("perplexity", "%"), perplexity_growth(v.quality.log_ppl_increase)
    yield ("work", "h"), judged.hours


def _change(old: Quantity, new: Quantity, unit: str) -> str:
    """How the second stands to the first: in points for shares, else as a ratio, and whether the intervals overlap."""
    if old.value == new.value:
        return "the same"
    unsure = " (intervals overlap)" if old.low <= new.high and new.low <= old.high else ""
    if unit == "%":
        return f"{100 * (new.value - old.value):+.3g} points{unsure}"
    if old.value <= 0 or new.value <= 0:
        first, second = apart(old.value, new.value, unit)
        return f"from {first} to {second}"
    ratio = new.value / old.value
    if abs(ratio - 1) < ALIKE:
        return f"nearly the same{unsure}"
    digits = next((n for n in range(2, 9) if round(ratio, n) not in (0, 1)), 9)
    return f"× {ratio:.{digits}f}{unsure}"


def decides(chosen: Judged, other: Judged) -> str:
    """Say what speaks for the first of two plans of one spec: what the other misses, else where the decision rule tells them apart."""
    if other.missed:
        return "; ".join(reason.message for reason in other.missed)
    goals = other.spec.goals
    name, odds = other.least
    asked = goals.fit_confidence if name == "fit" else goals.confidence
    short = "; {} is kept with {} only, {} are asked".format(name, *apart(odds, asked, "odds")) if odds < asked else ""
    told = next((r.message for r in other.verdict.reasons if r.kind is ReasonKind.DOMINATED), None)
    return (told or _by_rule(chosen, other)) + short


def _by_rule(chosen: Judged, other: Judged) -> str:
    """What the rule tells two candidates apart by; where an engine is weighed only when named, that is why it is out."""
    engine = find_engine(other.verdict.candidate.engine)
    if chosen.spec.engine == "auto" and engine.unmeasured is not None:
        return f"meets the goals too, but {engine.unmeasured}: weighed where a spec names it"
    decision = rule_of(chosen.spec, chosen.source, chosen.result.gpu).decide([chosen.verdict, other.verdict])
    lost = () if decision is None else decision.lost
    return next((loss.told for loss in lost if loss.candidate is other.verdict), "meets the goals too")
