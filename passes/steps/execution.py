"""Carries out a graph of work as a `networkx.DiGraph`: piece after piece, each with the steps that it has run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import networkx as nx

from passes.steps.graph import WorkGraph
from passes.steps.progress import Step


class Execution:
    """A graph with its work: nodes carry `make`, and `steps` once they were carried out."""

    def __init__(self, graph: WorkGraph, work: Mapping[str, Callable[[], None]]) -> None:
        """`work`: what each node runs, by its name."""
        assert work.keys() == set(graph.names), (sorted(work), graph.names)
        self.graph: nx.DiGraph[str] = nx.DiGraph()
        for name in graph.names:
            self.graph.add_node(name, make=work[name], steps=())
        self.graph.add_edges_from(graph.edges)

    def order(self) -> tuple[str, ...]:
        """Return every piece after those that it needs; where nothing decides, as they stand in the graph."""
        places = {name: place for place, name in enumerate(self.graph)}
        return tuple(nx.lexicographical_topological_sort(self.graph, key=places.__getitem__))

    def run(self, finished: Sequence[Step]) -> None:
        """Carry out piece after piece. `finished`: where the steps that they run are noted as they end (`Steps.finished`)."""
        for name in self.order():
            before = len(finished)
            self.graph.nodes[name]["make"]()
            self.graph.nodes[name]["steps"] = tuple(finished[before:])

    def steps(self, name: str) -> tuple[Step, ...]:
        """Return the steps that a piece of work has run."""
        steps: tuple[Step, ...] = self.graph.nodes[name]["steps"]
        return steps
