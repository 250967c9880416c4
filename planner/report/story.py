"""What was chosen and why, in three sentences."""

from __future__ import annotations

from collections.abc import Iterator

from planner.choice.goals import Goal
from planner.figures import show, show_interval
from planner.plan.document import PlanDocument
from planner.plan.parts.chosen import ChosenPlan, PlannedGoal
from planner.quality.expected import perplexity_growth
from planner.report.facts import Facts


def story(facts: Facts) -> tuple[str, ...]:
    """Say what was chosen, why, and what it gives; or why nothing was."""
    plan = facts.plan
    if plan.chosen is None:
        return _nothing(plan)
    return _what(plan, plan.chosen), _why(plan, plan.chosen), _gives(facts, plan.chosen)


def _cards(plan: PlanDocument, count: int) -> str:
    name = plan.lock.gpu.name
    return f"{count} × {name}" if count > 1 else f"one {name}"


def _what(plan: PlanDocument, chosen: ChosenPlan) -> str:
    engine = f"{chosen.engine.name} {chosen.engine.version or ''}".strip()
    made = chosen.label.split(": ", 1)[-1]
    return f"{plan.model} is served by {engine} on {_cards(plan, chosen.settings.gpus)}: {made}."


def _why(plan: PlanDocument, chosen: ChosenPlan) -> str:
    out_of = f"It was chosen out of {plan.searched:,} candidates" if plan.searched > 1 else "It is the only candidate"
    return f"{out_of}: {chosen.why}." if chosen.why else f"{out_of}."


def _gives(facts: Facts, chosen: ChosenPlan) -> str:
    """Memory, speed and quality, each as surely as it is known."""
    memory = chosen.memory
    said = [f"{show(memory.total.value, 'B')} of {show(memory.budget.value, 'B')} of memory are used"]
    if chosen.speed is not None:
        rate = show_interval(chosen.speed.decode_tok_s_per_request, Goal.DECODE.unit)
        said.append(f"a client gets {rate}")
    certificate = facts.certificate
    measured = None if certificate is None else certificate.quality.intervals
    quality = measured or chosen.quality
    loss = show_interval(perplexity_growth(quality.log_ppl_increase), "%")
    said.append(f"perplexity {'grew' if measured else 'is expected to grow'} by {loss.replace('+', '')}")
    return f"{'; '.join((*said, *_goals(chosen.goals, facts.plan.spec.confidence('confidence'))))}."


def _goals(goals: tuple[PlannedGoal, ...], confidence: float) -> Iterator[str]:
    """The goals that are missed, those met by the predicted value alone with their odds, and how many are met as surely as is asked."""
    missed = [goal.said for goal in goals if not goal.met]
    unsure = [
        f"{goal.said} with odds of {show(goal.odds or 0.0, 'odds')}"
        for goal in goals
        if goal.met and goal.odds is not None and not goal.sure(confidence)
    ]
    if missed:
        yield f"missed: {', '.join(missed)}"
    if unsure:
        yield f"met less surely than the {show(confidence, 'odds')} asked: {', '.join(unsure)}"
    sure = len(goals) - len(missed) - len(unsure)
    if sure == len(goals) and goals:
        yield f"all {sure} goals are met" if sure > 1 else "the goal is met"
    elif sure:
        yield f"{sure} of {len(goals)} goals {'are' if sure > 1 else 'is'} met as surely as asked"


def _nothing(plan: PlanDocument) -> tuple[str, ...]:
    out_of = f"{plan.searched:,} candidate{'s' if plan.searched != 1 else ''}"
    said = [f"Nothing among {out_of} serves {plan.model} on {_cards(plan, plan.lock.gpu.count)} as asked."]
    if plan.rejected:
        nearest = plan.rejected[0]
        said.append(f"Nearest is {nearest.candidate}: {'; '.join(reason.message for reason in nearest.reasons)}.")
    if plan.alternatives:
        said.append(f"What would do: {'; or '.join(f'{a.change} ({a.candidate})' for a in plan.alternatives)}.")
    return tuple(said)
