"""Who carries out a graph of work: this process, or another executor of the same contract (`passes.steps.on_ray`).

A graph is a `networkx.DiGraph` whose nodes carry `make`, what is to be done; an edge leads to who needs it. Pieces that leave this process
are module-level functions with their arguments (`functools.partial`), and leave what they make on disk under its key: whoever carries a
piece out again finds what an earlier attempt had finished.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Protocol

from passes.errors import TightfitError
from passes.record import dataclass

if TYPE_CHECKING:
    import networkx as nx  # a quarter of a second, which plans do without


@dataclass(frozen=True, slots=True)
class Ended:
    """A piece of work that has ended: what its `make` returned, or the error of a user's that ended it."""

    name: str
    value: Any = None
    error: TightfitError | None = None


class Executor(Protocol):
    """Carries out graphs of work."""

    @property
    def apart(self) -> bool:
        """Whether pieces run in processes of their own, which share only the disk with this one."""

    def carry_out(self, graph: nx.DiGraph[str]) -> Iterator[Ended]:
        """Carry out each piece after those that it needs, and give them as they end. One that failed takes those with it that need it."""


def order(graph: nx.DiGraph[str]) -> tuple[str, ...]:
    """Return every piece after those that it needs; where nothing decides, as they stand in the graph."""
    import networkx as nx

    places = {name: place for place, name in enumerate(graph)}
    return tuple(nx.lexicographical_topological_sort(graph, key=places.__getitem__))


def carried_out(name: str, make: Any) -> Ended:
    """Carry out one piece, here."""
    try:
        return Ended(name, make())
    except TightfitError as error:
        return Ended(name, error=error)


class Here:
    """One piece after the other, in this process."""

    apart = False

    def carry_out(self, graph: nx.DiGraph[str]) -> Iterator[Ended]:
        """Carry out pieces in order."""
        import networkx as nx

        lost: set[str] = set()
        for name in order(graph):
            if name in lost:
                continue
            ended = carried_out(name, graph.nodes[name]["make"])
            if ended.error is not None:
                lost |= nx.descendants(graph, name)
            yield ended


HERE = Here()
