"""The decision rule: which of the candidates that meet the goals is chosen, and what decided (docs/choosing.md).

Candidates go through a list of criteria, most important first. Each criterion gives a figure, the less the better, and a width: what
is worse than the best by no more than that is a tie and goes on to the next. So a gain inside what we are unsure of, or inside a stated
band, buys neither work nor risk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from operator import le

from passes import chain
from passes.base import Stage
from passes.formats.kv_dtypes import OWN
from passes.ir.model import ModelIR
from passes.ir.resident import resident_model
from passes.record import dataclass
from planner.choice.goals import FLOOR, ODDS_BAND
from planner.choice.verdict import Verdict, judge_quality
from planner.figures import apart
from planner.quality.expected import Quality, growth
from planner.spec.parts.goals import Goals
from targets.engines.engine import find_engine
from targets.gpu import Gpu
from targets.quantity import Basis, Quantity
from targets.speed.card import card_of

#: Clients of one person: an engine that nobody maintains, but that is made for one user, may serve so many.
FEW_CLIENTS = 2
#: By how much an engine that nobody maintains stands behind for more clients; where one stands of equals that are told apart later.
_BEHIND, _LAST_OF_EQUALS = 6, 0.5
#: Hours of work that are this close, as a share, are ties: forecasts are off by more. Minutes are nothing.
_HOURS_BAND, _LEAST_HOURS = 0.25, 0.1


@dataclass(frozen=True, slots=True)
class Criterion:
    """A figure of a candidate, less is better; `width`: by how much the best may be better than another and still tie. `says`: what a
    candidate that lost by it is told, given the figures of the loser and of the chosen one.
    """

    name: str
    figure: Callable[[Verdict], float]
    says: Callable[[float, float], str]
    width: Callable[[Verdict, Verdict], float] = lambda best, other: 0.0


@dataclass(frozen=True, slots=True)
class Loss:
    """What a candidate lost by: the criterion's name, its figure of the candidate and of the chosen one, and both in words."""

    candidate: Verdict
    criterion: str
    value: float
    against: float
    message: str

    @property
    def told(self) -> str:
        """What it lost by, and whether it meets the goals for all that."""
        if self.candidate.likely:
            unasked = self.criterion == "standing" and self.message == _MISSES
            return f"meets the goals too, but {'loses more quality than anybody would accept' if unasked else self.message}"
        missed = "; ".join(goal.reason().message for goal in self.candidate.goals if not goal.met)
        return (
            f"{missed}, by less than the band"
            if self.criterion == "standing"
            else f"comes as near to the goals, but {self.message}"
        )


@dataclass(frozen=True, slots=True)
class Decision:
    """The chosen candidate, why it won in one line, and of each loser what it lost by, in the order they were given."""

    chosen: Verdict
    why: str
    lost: tuple[Loss, ...]


