"""An answer of `explain`, and what differs between two plans."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from planner.cli.tables.page import Page
from planner.figures import apart, intervals_apart, show
from planner.quality.expected import growth

if TYPE_CHECKING:
    from planner.explain.answer import Answer
    from planner.explain.compare import Side
    from planner.explain.diff import PlanDifference
    from planner.plan.document import PlannedGoal

_HEAD = "    "


def print_answer(console: Console, answer: Answer) -> None:
    """The headline, both plans with their figures, what decides, and others."""
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
        for side in (answer.chosen, answer.other):
            page.line(f"{_HEAD}{side.role:11s} ", _kept(side))
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


def _kept(side: Side) -> str:
    """Whether the goals are met, each with its figure."""
    verdict = "meets the goals" if side.meets else "does not meet the goals"
    told = [_goal(goal) for goal in side.goals]
    missed = [reason.message for reason in side.missed if not reason.code.endswith("_missed")]
    return "; ".join((verdict, *missed, *told, f"fits with {side.fit_odds:.0%}"))


def _goal(goal: PlannedGoal) -> str:
    wanted, predicted = apart(goal.wanted, goal.predicted.value, goal.unit)
    sign = ("≤" if goal.at_most else "≥") if goal.met else (">" if goal.at_most else "<")
    odds = f" ({goal.odds:.0%})" if goal.odds is not None else ""
    return f"{goal.said} {predicted} {sign} {wanted}{odds}"


#: Units of the figures in which plans differ, by the last part of where they stand.
_UNITS = {
    "tensor_bytes": "B", "ttft_ms": "ms", "decode_tok_s_per_request": "tok/s", "kv_tokens": "tokens", "memory_bytes": "B",
    "throughput_tok_s": "tok/s", "memory_total": "B",
}  # fmt: skip


def print_diff(console: Console, difference: PlanDifference) -> None:
    """What differs between two plans."""
    page = Page(console)
    for part, changes in (("inputs", difference.inputs), ("choices", difference.choices)):
        page.line("  ", Text.assemble((part, "bold"), "" if changes else ": the same"))
        for change in changes:
            what, before, after = _change(change.what, change.old, change.new)
            page.line(_HEAD, f"{what}: {before} → {after}")


def _change(what: str, old: Any, new: Any) -> tuple[str, str, str]:
    """A change as people read it: figures with their units, and the digits that tell them apart."""
    unit = "%" if what == "log_ppl_increase" else _UNITS.get(what.rpartition(".")[2])
    name = "perplexity" if what == "log_ppl_increase" else what
    if unit is None:
        return name, _plain(old), _plain(new)
    if isinstance(old, int | float) and isinstance(new, int | float):
        first, second = (growth(old), growth(new)) if unit == "%" else (old, new)
        return (name, *apart(first, second, unit))
    shown = [
        value if isinstance(value, str) or value is None else show(growth(value) if unit == "%" else value, unit)
        for value in (old, new)
    ]
    return name, _plain(shown[0]), _plain(shown[1])


def _plain(value: Any) -> str:
    """A value as a spec would say it."""
    if value is None:
        return "none"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items()) or "none"
    if isinstance(value, list | tuple):
        return "; ".join(map(_plain, value)) or "none"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
