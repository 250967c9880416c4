"""The view model of a report: all that stands on its page, laid out, with nothing left to compute."""

from __future__ import annotations

from passes.record import dataclass
from planner.report.bits import BitsMap, bits_map, waits
from planner.report.candidates import Choices, choices
from planner.report.facts import Facts
from planner.report.goals import GoalRow, Kept, goal_rows, kept
from planner.report.load import LoadTable, load_table
from planner.report.memory import MemoryBar, memory_bar
from planner.report.record import Work, provenance, work
from planner.report.story import story

_WAITS = "the bits of each layer are chosen when the plan is applied: the report of the result shows them"


@dataclass(frozen=True, slots=True)
class View:
    """A report, section by section; what is None is not there."""

    title: str
    story: tuple[str, ...]
    memory: MemoryBar | None
    choices: Choices
    goals: tuple[GoalRow, ...]
    kept: Kept | None
    load: LoadTable | None
    bits: BitsMap | None
    work: Work | None
    provenance: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]


def view(facts: Facts) -> View:
    """Lay a report out."""
    chosen, card = facts.plan.chosen, facts.plan.lock.gpu
    cards = card.count if chosen is None else chosen.settings.gpus
    on = f"{cards} × {card.name}" if cards > 1 else card.name
    return View(
        title=f"{facts.plan.model} on {on}",
        story=story(facts),
        memory=memory_bar(facts),
        choices=choices(facts),
        goals=goal_rows(facts),
        kept=kept(facts),
        load=load_table(facts),
        bits=bits_map(facts),
        work=work(facts),
        provenance=provenance(facts),
        notes=(*facts.notes, *(() if chosen is None else chosen.notes), *((_WAITS,) if waits(facts) else ())),
    )