@dataclass(frozen=True)
class Rule:
    """The rule of a spec: its goals, the card, whether the engine was asked for by name, what making a candidate takes (hours), and
    whether the fewest cards are asked for that do.
    """

    goals: Goals
    gpu: Gpu
    engine_named: bool
    hours: Callable[[Verdict], float] = lambda verdict: 0.0
    fewest: bool = False

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
            beyond = {id(v): figures[id(v)] - figures[id(best)] - criterion.width(best, v) for v in left}
            out = [v for v in left if beyond[id(v)] > 0]
            if out:
                fallen.append((criterion, out))
                left = [v for v in left if beyond[id(v)] <= 0]
        chosen = self._undominated(left[0], candidates)
        decided = {id(v): criterion for criterion, out in fallen for v in out}
        lost = tuple(_loss(v, decided.get(id(v)), chosen) for v in candidates if v is not chosen)
        holds = [c.name for c, _ in fallen if c.figure(chosen) <= c.figure(left[0]) + c.width(left[0], chosen)]
        why = self._why(chosen, holds)
        return Decision(chosen, why if chosen is left[0] else f"{why}; {self._replaces(chosen, left[0])}", lost)

    def _undominated(self, chosen: Verdict, candidates: Sequence[Verdict]) -> Verdict:
        """The chosen one, or what is better than it in a figure and worse in none."""
        standing, figures = self.standing(chosen), self._figures(chosen)
        better = (v for v in candidates if _as_good(theirs := self._figures(v), figures) and theirs != figures)
        return next(iter(self.pareto(v for v in better if self.standing(v) <= standing)), chosen)

    def pareto(self, candidates: Iterable[Verdict], chosen: Verdict | None = None) -> tuple[Verdict, ...]:
        """Return candidates that no other one beats or equals in all of quality, speed, memory, work, cards, waiting, changes of settings
        and
        odds; of equal ones the chosen, else the first by name.
        """
        front: list[tuple[tuple[float, ...], Verdict]] = []
        weighed = [(self._figures(v), v is not chosen, v.candidate.label, v) for v in candidates]
        for figures, _, _, verdict in sorted(weighed, key=lambda entry: entry[:3]):
            if not any(_as_good(others, figures) for others, _ in front):
                front.append((figures, verdict))
        return tuple(verdict for _, verdict in front)

    def _figures(self, v: Verdict) -> tuple[float, ...]:
        """What the Pareto set is over, less is better."""
        return (
            v.quality.log_ppl_increase.value, -_speed(v, False).value, -_speed(v, True).value, v.memory.memory.total.value,
            making(v) + _each_start(v) / 2, float(v.candidate.settings.parallel.gpus),
            float(v.capacity.waiting), float(len(v.candidate.changed)), self._doubt(v), self._unfit(v),
            float(self._archived(v.candidate.engine)), self._preferred().figure(v),
        )  # fmt: skip

    def _doubt(self, v: Verdict) -> float:
        """By how much the odds fall short of the confidence that is asked, of the goals or of the fit; nothing of what is admissible."""
        *met, fits = v.odds
        short = (self.goals.fit_confidence - fits, *(self.goals.confidence - odds for odds in met))
        return 0.0 if v.admissible(self.goals) else max(0.0, *short)

    def _unfit(self, v: Verdict) -> float:
        """By how much the odds of fitting fall short of the confidence that is asked."""
        return max(0.0, self.goals.fit_confidence - v.capacity.odds)

    def standing(self, v: Verdict) -> int:
        """Return the number of a candidate's tier: 0 admissible, 2 likely only, 4 misses a goal by less than the band. An engine that
        nobody maintains, unless it was asked for, comes behind all of them (6, 8, 10) for more than few clients: those it is good at.
        """
        tier = self._tier_of(v.quality, likely=v.likely, sure=v.admissible(self.goals))
        return tier + self._behind(v.candidate.engine, v.capacity.clients)

    def _tier_of(self, quality: Quality, *, likely: bool, sure: bool) -> int:
        """The tier of a maintained engine's candidate. `likely`: it meets the goals by predicted values; `sure`: with the odds asked."""
        if not likely or self._loses_unasked(quality):
            return 4
        return 0 if sure else 2

    def at_best(self, quality: Quality, engine: str, clients: int) -> float:
        """Return the number of the best place of a candidate of this quality, whatever its memory and speed; infinite where it misses a
        goal on quality.
        """
        results = list(judge_quality(self.goals, quality))
        if not all(result.tolerated(self.goals.bands) for result in results):
            return math.inf
        likely = all(result.met for result in results)
        tier = self._tier_of(quality, likely=likely, sure=all(r.odds >= self.goals.confidence for r in results))
        return self._placed(tier + self._behind(engine, clients), engine)

    def place(self, v: Verdict) -> float:
        """Return the number of a candidate's place: its tier, an engine that nobody maintains last of those that are admissible."""
        return self._placed(self.standing(v), v.candidate.engine)

    def _placed(self, standing: int, engine: str) -> float:
        return standing + _LAST_OF_EQUALS * (standing == 0 and self._archived(engine))

    def _loses_unasked(self, quality: Quality) -> bool:
        """Whether it loses more than anybody would accept who asks for no quality."""
        return not self.goals.asks_quality and growth(quality.log_ppl_increase.value) > FLOOR

    def _behind(self, engine: str, clients: int) -> int:
        """By how much an engine stands behind: one that nobody maintains, for more than few clients."""
        return _BEHIND if self._archived(engine) and clients > FEW_CLIENTS else 0

    def _archived(self, engine: str) -> bool:
        """Whether nobody maintains an engine, and nobody asked for it."""
        return not self.engine_named and find_engine(engine).archived is not None

    def settles(self, v: Verdict) -> bool:
        """Tell whether every candidate of an engine that nobody maintains comes behind this one of a maintained engine."""
        return v.feasible and self.standing(v) <= (0 if v.capacity.clients <= FEW_CLIENTS else _BEHIND - 1)

    def clear(self, v: Verdict) -> bool:
        """Tell whether of those that stand as it does none is before it but for the figure that is preferred."""
        return self.doubted(v) <= ODDS_BAND and not self.fewest

    def doubted(self, v: Verdict) -> float:
        """Return the most doubt (a probability, `doubt_of_chain`) of what stands as this one does and does not lose to it by its odds;
        infinite where clients wait, or it may not fit: both come before odds.
        """
        behind = (v.capacity.waiting and not self.goals.batch) or self._unfit(v) > 0
        return math.inf if behind else self._doubt(v) + ODDS_BAND

    def figure_of_chain(self, ir: ModelIR, quality: Quality) -> float:
        """Return the preferred figure (a share of perplexity, or the logarithm of bytes) where a chain alone tells it; before all
        others where engine and settings do.
        """
        match self.goals.prefer:
            case "quality":
                return growth(quality.log_ppl_increase.value)
            case "size":
                return math.log(ir.tensor_bytes)
            case _:
                return -math.inf

    def doubt_of_chain(self, quality: Quality) -> float:
        """Return the probability by which a candidate's odds fall short at least: those of its goals on quality."""
        return max((self.goals.confidence - goal.odds for goal in judge_quality(self.goals, quality)), default=0.0)

    def width(self, v: Verdict) -> float:
        """Return the share or logarithm of bytes by which another may be worse in the preferred figure and still tie with this one."""
        return self._preferred().width(v, v)

    @property
    def criteria(self) -> tuple[Criterion, ...]:
        """The criteria, most important first."""
        bands, memory = self.goals.bands, self.gpu.memory_bytes.value
        return (
            Criterion("standing", self.standing, _standing_words),
            Criterion(
                "waiting", lambda v: not self.goals.batch and v.capacity.waiting > 0, _words("clients wait for each other")
            ),
            Criterion("fit", self._unfit, self._fit_words, lambda best, other: ODDS_BAND),
            Criterion("odds", self._doubt, _odds_words, lambda best, other: ODDS_BAND),
            Criterion("maintained", lambda v: self._archived(v.candidate.engine), _words(_ARCHIVED)),
            Criterion(
                "fewest cards", lambda v: v.candidate.cards if self.fewest else 0,
                lambda theirs, mine: f"takes {theirs:.0f} cards where {mine:.0f} do",
            ),
            self._preferred(),
            Criterion("making", making, lambda theirs, mine: f"{_MUST[int(theirs)]}; the chosen one {_MUST[int(mine)]}"),
            Criterion("changes of the model", _changes, _words("changes more than is needed")),
            Criterion("regime", _unmeasured, _words("its engine's speed was not measured on such cards and loads")),
            Criterion("stages", lambda v: v.candidate.settings.parallel.pp, lambda a, b: f"in {a:.0f} stages against {b:.0f}"),
            Criterion("cards", lambda v: -v.candidate.settings.parallel.gpus, lambda a, b: f"uses {-a:.0f} cards against {-b:.0f}"),
            Criterion(
                "tensor parallel",
                lambda v: v.candidate.settings.parallel.tp,
                lambda a, b: f"cuts each matrix over {a:.0f} cards against {b:.0f}",
            ),
            Criterion("native", partial(_emulated, gpu=self.gpu), _words("the card does not multiply its format itself")),
            Criterion("each start", _each_start, _words("the engine reads twice the bytes and rounds again at each start")),
            Criterion("settings", lambda v: len(v.candidate.changed), _words("changes more of the engine's settings")),
            Criterion(
                "margin", lambda v: -v.capacity.room.low,
                lambda theirs, mine: "leaves {} of room against {}".format(*apart(-theirs, -mine, "B")),
                lambda best, other: bands.memory * memory,
            ),
            Criterion(
                "work", lambda v: math.log(_LEAST_HOURS + self.hours(v)),
                lambda theirs, mine: "takes {} to make against {}".format(
                    *apart(math.exp(theirs) - _LEAST_HOURS, math.exp(mine) - _LEAST_HOURS, "h")
                ),
                lambda best, other: _HOURS_BAND,
            ),
            Criterion("quality", lambda v: growth(round(v.quality.log_ppl_increase.value, 9)), _grown_words),
            Criterion("speed", lambda v: -_speed(v, self.goals.batch).value, _rate_words),
            Criterion("size", lambda v: v.ir.tensor_bytes, _size_words),
        )  # fmt: skip

    def _preferred(self) -> Criterion:
        """The figure that the spec prefers. Differences count beyond a band, and beyond what the better figure itself is unsure of where
        it is assumed; assumed rates of one engine share their errors.
        """
        bands, prefer = self.goals.bands, self.goals.prefer
        if prefer == "quality":
            return Criterion(
                "quality", lambda v: growth(v.quality.log_ppl_increase.value), _grown_words,
                lambda best, other: max(bands.quality, _own(best.quality.log_ppl_increase)),
            )  # fmt: skip
        if prefer == "size":
            return Criterion(
                "size", lambda v: math.log(v.ir.tensor_bytes), _log_size_words, lambda best, other: bands.memory
            )
        if prefer == "context":
            return Criterion(
                "context", lambda v: -math.log(max(v.memory.kv.max_context, 1)),
                lambda theirs, mine: f"context {math.exp(-theirs):,.0f} against {math.exp(-mine):,.0f}",
                lambda best, other: bands.speed,
            )  # fmt: skip
        cards = prefer == "cost"
        return Criterion(
            prefer,
            lambda v: (
                -math.log(max(_speed(v, self.goals.batch).value, 1e-9))
                + (math.log(v.candidate.settings.parallel.gpus) if cards else 0.0)
            ),
            _cost_words if cards else _log_rate_words,
            lambda best, other: max(bands.speed, _unshared(best, other, self.goals.batch)),
        )

    def _fit_words(self, theirs: float, mine: float) -> str:
        confidence = self.goals.fit_confidence
        return f"fits with {confidence - theirs:.0%} only, {confidence:.0%} are asked"

    def _why(self, chosen: Verdict, decided: Sequence[str]) -> str:
        """One line: what is made of the chosen one, and by what it was told from others: standing, preference, the last two criteria."""
        told = {"standing": _standing_told(self.standing(chosen)), **_TOLD}
        preferred = self._preferred().name
        told[preferred] = f"none that is left is better in {preferred} by more than can be told"
        doubted = () if chosen.admissible(self.goals) else ("standing",)
        first = [name for name in dict.fromkeys((*doubted, *decided)) if name in ("standing", preferred)]
        last = [name for name in dict.fromkeys(decided) if name not in first][-2:]
        return "; ".join((MAKING[making(chosen)], *(told[name] for name in (*first, *last))))

    def _replaces(self, chosen: Verdict, first: Verdict) -> str:
        """Why the one that the criteria left is not chosen: it is dominated, and in what."""
        better = [
            name for name, mine, theirs in zip(_FIGURES, self._figures(chosen), self._figures(first), strict=True) if mine < theirs
        ]  # fmt: skip
        return f"in place of {first.candidate.label}, than which it is better in {' and '.join(better[:3])} and worse in nothing"


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
#: The same, as what is to be done with it.
_MUST = ("takes no work", "must be rounded", "must be calibrated on text", "must be pruned or distilled")
_ARCHIVED = "its engine is archived: planned when asked for, or when nothing else serves"
#: What is said of the chosen one where a criterion told it from others.
_TOLD = {
    "fewest cards": "the fewest cards that do",
    "maintained": "its engine is maintained",
    "each start": "stored, not rounded at each start",
    "waiting": "no client waits", "fit": "surely fits", "odds": "with the best odds of what is asked", "making": "no other is less to make",
    "changes of the model": "with the fewest changes of the model", "regime": "its engine was measured in this regime",
    "stages": "in the fewest stages", "cards": "on all cards", "tensor parallel": "with the fewest cards under one matrix",
    "native": "the card multiplies its format itself", "settings": "with the fewest changed settings",
    "margin": "with the most room left", "work": "with the least work", "quality": "then the best in quality",
    "speed": "then the fastest", "size": "then the smallest",
}  # fmt: skip
#: What the Pareto set is over (`Rule._figures`), in words.
_FIGURES = (
    "quality", "one client's speed", "throughput", "memory", "work", "cards", "waiting clients", "changed settings", "odds",
    "odds of fitting", "who maintains the engine", "what is preferred",
)  # fmt: skip


