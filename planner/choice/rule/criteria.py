"""The criteria of the rule: a figure of a candidate each, by which those that stand alike are told apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING

from passes import chain
from passes.base import Stage
from passes.formats.format import Format
from passes.formats.kv_dtypes import OWN
from passes.ir.names import recalled
from passes.ir.resident import resident_model
from passes.record import dataclass
from planner.choice.goals import ODDS_BAND
from planner.choice.rule.standing import Standing
from planner.choice.rule.words import (
    ARCHIVED,
    MUST,
    TOO_LONG,
    always,
    cards_of,
    cost_words,
    fit_words,
    grown_words,
    log_rate_words,
    log_size_words,
    missed_words,
    odds_words,
    rate_words,
    size_words,
    standing_words,
)
from planner.choice.verdict import Verdict, refusals
from planner.figures import apart
from planner.quality.expected import growth
from targets.engines.engine import find_engine
from targets.gpu import Gpu
from targets.quantity import Basis, Quantity
from targets.speed.card import card_of

if TYPE_CHECKING:
    from planner.spec.parts.goals import Goals

#: Hours of work that are this close, as a share, are ties: forecasts are off by more. Minutes are nothing.
_HOURS_BAND, _LEAST_HOURS = 0.25, 0.1
#: What quality is worth of time where the spec wants the least difference told.
_PRICELESS = 1e6
#: What weights may lose which the card multiplies as they are, over as small ones that are unpacked first, in bands of quality and
#: in points at most: tasks tell the two no further apart. Llama 3.1 8B scores 99.3 and 101.1 % of BF16 in FP8, 100.3 and 101.4 % in INT8
#: (arXiv 2411.02355, OpenLLM v1 and v2), and its perplexity grows by 0.7 to 0.9 % (pytorch/ao's tables) and by 1.9 % (SmoothQuant's).
_AS_GOOD_IN_TASKS, _POINTS = 4, 0.02


@dataclass(frozen=True, slots=True)
class Criterion:
    """A figure of a candidate, less is better; `width`: by how much the best may be better than another and still tie. `says`: what a
    candidate that lost by it is told, given the figures of the loser and of the chosen one.
    """

    name: str
    figure: Callable[[Verdict], float]
    says: Callable[[float, float], str]
    width: Callable[[Verdict, Verdict], float] = lambda best, other: 0.0


def criteria(
    standing: Standing, gpu: Gpu, hours: Callable[[Verdict], float], fewest: bool, decodes: bool
) -> tuple[Criterion, ...]:
    """Return the criteria, most important first. `hours`: of work that making a candidate takes; `fewest`: the fewest cards are asked
    for; `decodes`: as a `Rule` has it.
    """
    goals = standing.goals
    bands, memory = goals.bands, gpu.memory_bytes.value
    return (
        Criterion("refused", lambda v: refusals(v.reasons), always("is refused by its engine")),
        Criterion("standing", standing.of, standing_words),
        Criterion(
            "too long to make", partial(_patience, goals, hours), always(TOO_LONG.format(goals.work_hours)),
            lambda best, other: 1.0,
        ),
        Criterion(
            "waiting", standing.unserved, always("clients wait for each other")
        ),
        Criterion("fit", standing.unfit, partial(fit_words, goals.fit_confidence), lambda best, other: ODDS_BAND),
        Criterion("odds", standing.doubt, odds_words, lambda best, other: ODDS_BAND),
        Criterion("missed", standing.missed, missed_words, lambda best, other: missed_width(goals)),
        Criterion("maintained", lambda v: standing.archived(v.candidate.engine), always(ARCHIVED)),
        Criterion(
            "queue", lambda v: _served_late(v, goals) if standing.waits(v) else 0.0,
            always("its clients wait longer, for no more quality than that is worth"),
            lambda best, other: max(bands.speed, _unshared(best, other, True)),
        ),
        Criterion(
            "fewest cards", lambda v: v.candidate.cards if fewest else 0,
            lambda theirs, mine: f"takes {cards_of(theirs)} where {mine:.0f} {'does' if mine == 1 else 'do'}",
        ),
        preferred(goals, gpu, decodes),
        Criterion("making", making, lambda theirs, mine: f"{MUST[int(theirs)]}; the chosen one {MUST[int(mine)]}"),
        Criterion("checked", _recalled, always("how it is stored is recalled, not checked")),
        Criterion("changes of the model", _changes, always("changes more than is needed")),
        *_spread(goals, gpu),
        Criterion(
            "tensor parallel",
            lambda v: v.candidate.settings.parallel.tp,
            lambda a, b: f"cuts each matrix over {cards_of(a)} against {b:.0f}",
        ),
        Criterion("native", partial(_emulated, gpu=gpu), always("the card does not multiply its format itself")),
        Criterion("each start", restarts, always("the engine reads twice the bytes and rounds again at each start")),
        Criterion("settings", lambda v: len(v.candidate.changed), always("changes more of the engine's settings")),
        Criterion(
            "margin", lambda v: -v.capacity.room.low,
            lambda theirs, mine: "leaves {} of room against {}".format(*apart(-theirs, -mine, "B")),
            lambda best, other: bands.memory * memory,
        ),
        Criterion(
            "work", lambda v: math.log(_LEAST_HOURS + hours(v)),
            lambda theirs, mine: "takes {} to make against {}".format(
                *apart(math.exp(theirs) - _LEAST_HOURS, math.exp(mine) - _LEAST_HOURS, "h")
            ),
            lambda best, other: _HOURS_BAND,
        ),
        Criterion("quality", lambda v: growth(round(v.quality.log_ppl_increase.value, 9)), grown_words),
        Criterion("speed", lambda v: -speed(v, goals.batch).value, rate_words),
        Criterion("size", lambda v: v.ir.tensor_bytes, size_words),
    )  # fmt: skip


def _spread(goals: Goals, gpu: Gpu) -> Iterator[Criterion]:
    """How well known a speed is, in how many stages, on how many cards; where the tokens of all cards are wanted, none stays idle first."""
    known = Criterion(
        "regime", partial(_unmeasured, gpu=gpu), always("its engine's speed was not measured on such cards and loads")
    )
    stages = Criterion(
        "stages", lambda v: v.candidate.settings.parallel.pp, lambda a, b: f"in {a:.0f} stages against {b:.0f}"
    )
    cards = Criterion(
        "cards", lambda v: -v.candidate.settings.parallel.gpus, lambda a, b: f"uses {cards_of(-a)} against {-b:.0f}"
    )
    yield from (cards, known, stages) if goals.prefer == "throughput" else (known, stages, cards)


def missed_width(goals: Goals) -> float:
    """Return by how many e-folds more may be missed than by the best without that it counts."""
    return math.log1p(goals.bands.speed)


def preferred(goals: Goals, gpu: Gpu, decodes: bool = True) -> Criterion:
    """Return the figure that the spec prefers. Differences count beyond a band, and beyond what the better figure itself is unsure of where
    it is assumed; assumed rates of one engine share their errors. Quality has a wider band for weights that the card multiplies as they
    are, against as small ones that are unpacked first.
    """
    bands, prefer = goals.bands, goals.prefer
    if prefer == "quality":
        return Criterion("quality", _grown, grown_words, partial(_grown_width, goals, gpu))
    if prefer == "size":
        return Criterion(
            "size",
            lambda v: math.log(v.ir.tensor_bytes),
            log_size_words,
            lambda best, other: bands.memory,
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
        lambda v: math.log(v.candidate.settings.parallel.gpus if cards else 1) - _log_rate(v, goals.batch),
        partial(cost_words if cards else log_rate_words, decodes=decodes),
        lambda best, other: max(bands.speed, _unshared(best, other, goals.batch)),
    )


def widest(goals: Goals, gpu: Gpu, best: Verdict) -> float:
    """Return by what share, in points or e-folds, any other one may be worse in what is preferred than this one and still tie."""
    width = preferred(goals, gpu).width(best, best)
    return max(width, _native_width(goals)) if goals.prefer == "quality" else width


def making(verdict: Verdict) -> int:
    """Say how much is to be made: an index of `MAKING`."""
    passes = verdict.candidate.passes
    if any(pass_.stage in (Stage.PRUNE, Stage.DISTILL) for pass_ in passes):
        return 3
    made = any(not pass_.load_time for pass_ in passes)
    if made and chain.needs_text(passes, verdict.ir):
        return 2
    return int(not chain.nothing_to_make(passes))


def takes_too_long(goals: Goals, hours: Callable[[Verdict], float], verdict: Verdict) -> bool:
    """Tell whether making a candidate that meets the goals takes longer than is worth it. What misses them is told apart by that alone."""
    return verdict.feasible and making(verdict) > 1 and hours(verdict) > goals.work_hours


def _patience(goals: Goals, hours: Callable[[Verdict], float], verdict: Verdict) -> float:
    """What waiting for it asks: nothing where it is there or is rounded, 1 for hours, 2 for what takes too long. One more is a tie: days of
    work lose to none, not to other work.
    """
    return float(making(verdict) > 1) + takes_too_long(goals, hours, verdict)


def speed(verdict: Verdict, batch: bool) -> Quantity:
    """Return the tokens a second of one client, or of all where it is a batch; none where it was not asked."""
    if verdict.speed is None:
        return Quantity.exact(0.0)
    return verdict.speed.throughput_tok_s if batch else verdict.speed.decode_tok_s_per_request


def _grown(verdict: Verdict) -> float:
    return growth(verdict.quality.log_ppl_increase.value)


def _grown_width(goals: Goals, gpu: Gpu, best: Verdict, other: Verdict) -> float:
    """By how much more perplexity may grow than that of the best, and still tie: what was seen of tasks holds of as many bits alone."""
    width, more = max(goals.bands.quality, _own(best.quality.log_ppl_increase)), _grown(other) - _grown(best)
    wide = _native_width(goals)
    if not width < more <= wide or other.ir.tensor_bytes > best.ir.tensor_bytes * (1 + goals.bands.memory):
        return width
    fewer_bits = _least_bits(other) < _least_bits(best)
    return width if fewer_bits or _emulated(other, gpu) >= _emulated(best, gpu) else wide


def _native_width(goals: Goals) -> float:
    return min(_AS_GOOD_IN_TASKS * goals.bands.quality, _POINTS)


def _log_rate(verdict: Verdict, batch: bool) -> float:
    return math.log(max(speed(verdict, batch).value, 1e-9))


def _served_late(verdict: Verdict, goals: Goals) -> float:
    """How long clients of whom some wait are about to be answered (a logarithm): by Little's law a closed loop answers each in their
    number / requests a second, so the rate of all tells. Where quality is preferred, with what is lost of it: a band of quality is worth a
    band of speed.
    """
    late, bands = -_log_rate(verdict, True), goals.bands
    if goals.prefer != "quality":
        return late
    worth = bands.speed / bands.quality if bands.quality else _PRICELESS
    return late + worth * _grown(verdict)


def _unmeasured(verdict: Verdict, gpu: Gpu) -> int:
    """Whether its speed is assumed; twice as much over machines, whose network is assumed besides."""
    if verdict.speed is not None and verdict.speed.tpot_ms.basis is not Basis.ASSUMED:
        return 0
    return 1 if gpu.network is None or verdict.candidate.settings.parallel.gpus <= gpu.network.cards else 2


def _recalled(verdict: Verdict) -> int:
    made = verdict.candidate.published
    return int(made is not None and recalled(made))


def _changes(verdict: Verdict) -> int:
    """Passes, and the type of the cache that a checkpoint's own config asks for."""
    cache = verdict.ir.kv_cache
    return len(verdict.candidate.passes) + int(cache.declared is not None and cache.dtype == OWN)


