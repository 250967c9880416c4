"""An executor for tests: each piece as another process would get it, in this one."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import networkx as nx

from passes.steps.executor import Ended, carried_out, order


class Elsewhere:
    """Carries out pieces pickled, on objects of their own; `done`: their names."""

    apart = True

    def __init__(self) -> None:
        self.done: list[str] = []

    def carry_out(self, graph: nx.DiGraph[str]) -> Iterator[Ended]:
        for name in order(graph):
            self.done.append(name)
            yield carried_out(name, pickle.loads(pickle.dumps(graph.nodes[name]["make"])))