def _as_good(mine: tuple[float, ...], theirs: tuple[float, ...]) -> bool:
    """Whether figures are worse in none."""
    return all(map(le, mine, theirs))


def making(verdict: Verdict) -> int:
    """Say how much is to be made: an index of `MAKING`."""
    passes = verdict.candidate.passes
    if any(pass_.stage in (Stage.PRUNE, Stage.DISTILL) for pass_ in passes):
        return 3
    made = any(not pass_.load_time for pass_ in passes)
    if made and chain.needs_text(passes, verdict.ir):
        return 2
    return int(not chain.nothing_to_make(passes))


def _speed(verdict: Verdict, batch: bool) -> Quantity:
    if verdict.speed is None:
        return Quantity.exact(0.0)
    return verdict.speed.throughput_tok_s if batch else verdict.speed.decode_tok_s_per_request


def _unmeasured(verdict: Verdict) -> int:
    return int(verdict.speed is None or verdict.speed.tpot_ms.basis is Basis.ASSUMED)


def _changes(verdict: Verdict) -> int:
    """Passes, and the type of the cache that a checkpoint's own config asks for."""
    cache = verdict.ir.kv_cache
    return len(verdict.candidate.passes) + int(cache.declared is not None and cache.dtype == OWN)


def _each_start(verdict: Verdict) -> int:
    """Whether weights are rounded by the engine while it loads (vLLM's docs on FP8 give that for trying, a stored checkpoint to serve)."""
    return int(any(pass_.load_time and pass_.rounds_by is not None for pass_ in verdict.candidate.passes))


