"""The plan at one setting of the controls, laid out for the page: what is chosen, its memory and goals; apart, what came nearest."""

from __future__ import annotations

from collections.abc import Iterator

from passes.errors import TightfitError
from passes.ir.sources import Source
from passes.record import dataclass
from planner.choice.rule.criteria import making
from planner.choice.rule.words import MAKING
from planner.explain.asked import Asked
from planner.explain.compare import Judged, side
from planner.figures import show, show_interval
from planner.quality.expected import perplexity_growth
from planner.report.goals import GoalRow, rows_of
from planner.report.memory import MemoryBar, bar_of
from planner.spec.patch import patched, written
from planner.spec.spec import Spec
from planner.whatif.controls import State, changes

#: Candidates that lost which are shown.
_OTHERS = 3


@dataclass(frozen=True, slots=True)
class Answer:
    """`head`: what is chosen, or nearest where nothing meets the goals; `said`: why, and what is against it. `figures`: by name.
    `patch`: as the spec says it.
    """

    head: str
    meets: bool
    said: tuple[str, ...]
    memory: MemoryBar | None = None
    goals: tuple[GoalRow, ...] = ()
    figures: tuple[tuple[str, str], ...] = ()
    patch: str = ""


def searched(spec: Spec, source: Source, state: State) -> Asked | TightfitError:
    """Search at one setting; or return why that cannot be asked."""
    try:
        return Asked.of(patched(spec, changes(state)), source)
    except TightfitError as error:
        return error


def answer(asked: Asked | TightfitError, state: State) -> Answer:
    """Lay out what was found at a setting. What cannot be asked so is the answer too."""
    if isinstance(asked, TightfitError):
        return Answer("This cannot be asked", meets=False, said=tuple(str(asked).splitlines()))
    patch = changes(state)
    judged = asked.leading
    verdict, gpu, cards = judged.verdict, asked.result.gpu, judged.verdict.candidate.cards
    meets = asked.result.chosen is not None
    why = (asked.result.why,) if meets else tuple(reason.message for reason in judged.missed)
    plan = side(judged, "chosen")
    return Answer(
        head=f"{judged.label}, on {plan.on}",
        meets=meets,
        said=(("" if meets else "Nothing meets the goals; this is the nearest. ") + "; ".join(why),),
        memory=bar_of(verdict.memory.memory, verdict.capacity, (gpu.name, int(gpu.memory_bytes.value), cards)),
        goals=rows_of(plan.goals, verdict.quality, verdict.shown),
        figures=tuple(_figures(judged)),
        patch=written(patch) if patch else "",
    )


def others(asked: Asked | TightfitError) -> tuple[tuple[str, str], ...]:
    """Return what came nearest of the candidates that lost, with their reasons: their loads are simulated for it."""
    if isinstance(asked, TightfitError):
        return ()
    own = asked.leading.verdict.candidate
    return tuple(
        (each.candidate.label, "; ".join(reason.message for reason in each.reasons))
        for each in asked.result.nearest(_OTHERS)
        if each.candidate != own
    )


def _figures(judged: Judged) -> Iterator[tuple[str, str]]:
    verdict, speed = judged.verdict, judged.verdict.shown
    memory = verdict.memory.memory
    yield "memory", f"{show_interval(memory.total, 'B')} of {show(memory.budget.value, 'B')}"
    yield "fits with", show(verdict.capacity.odds, "odds")
    yield "perplexity", show_interval(perplexity_growth(verdict.quality.log_ppl_increase), "%")
    if speed is not None:
        if judged.decodes:
            yield "one client", show_interval(speed.decode_tok_s_per_request, "tok/s")
        yield "all clients", show_interval(speed.throughput_tok_s, judged.rate_unit)
        yield "TTFT", show_interval(speed.ttft_ms, "ms")
    yield "to make", MAKING[making(verdict)]
