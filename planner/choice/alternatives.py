"""Where nothing meets the goals: the nearest changes of the question that would, and what each still misses.

Two changes are tried: more cards of the same kind, and a smaller well-known model on the same cards.
"""

from __future__ import annotations

from collections.abc import Iterator

from passes.ir.model import ModelIR
from passes.ir.sources import open_model
from planner.choice.search import best, target_gpu
from planner.choice.space import engines, spreads
from planner.plan.document import Alternative
from planner.spec.spec import Spec

#: Well-known dense instruction models of the catalog, largest first.
SMALLER = (
    "Qwen/Qwen2.5-32B-Instruct", "mistralai/Mistral-Small-24B-Instruct-2501", "Qwen/Qwen2.5-14B-Instruct",
    "meta-llama/Llama-3.1-8B-Instruct",    "Qwen/Qwen2.5-3B-Instruct", "meta-llama/Llama-3.2-1B-Instruct",
)  # fmt: skip


def alternatives(spec: Spec, ir: ModelIR) -> Iterator[Alternative]:
    """Each change that would meet the goals, with the plan it leads to."""
    for count in (2 * spec.target.cards, 4 * spec.target.cards):
        larger = spec.model_copy(
            update={
                "target": spec.target.model_copy(update={"count": count, "max": None, "nodes": _nodes(spec, count)})
            }
        )
        spread = any(True for name, _ in engines(larger, target_gpu(larger)) for _ in spreads(name, larger, count))
        found = _try(larger, ir, f"{count} cards", cards=count) if spread else None
        if found:
            yield found
            break
    for name in SMALLER:
        smaller = open_model(name).ir
        if smaller.weights >= ir.weights:
            continue
        found = _try(spec.model_copy(update={"model": name}), smaller, smaller.name, cards=None)
        if found:
            yield found
            break


def _nodes(spec: Spec, count: int) -> int | None:
    """As many more machines as cards."""
    return spec.target.nodes and spec.target.nodes * (count // spec.target.cards)


def _try(spec: Spec, ir: ModelIR, change: str, *, cards: int | None) -> Alternative | None:
    chosen = best(spec, ir, cards=cards)
    if chosen is None:
        return None
    label = chosen.candidate.label
    return Alternative(change, label, f"{change}: {label} meets all goals")