def _emulated(verdict: Verdict, gpu: Gpu) -> int:
    """Whether weights are unpacked before the card multiplies them."""
    engine = find_engine(verdict.candidate.engine)
    card = card_of(engine, gpu)
    forms = {
        linear.storage
        for block, _ in resident_model(verdict.ir).decoder.counts
        for linear in block.linears
        if linear.storage.is_quantized
    }
    return int(
        any(card.kernel(form).arithmetic not in card.flops or card.kernel(form).arithmetic == "bf16" for form in forms)
    )


def _own(quantity: Quantity) -> float:
    """What a figure is unsure of by itself where it is assumed; fitted figures of one model share their errors."""
    return quantity.high - quantity.value if quantity.basis is Basis.ASSUMED else 0.0


def _unshared(best: Verdict, other: Verdict, batch: bool) -> float:
    """What an assumed rate is unsure of (its logarithm) against one that is known better, or of another engine."""
    rate, theirs = _speed(best, batch), _speed(other, batch)
    same = theirs.basis is Basis.ASSUMED and best.candidate.engine == other.candidate.engine
    return math.log(rate.value / rate.low) if rate.basis is Basis.ASSUMED and not same and rate.low > 0 else 0.0


def _words(text: str) -> Callable[[float, float], str]:
    """The same words whatever the figures."""
    return lambda theirs, mine: text


