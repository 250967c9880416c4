"""An answer of `explain`, and what differs between two plans."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Console
from rich.text import Text

from planner.cli.tables.page import Page
from planner.explain.diff import told
from planner.figures import all_apart, intervals_apart, show

if TYPE_CHECKING:
    from planner.explain.asked import Answer
    from planner.explain.compare import Side
    from planner.explain.diff import PlanDifference
    from planner.plan.parts.chosen import PlannedGoal

_HEAD = "    "


def print_answer(console: Console, answer: Answer) -> None:
    """Print the headline, both plans with their figures, what decides, and others."""
    page = Page(console)
    page.line("  ", answer.answer, "bold")
    if answer.chosen is not None and answer.other is not None:
        page.blank()
        for side in (answer.chosen, answer.other):
            page.line(f"{_HEAD}{side.role:11s} ", _side(side))
        page.blank()
        for each in answer.differences:
            mine, theirs = intervals_apart(each.chosen, each.other, each.unit)
            head = f"{_HEAD}{each.what:11s} "
            if page.narrow:
                page.line(head, mine)
                page.line(" " * len(head), theirs)
                page.line(" " * len(head), each.change, "dim")
            else:
                page.line(head, f"{mine:42s} {theirs:42s} {each.change}".rstrip())
        page.blank()
        for side, beside in ((answer.chosen, answer.other), (answer.other, answer.chosen)):
            page.line(f"{_HEAD}{side.role:11s} ", _kept(side, beside))
        if answer.decides:
            page.line(f"{_HEAD}{'decides':11s} ", answer.decides)
        if answer.patch:
            page.line(f"{_HEAD}{'in the spec':11s} ", answer.patch, "dim")
        if answer.candidates:
            page.blank()
    for row in answer.candidates:
        page.line(_HEAD, row.candidate)
        page.line("      ", row.message, "dim")


def _side(side: Side) -> Text:
    text = Text(side.candidate, "bold")
    return text.append(
        f"  on {side.on}; weights {side.weights}, cache {side.kv_cache_dtype}; {side.making}", "not bold"
    )


def _kept(side: Side, beside: Side) -> str:
    """Whether the goals are met, each with its figure, in the digits that tell it from that of the plan beside it."""
    verdict = "meets the goals" if side.meets else "does not meet the goals"
    others = {goal.said: goal.predicted.value for goal in beside.goals}
    told = [_goal(goal, others.get(goal.said, goal.wanted)) for goal in side.goals]
    missed = [reason.message for reason in side.missed if not reason.code.endswith("_missed")]
    return "; ".join((verdict, *missed, *told, f"fits with {show(side.fit_odds, 'odds')}"))


def _goal(goal: PlannedGoal, beside: float) -> str:
    wanted, predicted, _ = all_apart((goal.wanted, goal.predicted.value, beside), goal.unit)
    sign = ("≤" if goal.at_most else "≥") if goal.met else (">" if goal.at_most else "<")
    odds = f" ({show(goal.odds, 'odds')})" if goal.odds is not None else ""
    return f"{goal.said} {predicted} {sign} {wanted}{odds}"


def print_diff(console: Console, difference: PlanDifference) -> None:
    """Print what differs between two plans."""
    page = Page(console)
    parts = (("inputs", difference.inputs), ("choices", difference.choices), ("measured", difference.measured))
    for part, changes in parts if difference.measured else parts[:2]:
        page.line("  ", Text.assemble((part, "bold"), "" if changes else ": the same"))
        for change in changes:
            what, before, after = told(change)
            page.line(_HEAD, f"{what}: {before} → {after}")
