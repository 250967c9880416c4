"""Where nothing meets the goals: the nearest changes of the question that would, and what each still misses.

Three changes are tried: the version of an engine that still has code for the card, more cards of the same kind, and a smaller well-known
model on the same cards. Of each only what would be chosen is told, so only what may be chosen is judged (`planner.choice.best_first`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from passes.ir.model import ModelIR
from passes.ir.sources import open_model
from planner.choice.best_first import likely_choice
from planner.choice.demand import target_gpu
from planner.choice.goals import Goal
from planner.choice.space.designs import engines, spreads
from planner.choice.verdict import Verdict
from planner.plan.parts.others import Alternative
from planner.spec.parts.target import CARDS_A_NODE, MOST_CARDS, EngineChoice
from planner.spec.spec import Spec
from targets.engines.engine import Settings, find_engine

#: By how much more is served than arrives, where cards are counted: predicted rates are off by about so much.
_SPARE = 1.2
#: Well-known dense instruction models of the catalog, largest first.
SMALLER = (
    "Qwen/Qwen2.5-32B-Instruct", "mistralai/Mistral-Small-24B-Instruct-2501", "Qwen/Qwen2.5-14B-Instruct",
    "meta-llama/Llama-3.1-8B-Instruct",    "Qwen/Qwen2.5-3B-Instruct", "meta-llama/Llama-3.2-1B-Instruct",
)  # fmt: skip


def alternatives(spec: Spec, ir: ModelIR, nearest: Verdict | None = None) -> Iterator[Alternative]:
    """Yield each change that would meet the goals, with the plan it leads to; none where the context is more than the model's own.

    `nearest`: to the goals of what there is, which tells how many more cards a rate takes.
    """
    if 0 < ir.max_context < spec.workload.context:
        return
    for choice in _of_other_versions(spec, ir):
        found = _try(spec.model_copy(update={"engine": choice}), ir, f"{choice.name} {choice.version}", cards=None)
        if found:
            yield found
    target = spec.target.model_copy(update={"count": spec.target.cards, "max": None})
    for count in _counts(spec, nearest):
        larger = spec.model_copy(
            update={"target": target.model_copy(update={"count": count, "nodes": _nodes(spec, count)})}
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
        found = _try(spec.model_copy(update={"model": name, "target": target}), smaller, smaller.name, cards=None)
        if found:
            yield found
            break


def _counts(spec: Spec, nearest: Verdict | None) -> tuple[int, ...]:
    """How many cards are tried in place of those that there are: twice and four times as many; where requests arrive faster than they
    are served, as many as serve them, in whole machines from one machine on.
    """
    cards = spec.target.cards
    missed = next((goal for goal in nearest.goals if goal.goal is Goal.RATE), None) if nearest else None
    if nearest is None or missed is None or missed.met or not missed.predicted.low:
        return 2 * cards, 4 * cards
    each = missed.predicted.value / nearest.candidate.cards
    surely = math.ceil(_SPARE * missed.wanted / each)
    node = spec.target.node if spec.target.nodes else CARDS_A_NODE
    count = surely if surely <= node else -(-surely // node) * node
    return (max(count, cards + 1),) if count <= MOST_CARDS else ()


def _of_other_versions(spec: Spec, ir: ModelIR) -> Iterator[EngineChoice]:
    """The engines of a spec, each in the version that its own reasons against the model as it is name as their remedy."""
    gpu = target_gpu(spec)
    for name, choice in engines(spec, gpu):
        against = find_engine(name).illegal(ir, gpu, Settings(version=choice.version))
        named = [reason.options["engine_version"] for reason in against if "engine_version" in reason.options]
        yield from (choice.model_copy(update={"version": version}) for version in named[:1])


def _nodes(spec: Spec, count: int) -> int | None:
    """As many more machines as cards."""
    return spec.target.nodes and spec.target.nodes * (count // spec.target.cards)


def _try(spec: Spec, ir: ModelIR, change: str, *, cards: int | None) -> Alternative | None:
    chosen = likely_choice(spec, ir, cards=cards)
    if chosen is None:
        return None
    label = chosen.candidate.label
    return Alternative(change, label, f"{change}: {label} meets all goals")
