"""The decision rule: which of the candidates that meet the goals is chosen, and what decided (docs/choosing.md).

Candidates go through a list of criteria, most important first. Each criterion gives a figure, the less the better, and a width: what
is worse than the best by no more than that is a tie and goes on to the next. So a gain inside what we are unsure of, or inside a stated
band, buys neither work nor risk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from passes import chain
from passes.base import Stage
from passes.ir.model import ModelIR
from planner.choice.goals import FLOOR
from planner.choice.verdict import Verdict, apart, judge_quality, show
from planner.quality.expected import Quality, growth
from planner.spec.spec import Goals
from targets.engines.engine import find_engine
from targets.gpu import Gpu
from targets.quantity import Basis, Quantity
from targets.speed.card import card_of

#: Clients of one person: an engine that nobody maintains, but that is made for one user, may serve so many.
FEW_CLIENTS = 2
#: Odds of the goals that are this close are ties, where none reach the confidence.
_ODDS_BAND = 0.05
#: Hours of work that are this close, as a share, are ties: forecasts are off by more. Minutes are nothing.
_HOURS_BAND, _LEAST_HOURS = 0.25, 0.1


@dataclass(frozen=True, slots=True)
class Criterion:
    """A figure of a candidate, less is better; `width`: by how much the best may be better and still tie. `says`: what a candidate that
    lost by it is told, given the figures of the loser and of the chosen one; None where its figure has no words.
    """

    name: str
    figure: Callable[[Verdict], float]
    says: Callable[[float, float], str]
    width: Callable[[Verdict], float] = lambda best: 0.0


@dataclass(frozen=True, slots=True)
class Loss:
    """What a candidate lost by: the criterion's name, its figure of the candidate and of the chosen one, and both in words."""

    candidate: Verdict
    criterion: str
    value: float
    against: float
    message: str


@dataclass(frozen=True, slots=True)
class Decision:
    """The chosen candidate, why it won in one line, and of each loser what it lost by, in the order they were given."""

    chosen: Verdict
    why: str
    lost: tuple[Loss, ...]


