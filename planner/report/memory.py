"""Memory as a bar against the card: every term, what is free, and where the engine's budget and the card end."""

from __future__ import annotations

from collections.abc import Iterator

from passes.record import dataclass
from planner.choice.capacity import Capacity
from planner.figures import show, show_interval
from planner.report.facts import Facts
from targets.engines.engine import Memory
from targets.quantity import Basis, Quantity


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
    chosen, gpu = facts.plan.chosen, facts.plan.lock.gpu
    if chosen is None:
        return None
    return bar_of(chosen.memory, chosen.capacity, (gpu.name, gpu.memory_bytes, chosen.settings.gpus))


def bar_of(memory: Memory, needs: Capacity | None, on: tuple[str, int, int]) -> MemoryBar:
    """Draw memory, and of its cache what is needed, `on` a card by its name and bytes, of so many."""
    name_of_card, card, cards = on
    named = [(name, quantity) for name, quantity in _terms(memory, needs) if quantity.value > 0]
    held = sum(quantity.value for _, quantity in named)
    whole = max(card, held, memory.budget.value)
    terms, at = [], 0.0
    for name, quantity in named:
        width = 100 * quantity.value / whole
        said = f"{_size(quantity)}; {show(quantity.value / card, 'odds', 1)} of the card"
        terms.append(Term(name, name.lower().replace(" ", "-"), round(at, 2), round(width, 2), said, _NOTES[name]))
        at += width
    budget = memory.budget.value
    return MemoryBar(
        tuple(terms), round(100 * budget / whole, 2), f"the engine may spend {show(budget, 'B')}",
        f"{name_of_card}: {show(card, 'B')}{' each' if cards > 1 else ''}",
    )  # fmt: skip


def _size(quantity: Quantity) -> str:
    """A size with its interval and what it rests on: arithmetic that leaves an interval is not called exact."""
    if quantity.low == quantity.high:
        return f"{show(quantity.value, 'B')}, {quantity.basis}"
    return show_interval(quantity, "B") + ("" if quantity.basis is Basis.EXACT else f", {quantity.basis}")


def _terms(memory: Memory, needs: Capacity | None) -> Iterator[tuple[str, Quantity]]:
    yield "weights", memory.weights
    there = memory.kv_cache
    used = there if needs is None else Quantity.exact(min(needs.needed_bytes, there.value))
    yield "KV cache in use", used
    yield "activations", memory.activations
    yield "CUDA graphs", memory.cuda_graphs
    yield "runtime", memory.non_torch
    if needs is not None:
        yield "KV cache free", there - used
