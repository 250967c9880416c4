"""The space of a spec: every candidate = engine × chain of passes × KV type × spread over cards × engine settings.

A *design* is what the candidates of one engine, chain and spread have in common; they differ in settings only, which change
neither the checkpoint nor its quality. Formats of fixed width are enumerated (`chains`). Of those that take any bits a weight, the hundreds
of widths are *solved for* (`solved`). Checkpoints that others published are candidates as they are (`published`).
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Iterator
from dataclasses import replace

from passes.base import Pass
from passes.errors import InputError
from passes.ir.model import ModelIR
from passes.ir.names import Published
from passes.record import dataclass
from planner.choice.space.chains import cache_dtypes, caches, chains
from planner.choice.space.published import published_checkpoints
from planner.choice.space.settings import settings_options
from planner.choice.space.solved import solved
from planner.spec.parts.target import EngineChoice, Target
from planner.spec.spec import Spec
from targets.engines.engine import ENGINE_NAMES, Parallel, Settings, find_engine
from targets.gpu import Gpu


@dataclass(frozen=True, slots=True)
class Design:
    """An engine, a chain of passes and a spread over cards. `settings`: what may be set, fewest changes of defaults first; the
    last leaves the cache the most room. `stands_for`: candidates that are settled with it, settings and solved widths. `published`: the
    checkpoint that the chain begins with, in the model's place.
    """

    engine: str
    passes: tuple[Pass, ...]
    settings: tuple[Settings, ...]
    stands_for: int
    published: Published | None = None


def designs(
    spec: Spec, ir: ModelIR, gpu: Gpu, names: Container[str], cards: int | None = None, *, frugal: bool = False
) -> Iterator[Design]:
    """Yield every design of some engines, legal or not: the illegal ones lose with a reason. `cards`: those that use so many only;
    `frugal`: those that have settings which buy room with speed, with these.
    """
    for name, choice in engines(spec, gpu):
        if name not in names:
            continue
        made = list(chains(spec, ir, name))
        siblings = [
            (sibling, passes) for sibling, served in published_checkpoints(spec, ir)
            for dtype in cache_dtypes(spec, name) for passes in caches(served, (), dtype)
        ]  # fmt: skip
        for parallel in (with_whole_experts(each, ir) for each in spreads(name, spec, cards)):
            settings = settings_options(name, choice, spec, gpu, parallel, frugal=frugal)
            if not settings:
                continue
            for passes in made:
                yield Design(name, passes, settings, len(settings))
            for sibling, passes in siblings:
                yield Design(name, passes, settings, len(settings), sibling)
            for passes, stands_for in solved(spec, ir, gpu, name, settings[0]):
                yield Design(name, passes, settings, len(settings) * stands_for)


def with_whole_experts(parallel: Parallel, ir: ModelIR) -> Parallel:
    """Return a spread in which replicas of a model of experts hold whole ones, as vLLM's recipes have them: cut over the cards of all
    replicas, which is its default, they exchange as much and must divide.
    """
    whole = parallel.dp > 1 and ir.has_experts
    return replace(parallel, ep=parallel.tp * parallel.dp) if whole else parallel


def spreads(engine: str, spec: Spec, cards: int | None = None) -> Iterator[Parallel]:
    """Give the engine's ways over each number of cards that is weighed; over `cards` alone where given. Tensor parallelism stays inside a
    machine; replicas are given where more than one request comes at a time.
    """
    node, known, load = spec.target.node, find_engine(engine), spec.workload
    clients = load.concurrency if isinstance(load.concurrency, int) and not load.arrives else math.inf
    for used in (cards,) if cards else numbers_of_cards(spec.target):
        for parallel in known.spreads(used):
            if parallel.tp <= node:
                yield parallel
        for replicas in range(2, used + 1) if known.replicates else ():
            shared = used % replicas == 0 and used // replicas <= node
            if shared and replicas <= clients:
                yield Parallel(tp=used // replicas, dp=replicas)


def numbers_of_cards(target: Target) -> Iterable[int]:
    """Return how many cards are weighed: powers of two and all of them; every number of one machine where the fewest are asked for, then
    whole machines.
    """
    count, node = target.cards, target.node
    if target.fewest:
        return (*range(1, min(node, count) + 1), *range(2 * node, count + 1, node))
    powers = [1 << n for n in range(count.bit_length()) if 1 << n <= count]
    return dict.fromkeys([*powers, count])


def engines(spec: Spec, gpu: Gpu) -> Iterator[tuple[str, EngineChoice]]:
    """Yield the engines that are weighed. Raises InputError for an unknown name."""
    if isinstance(spec.engine, EngineChoice):
        find_engine(spec.engine.name)
        yield spec.engine.name, spec.engine
    elif spec.engine != "auto":
        find_engine(spec.engine)
        yield spec.engine, EngineChoice(name=spec.engine)
    else:
        for name in ENGINE_NAMES:
            if find_engine(name).weighed_on(gpu):
                yield name, EngineChoice(name=name)


def nothing_to_weigh(spec: Spec, gpu: Gpu) -> InputError:
    """Return the error for a spec that leaves no candidate: types of the cache that no engine of it has, or no format at all."""
    names = [name for name, _ in engines(spec, gpu)]
    if spec.passes.kv_cache is not None and not any(cache_dtypes(spec, name) for name in names):
        asked = ", ".join(spec.passes.kv_cache)
        has = "; ".join(f"{name} has {', '.join(find_engine(name).kv_dtypes)}" for name in names)
        return InputError(f"nothing is left to weigh: no engine here keeps its cache as {asked}", remedy=has)
    return InputError(
        f"nothing is left to weigh: no format of `passes: quantize:` is one of {' or '.join(names)}, by a method that is named there",
        remedy="name other formats or methods, or `dense: true` to weigh the model as it is",
    )