@dataclass(frozen=True)
class Rule:
    """The rule of a spec: its goals, the card, whether the engine was asked for by name, and what making a candidate takes (hours)."""

    goals: Goals
    gpu: Gpu
    engine_named: bool
    hours: Callable[[Verdict], float] = lambda verdict: 0.0

    def decide(self, candidates: Sequence[Verdict]) -> Decision | None:
        """Choose among candidates that meet the goals by their predicted values; None where there are none."""
        left = list(candidates)
        if not left:
            return None
        fallen: list[tuple[Criterion, list[Verdict]]] = []
        for criterion in self.criteria:
            if len(left) == 1:
                break
            figures = {id(v): criterion.figure(v) for v in left}
            best = min(left, key=lambda v: figures[id(v)])
            limit = figures[id(best)] + criterion.width(best)
            out = [v for v in left if figures[id(v)] > limit]
            if out:
                fallen.append((criterion, out))
                left = [v for v in left if figures[id(v)] <= limit]
        chosen = self._undominated(left[0], candidates)
        decided = {id(v): criterion for criterion, out in fallen for v in out}
        lost = tuple(_loss(v, decided.get(id(v)), chosen) for v in candidates if v is not chosen)
        return Decision(chosen, self._why(chosen, [criterion for criterion, _ in fallen]), lost)

    def _undominated(self, chosen: Verdict, candidates: Sequence[Verdict]) -> Verdict:
        """The chosen one, or what is better than it in a figure and worse in none."""
        standing = self.standing(chosen)
        front = self.pareto([v for v in candidates if self.standing(v) <= standing], chosen)
        return next((v for v in front if self._dominates(v, chosen)), chosen)

    def pareto(self, candidates: Iterable[Verdict], chosen: Verdict | None = None) -> tuple[Verdict, ...]:
        """Candidates that no other one beats or equals in all of quality, speed, memory, work, cards, waiting, changes of settings and
        odds; of equal ones the chosen, else the first by name.
        """
        front: list[Verdict] = []
        for verdict in sorted(candidates, key=lambda v: (self._figures(v), v is not chosen, v.candidate.label)):
            mine = self._figures(verdict)
            if not any(all(a <= b for a, b in zip(self._figures(other), mine, strict=True)) for other in front):
                front.append(verdict)
        return tuple(front)

    def _dominates(self, one: Verdict, other: Verdict) -> bool:
        mine, theirs = self._figures(one), self._figures(other)
        return mine != theirs and all(a <= b for a, b in zip(mine, theirs, strict=True))

    def _figures(self, v: Verdict) -> tuple[float, ...]:
        """What the Pareto set is over, less is better."""
        return (
            v.quality.log_ppl_increase.value, -_speed(v, False).value, -_speed(v, True).value, v.memory.memory.total.value,
            float(making(v)), float(v.candidate.settings.parallel.gpus),
            float(v.capacity.waiting * v.candidate.settings.parallel.dp), float(len(v.candidate.changed)), self._doubt(v),
            self._preferred().figure(v),
        )  # fmt: skip

    @property
    def _batch(self) -> bool:
        """Whether all clients' tokens count and not one client's: what does not fit may wait."""
        return self.goals.prefer in ("throughput", "cost")

    def _doubt(self, v: Verdict) -> float:
        """How likely the least likely goal is missed; nothing of what is admissible."""
        return 0.0 if v.admissible(self.goals) else 1.0 - min(v.odds)

    def standing(self, v: Verdict) -> int:
        """0 admissible, 2 likely only, 4 misses a goal on quality within the band. An engine that nobody maintains, unless it was asked
        for, comes behind each of them for few clients, which is what it is good at, and behind all of them (6, 8, 10) for more.
        """
        standing = 0 if v.admissible(self.goals) else 2 if v.likely else 4
        if self._loses_unasked(v.quality):
            standing = 4
        return standing + self._behind(v.candidate.engine, v.capacity.clients)

    def at_best(self, quality: Quality, engine: str, clients: int) -> float:
        """Where a candidate of this quality stands at best, whatever its memory and speed; infinite where it misses a goal on quality."""
        results = list(judge_quality(self.goals, quality))
        if not all(result.tolerated(self.goals.bands) for result in results):
            return math.inf
        standing = 0 if all(result.odds >= self.goals.confidence for result in results) else 2
        if self._loses_unasked(quality) or not all(result.met for result in results):
            standing = 4
        return standing + self._behind(engine, clients)

    def _loses_unasked(self, quality: Quality) -> bool:
        """Whether it loses more than anybody would accept who asks for no quality."""
        return not self.goals.asks_quality and growth(quality.log_ppl_increase.value) > FLOOR

    def _behind(self, engine: str, clients: int) -> int:
        """By how much an engine stands behind: one that nobody maintains, unless it was asked for."""
        return 0 if self.engine_named or find_engine(engine).archived is None else _behind(clients)

    def settles(self, v: Verdict) -> bool:
        """Whether every candidate of an engine that nobody maintains comes behind this one of a maintained engine."""
        return v.feasible and self.standing(v) < _behind(v.capacity.clients)

    def clear(self, v: Verdict) -> bool:
        """Whether of those that stand as it does none is before it but for the figure that is preferred."""
        return self._doubt(v) == 0 and (self._batch or not v.capacity.waiting)

    def figure_of_chain(self, ir: ModelIR, quality: Quality) -> float:
        """The preferred figure, where a chain alone tells it; before every other where engine and settings do."""
        match self.goals.prefer:
            case "quality":
                return growth(quality.log_ppl_increase.value)
            case "size":
                return math.log(ir.tensor_bytes)
            case _:
                return -math.inf

    def width(self, v: Verdict) -> float:
        """By how much one that is worse in the preferred figure still ties with this one."""
        return self._preferred().width(v)

    @property
    def criteria(self) -> tuple[Criterion, ...]:
        """The criteria, most important first."""
        bands, memory = self.goals.bands, self.gpu.memory_bytes.value
        return (
            Criterion("standing", self.standing, _standing_words),
            Criterion(
                "waiting", lambda v: not self._batch and v.capacity.waiting > 0, _words("clients wait for each other")
            ),
            Criterion("odds", self._doubt, _odds_words, lambda best: _ODDS_BAND),
            self._preferred(),
            Criterion("making", making, lambda theirs, mine: f"{MAKING[int(theirs)]}; the chosen one is {MAKING[int(mine)]}"),
            Criterion("changes of the model", lambda v: len(v.candidate.passes), _words("changes more than is needed")),
            Criterion("regime", _unmeasured, _words("its engine's speed was not measured on such cards and loads")),
            Criterion("stages", lambda v: v.candidate.settings.parallel.pp, lambda a, b: f"in {a:.0f} stages against {b:.0f}"),
            Criterion("cards", lambda v: -v.candidate.settings.parallel.gpus, lambda a, b: f"uses {-a:.0f} cards against {-b:.0f}"),
            Criterion(
                "tensor parallel",
                lambda v: v.candidate.settings.parallel.tp,
                lambda a, b: f"cuts each matrix over {a:.0f} cards against {b:.0f}",
            ),
            Criterion("native", partial(_emulated, gpu=self.gpu), _words("the card does not multiply its format itself")),
            Criterion("settings", lambda v: len(v.candidate.changed), _words("changes more of the engine's settings")),
            Criterion(
                "margin", lambda v: -v.capacity.room.low,
                lambda theirs, mine: "leaves {} of room against {}".format(*apart(-theirs / 2**30, -mine / 2**30, "GiB")),
                lambda best: bands.memory * memory,
            ),
            Criterion(
                "work", lambda v: math.log(_LEAST_HOURS + self.hours(v)),
                lambda theirs, mine: f"takes {math.exp(theirs) - _LEAST_HOURS:.1f} h to make against {math.exp(mine) - _LEAST_HOURS:.1f}",
                lambda best: _HOURS_BAND,
            ),
            Criterion("quality", lambda v: growth(round(v.quality.log_ppl_increase.value, 9)), _grown_words),
            Criterion("speed", lambda v: -_speed(v, self._batch).value, _rate_words),
            Criterion("size", lambda v: v.ir.tensor_bytes, _size_words),
        )  # fmt: skip

    def _preferred(self) -> Criterion:
        """The figure that the spec prefers. Differences count beyond a band, and beyond what the better figure itself is unsure of where
        it is assumed: candidates of one engine share the errors of a fit.
        """
        bands, prefer = self.goals.bands, self.goals.prefer
        if prefer == "quality":
            return Criterion(
                "quality", lambda v: growth(v.quality.log_ppl_increase.value), _grown_words,
                lambda best: max(bands.quality, _own(best.quality.log_ppl_increase)),
            )  # fmt: skip
        if prefer == "size":
            return Criterion("size", lambda v: math.log(v.ir.tensor_bytes), _log_size_words, lambda best: bands.memory)
        if prefer == "context":
            return Criterion(
                "context", lambda v: -math.log(max(v.memory.kv.max_context, 1)),
                lambda theirs, mine: f"context {math.exp(-theirs):,.0f} against {math.exp(-mine):,.0f}",
                lambda best: bands.speed,
            )  # fmt: skip
        cards = prefer == "cost"
        return Criterion(
            prefer,
            lambda v: (
                -math.log(max(_speed(v, self._batch).value, 1e-9))
                + (math.log(v.candidate.settings.parallel.gpus) if cards else 0.0)
            ),
            _cost_words if cards else _log_rate_words,
            lambda best: bands.speed,
        )

    def _why(self, chosen: Verdict, decided: Sequence[Criterion]) -> str:
        """One line: what the chosen one is, and what the last criteria that told it from others were."""
        preferred = self._preferred().name
        parts = [MAKING[making(chosen)]]
        names = [criterion.name for criterion in decided]
        if preferred in names:
            parts.append(f"no other that meets the goals is better in {preferred} by more than the band")
        told = [_TOLD[name] for name in names if name in _TOLD]
        return "; ".join((*parts, *told[:2]))