def _standing_words(theirs: float, mine: float) -> str:
    if theirs >= _BEHIND > mine:
        return _ARCHIVED
    return _TIERS[_tier(theirs)]


def _standing_told(standing: float) -> str:
    told = (
        "meets every goal with the odds asked for",
        "meets every goal by its predicted values",
        "comes nearest to the goals",
    )
    return told[_tier(standing)] + (", which no maintained engine does" if standing >= _BEHIND else "")


#: What is said of a candidate that stands behind, by its tier.
_MISSES = "misses a goal by less than the band"
_TIERS = ("stands behind", "less likely than is asked", _MISSES)


def _tier(standing: float) -> int:
    """0 admissible, 1 likely only, 2 near, whatever the engine."""
    return int(standing % _BEHIND) // 2


def _odds_words(theirs: float, mine: float) -> str:
    return f"its odds are {100 * theirs:.0f} points below the confidence asked for, against {100 * mine:.0f}"


def _grown_words(theirs: float, mine: float) -> str:
    return "perplexity {} against {}".format(*apart(theirs, mine, "%"))


def _rate_words(theirs: float, mine: float) -> str:
    return "decodes {} against {}".format(*apart(-theirs, -mine, "tok/s"))


def _log_rate_words(theirs: float, mine: float) -> str:
    return _rate_words(-math.exp(-theirs), -math.exp(-mine))


def _cost_words(theirs: float, mine: float) -> str:
    return "{} a card against {}".format(*apart(math.exp(-theirs), math.exp(-mine), "tok/s"))


#: Sizes that differ by no larger share are told without figures.
_ALIKE = 1e-4


def _size_words(theirs: float, mine: float) -> str:
    if abs(theirs - mine) <= _ALIKE * mine:
        return "its weights take a little more"
    return "its weights take {} against {}".format(*apart(theirs, mine, "B"))


def _log_size_words(theirs: float, mine: float) -> str:
    return _size_words(math.exp(theirs), math.exp(mine))
