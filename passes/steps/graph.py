"""The graph of a job's work: which piece needs which, and the steps that each has run.

    calibration text ──► 1: prune_depth ──► 2: quantize_exl2 ──► walk ──► assemble ──► evaluate
    evaluation text ───────────────────────────────────────────────────────────────────┘

A node is a piece of work that runs one step or a few (`passes.steps.step`); an edge leads to who needs it. Who carries a job out takes its
order from here. What its steps took, under which keys, and whether an earlier run had finished them, stands at its node.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import networkx as nx

from passes.steps.progress import Step


class WorkGraph:
    """The pieces of a job's work as a `networkx.DiGraph`: nodes carry `make`, and `steps` once they were carried out."""

    def __init__(self) -> None:
        self.graph: nx.DiGraph[str] = nx.DiGraph()

    def add(self, name: str, make: Callable[[], None], needs: Sequence[str] = ()) -> None:
        """Add a piece of work; what it needs was added before."""
        assert name not in self.graph and all(other in self.graph for other in needs), (name, needs)
        self.graph.add_node(name, make=make, steps=())
        self.graph.add_edges_from((other, name) for other in needs)

    def order(self) -> tuple[str, ...]:
        """Return every piece after those that it needs; where nothing decides, as they were added."""
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
