"""A graph of work with what each piece does, as the `networkx.DiGraph` that executors read, and the steps that each has run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import networkx as nx

from passes.steps.executor import HERE, Ended, Executor, order
from passes.steps.graph import WorkGraph
from passes.steps.progress import Step


class Execution:
    """A graph with its work: nodes carry `make`, and `steps` once they were carried out."""

    def __init__(self, graph: WorkGraph, work: Mapping[str, Callable[[], Any]]) -> None:
        """`work`: what each node runs, by its name."""
        assert work.keys() == set(graph.names), (sorted(work), graph.names)
        self.graph: nx.DiGraph[str] = nx.DiGraph()
        for name in graph.names:
            self.graph.add_node(name, make=work[name], steps=())
        self.graph.add_edges_from(graph.edges)

    def order(self) -> tuple[str, ...]:
        """Return every piece after those that it needs; where nothing decides, as they stand in the graph."""
        return order(self.graph)

    def upto(self, name: str) -> Execution:
        """Return the same work as far as a piece needs it, and the piece."""
        part = object.__new__(Execution)
        part.graph = self.graph.subgraph(nx.ancestors(self.graph, name) | {name}).copy()
        return part

    def run(self, finished: Sequence[Step]) -> None:
        """Carry out piece after piece, here. `finished`: where the steps that they run are noted as they end (`Steps.finished`)."""
        before = len(finished)
        for ended in self.ended(HERE):
            self.graph.nodes[ended.name]["steps"] = tuple(finished[before:])
            before = len(finished)

    def ended(self, executor: Executor) -> Iterator[Ended]:
        """Give each piece as an executor ends it. Raises the first error."""
        for ended in executor.carry_out(self.graph):
            if ended.error is not None:
                raise ended.error
            yield ended

    def steps(self, name: str) -> tuple[Step, ...]:
        """Return the steps that a piece of work has run."""
        steps: tuple[Step, ...] = self.graph.nodes[name]["steps"]
        return steps