def _loss(verdict: Verdict, criterion: Criterion | None, chosen: Verdict) -> Loss:
    """What one lost by; nothing that counts where no criterion told it from the chosen one, or the chosen one is no better in it."""
    if criterion is not None:
        theirs, mine = criterion.figure(verdict), criterion.figure(chosen)
        if theirs > mine:
            return Loss(verdict, criterion.name, theirs, mine, criterion.says(theirs, mine))
    return Loss(verdict, "tie", 0.0, 0.0, "is as good in every figure that counts")


#: What is to be made of a candidate, by how much work and risk that is.
MAKING = (
    "nothing to make", "rounding, no calibration text", "calibrated on text", "pruned or distilled"
)  # fmt: skip
_TOLD = {
    "regime": "its engine was measured in this regime",
    "cards": "on all cards",
    "native": "the card multiplies its format itself",
    "margin": "with the most room left",
    "work": "with the least work",
}


def making(verdict: Verdict) -> int:
    """How much is to be made: an index of `MAKING`."""
    passes = verdict.candidate.passes
    if any(pass_.stage in (Stage.PRUNE, Stage.DISTILL) for pass_ in passes):
        return 3
    made = any(not pass_.load_time for pass_ in passes)
    if made and chain.needs_text(passes, verdict.ir):
        return 2
    return int(not chain.nothing_to_make(passes))