def restarts(verdict: Verdict) -> int:
    """Return the number 1 where weights are rounded by the engine while it loads (vLLM's docs on FP8 give that for trying, a stored
    checkpoint to serve), else 0.
    """
    return int(any(pass_.load_time and pass_.rounds_by is not None for pass_ in verdict.candidate.passes))


def _emulated(verdict: Verdict, gpu: Gpu) -> int:
    """Whether weights are unpacked before the card multiplies them."""
    engine = find_engine(verdict.candidate.engine)
    card = card_of(engine, gpu)
    kinds = {card.kernel(form).arithmetic for form in _formats(verdict)}
    return int(any(kind == "bf16" or kind not in card.flops for kind in kinds))


def _least_bits(verdict: Verdict) -> float:
    """Bits of its codes, of the format that has the fewest; 0 where no matrix is quantized."""
    return min((form.bits for form in _formats(verdict)), default=0.0)


def _formats(verdict: Verdict) -> frozenset[Format]:
    """The formats of the decoder's quantized matrices, as the engine holds them."""
    return frozenset(
        linear.storage
        for block, _ in resident_model(verdict.ir).decoder.counts
        for linear in block.linears
        if linear.storage.is_quantized
    )


def _own(quantity: Quantity) -> float:
    """What a figure is unsure of by itself where it is assumed; fitted figures of one model share their errors."""
    return quantity.high - quantity.value if quantity.basis is Basis.ASSUMED else 0.0


def _unshared(best: Verdict, other: Verdict, batch: bool) -> float:
    """What an assumed rate is unsure of (its logarithm) against one that is known better, or of another engine: of one of the same engine
    what it is unsure of beyond that one, since they share the rest; of one that is spread over cards alike, all of it.
    """
    rate, theirs = speed(best, batch), speed(other, batch)
    if rate.basis is not Basis.ASSUMED or rate.low <= 0:
        return 0.0
    own = math.log(rate.value / rate.low)
    if best.candidate.engine != other.candidate.engine:
        return own
    alike = best.candidate.settings.parallel == other.candidate.settings.parallel
    if theirs.low <= 0 or (alike and theirs.basis is Basis.ASSUMED):
        return 0.0
    return math.sqrt(max(own**2 - math.log(theirs.value / theirs.low) ** 2, 0.0))
