"""Every candidate as a point: quality against speed, quality against memory, each with its reasons."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from passes.record import dataclass
from planner.figures import show
from planner.plan.document import PlanDocument
from planner.quality.expected import growth
from planner.report.facts import Facts
from planner.report.scale import Axis, linear, logarithmic
from targets.engines.engine import SpeedEstimate

#: Of the candidates that lost, the nearest that are marked.
_NEAREST = 3
#: Loss of perplexity that is told apart on the axis; what is better lies at its lower end, what is worse at its upper.
_WITHIN = (2e-4, 10.0)
#: Where charts are drawn: left, right, bottom, top.
_LEFT, _RIGHT, _BOTTOM, _TOP = 62.0, 630.0, 270.0, 12.0
#: What a candidate's part in the decision is called, those first that are drawn last.
_STANDINGS = ("chosen", "near", "frontier", "lost")


@dataclass(frozen=True, slots=True)
class Row:
    """A candidate. `standing`: `chosen`, `near` (one of the three nearest), `frontier` (meets the goals, none beats it) or `lost`."""

    name: str
    engine: str
    standing: str
    loss: float
    bytes: float
    rate: float | None
    reasons: tuple[str, ...]

    @property
    def figures(self) -> tuple[str, str, str]:
        """Return loss of perplexity, speed of a client and memory, in words."""
        rate = "not known" if self.rate is None else show(self.rate, "tok/s")
        return show(self.loss, "%"), rate, show(self.bytes, "B")

    @property
    def said(self) -> str:
        """Return the candidate in one line, for a tip and a screen reader."""
        loss, rate, memory = self.figures
        return f"{_WORDS[self.standing]}: {self.name}. Perplexity {loss}, a client {rate}, memory {memory}"


_WORDS = {"chosen": "Chosen", "near": "Near", "frontier": "Meets the goals", "lost": "Lost"}


@dataclass(frozen=True, slots=True)
class Point:
    """A candidate, by its number in the table, at its place."""

    row: int
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Scatter:
    """Quality against one figure. `limit`: where the card's budget ends, with what is written there."""

    name: str
    title: str
    x: Axis
    y: Axis
    points: tuple[Point, ...]
    limit: tuple[float, str] | None = None


@dataclass(frozen=True, slots=True)
class Choices:
    """The table of candidates and the charts of it."""

    rows: tuple[Row, ...]
    charts: tuple[Scatter, ...]
    engines: tuple[str, ...]


def choices(facts: Facts) -> Choices:
    """Lay out the candidates, the chosen one first."""
    rows = sorted(_rows(facts), key=lambda row: (_STANDINGS.index(row.standing), row.loss))
    return Choices(tuple(rows), tuple(_charts(rows, facts.plan)), tuple(sorted({row.engine for row in rows})))


def _rows(facts: Facts) -> Iterator[Row]:
    plan, chosen = facts.plan, facts.plan.chosen
    near = [rejected.candidate for rejected in plan.rejected if rejected.memory is not None][:_NEAREST]
    frontier = {each.candidate for each in plan.pareto}
    own = None if chosen is None else chosen.label

    def row(name: str, loss: float, held: float, speed: SpeedEstimate | None, reasons: Sequence[str]) -> Row:
        standing = "chosen" if name == own else "near" if name in near else "frontier" if name in frontier else "lost"
        rate = None if speed is None else speed.decode_tok_s_per_request.value
        return Row(name, name.split(":")[0], standing, growth(loss), held, rate, tuple(reasons))

    seen: set[str] = set()
    if chosen is not None:
        seen.add(chosen.label)
        loss, held = chosen.quality.log_ppl_increase.value, chosen.memory.total.value
        yield row(chosen.label, loss, held, chosen.speed, (chosen.why,) if chosen.why else ())
    for lost in plan.rejected:
        if lost.memory is not None and lost.quality is not None:
            seen.add(lost.candidate)
            loss, held = lost.quality.log_ppl_increase.value, lost.memory.total.value
            yield row(lost.candidate, loss, held, lost.speed, [reason.message for reason in lost.reasons])
    for verdict in facts.verdicts:
        if verdict.candidate.label not in seen:
            seen.add(verdict.candidate.label)
            loss, held = verdict.quality.log_ppl_increase.value, verdict.memory.memory.total.value
            reasons = [reason.message for reason in verdict.reasons]
            yield row(verdict.candidate.label, loss, held, verdict.shown, reasons)
    for each in plan.pareto:
        if each.candidate not in seen:
            loss, held = each.quality.log_ppl_increase.value, each.memory.total.value
            yield row(each.candidate, loss, held, each.speed, (f"meets the goals too: {each.making}",))


def _charts(rows: Sequence[Row], plan: PlanDocument) -> Iterator[Scatter]:
    """The chosen one is drawn last, so that none covers it."""
    finite = [(number, row) for number, row in enumerate(rows) if math.isfinite(row.loss) and math.isfinite(row.bytes)]
    y = logarithmic("perplexity", "%", [row.loss for _, row in finite], (_BOTTOM, _TOP), _WITHIN)
    fast = [(number, row, row.rate) for number, row in finite if row.rate is not None and math.isfinite(row.rate)]
    if fast:
        x = linear("one client", "tok/s", [rate for *_, rate in fast], (_LEFT, _RIGHT))
        points = tuple(Point(number, x.at(rate), y.at(row.loss)) for number, row, rate in reversed(fast))
        yield Scatter("speed", "Loss of quality against speed", x, y, points)
    if finite:
        budget = None if plan.chosen is None else plan.chosen.memory.budget.value
        x = linear(
            "memory of the tightest card", "B", [*(row.bytes for _, row in finite), budget or 0.0], (_LEFT, _RIGHT)
        )
        points = tuple(Point(number, x.at(row.bytes), y.at(row.loss)) for number, row in reversed(finite))
        limit = None if budget is None else (x.at(budget), f"the budget of {show(budget, 'B')}")
        yield Scatter("memory", "Loss of quality against memory", x, y, points, limit)