def _behind(clients: int) -> int:
    """By how much an engine that nobody maintains stands behind (`Rule.standing`)."""
    return 1 if clients <= FEW_CLIENTS else 6


def _speed(verdict: Verdict, batch: bool) -> Quantity:
    if verdict.speed is None:
        return Quantity.exact(0.0)
    return verdict.speed.throughput_tok_s if batch else verdict.speed.decode_tok_s_per_request


def _unmeasured(verdict: Verdict) -> int:
    return int(verdict.speed is None or verdict.speed.tpot_ms.basis is Basis.ASSUMED)


def _emulated(verdict: Verdict, gpu: Gpu) -> int:
    """Whether weights are unpacked before the card multiplies them."""
    engine = find_engine(verdict.candidate.engine)
    card = card_of(engine, gpu)
    forms = {
        linear.storage
        for block, _ in verdict.ir.decoder.counts
        for linear in block.linears
        if linear.storage.is_quantized
    }
    return int(
        any(card.kernel(form).arithmetic not in card.flops or card.kernel(form).arithmetic == "bf16" for form in forms)
    )


def _own(quantity: Quantity) -> float:
    """What a figure is unsure of by itself where it is assumed; fitted figures of one model share their errors."""
    return quantity.high - quantity.value if quantity.basis is Basis.ASSUMED else 0.0


def _words(text: str) -> Callable[[float, float], str]:
    """The same words whatever the figures."""
    return lambda theirs, mine: text


def _standing_words(theirs: float, mine: float) -> str:
    archived = theirs % 2 or theirs >= 6
    return (
        "its engine is archived: planned when asked for, or when nothing else serves" if archived
        else "less likely to meet the goals"
    )  # fmt: skip


def _odds_words(theirs: float, mine: float) -> str:
    return f"meets the goals with {1 - theirs:.0%} against {1 - mine:.0%}"


def _grown_words(theirs: float, mine: float) -> str:
    return "perplexity {} against {}".format(*apart(theirs, mine, "%"))


def _rate_words(theirs: float, mine: float) -> str:
    return "decodes {} against {}".format(*apart(-theirs, -mine, "tok/s"))


def _log_rate_words(theirs: float, mine: float) -> str:
    return _rate_words(-math.exp(-theirs), -math.exp(-mine))


def _cost_words(theirs: float, mine: float) -> str:
    return f"{show(math.exp(-theirs), 'tok/s')} a card against {show(math.exp(-mine), 'tok/s')}"


def _size_words(theirs: float, mine: float) -> str:
    return "{} against {}".format(*apart(theirs / 2**30, mine / 2**30, "GiB"))


def _log_size_words(theirs: float, mine: float) -> str:
    return _size_words(math.exp(theirs), math.exp(mine))
