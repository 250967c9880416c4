"""Memory as a bar against the card: every term, what is free, and where the engine's budget and the card end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from planner.figures import show, show_interval
from planner.plan.document import ChosenPlan
from planner.report.facts import Facts
from targets.quantity import Quantity


@dataclass(frozen=True, slots=True)
class Term:
    """A term of the bar: where it begins and how wide it is, in percent of the bar; its figures in words."""

    name: str
    kind: str
    at: float
    width: float
    said: str
    note: str


@dataclass(frozen=True, slots=True)
class MemoryBar:
    """The tightest card. `budget`: where what the engine may spend ends, in percent of the bar."""

    terms: tuple[Term, ...]
    budget: float
    budget_said: str
    card_said: str


#: What each term is, for people who do not know the word.
_NOTES = {
    "weights": "the model's numbers, as the engine holds them",
    "KV cache in use": "what running requests remember of their text",
    "KV cache free": "room for longer or more requests",
    "activations": "results on the way through the model, at the largest step",
    "CUDA graphs": "recorded steps, so that the host does not slow the card",
    "runtime": "the driver's, CUDA's and libraries' own",
}


def memory_bar(facts: Facts) -> MemoryBar | None:
    """Draw the memory of the chosen plan; None where nothing was chosen."""
    chosen = facts.plan.chosen
    if chosen is None:
        return None
    named = [(name, quantity) for name, quantity in _terms(chosen) if quantity.value > 0]
    card, held = facts.plan.lock.gpu.memory_bytes, sum(quantity.value for _, quantity in named)
    whole = max(card, held, chosen.memory.budget.value)
    terms, at = [], 0.0
    for name, quantity in named:
        width = 100 * quantity.value / whole
        said = f"{show_interval(quantity, 'B')}, {quantity.basis}; {show(quantity.value / card, 'odds', 1)} of the card"
        terms.append(Term(name, name.lower().replace(" ", "-"), round(at, 2), round(width, 2), said, _NOTES[name]))
        at += width
    budget = chosen.memory.budget.value
    return MemoryBar(
        tuple(terms), round(100 * budget / whole, 2), f"the engine may spend {show(budget, 'B')}",
        f"{facts.plan.lock.gpu.name}: {show(card, 'B')}{' each' if chosen.settings.gpus > 1 else ''}",
    )  # fmt: skip


def _terms(chosen: ChosenPlan) -> Iterator[tuple[str, Quantity]]:
    memory, needs = chosen.memory, chosen.capacity
    yield "weights", memory.weights
    there = memory.kv_cache
    used = there if needs is None else Quantity.exact(min(needs.needed_bytes, there.value))
    yield "KV cache in use", used
    yield "activations", memory.activations
    yield "CUDA graphs", memory.cuda_graphs
    yield "runtime", memory.non_torch
    if needs is not None:
        yield "KV cache free", there - used
