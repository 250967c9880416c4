"""The graph of a job's work: which piece needs which, the steps that each runs, and what they take.

    calibration text ──► 1: prune_depth ──► 2: quantize_exl2 ──► walk ──► assemble ──► evaluate
    evaluation text ───────────────────────────────────────────────────────────────────┘

A node is a piece of work that runs one step or a few (`passes.steps.step`); an edge leads to who needs it. Who carries a job out, who
forecasts it and who draws it read the same graph. It stands here in its plain form, names and edges, because forecasts are made while
planning, where networkx would cost a quarter of a second; `passes.steps.execution` makes a `networkx.DiGraph` of it, where work begins.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from enum import StrEnum

from passes.record import dataclass


class State(StrEnum):
    """Whether a step is still to be run, was run, or had been finished by an earlier run and was kept."""

    TO_DO = "to do"
    DONE = "done"
    KEPT = "kept"


@dataclass(frozen=True, slots=True)
class WorkStep:
    """One step: its seconds and bytes in memory, expected while it is to do, else measured (None: unknown), and its content's key."""

    name: str
    seconds: float | None = None
    peak_bytes: float | None = None
    key: str | None = None
    state: State = State.TO_DO


@dataclass(frozen=True, slots=True)
class WorkNode:
    """A piece of work by its name, what a person is told of it, the names of the pieces that it needs, and its steps in their order."""

    name: str
    title: str
    needs: tuple[str, ...] = ()
    steps: tuple[WorkStep, ...] = ()

    @property
    def seconds(self) -> float:
        """Seconds of its steps together, of those that are known."""
        return sum(step.seconds or 0.0 for step in self.steps)


@dataclass(frozen=True, slots=True)
class WorkGraph:
    """The pieces of a job's work. Each stands after those that it needs, so the graph has no circle."""

    nodes: tuple[WorkNode, ...]

    def __post_init__(self) -> None:
        seen: set[str] = set()
        for node in self.nodes:
            assert node.name not in seen and seen.issuperset(node.needs), (node.name, node.needs)
            seen.add(node.name)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the nodes, each after those that it needs."""
        return tuple(node.name for node in self.nodes)

    @property
    def edges(self) -> tuple[tuple[str, str], ...]:
        """Each edge as (what is needed, who needs it)."""
        return tuple((other, node.name) for node in self.nodes for other in node.needs)

    @property
    def steps(self) -> Iterator[WorkStep]:
        """Every step, in the order of the nodes."""
        return (step for node in self.nodes for step in node.steps)

    def with_steps(self, steps: Mapping[str, Sequence[WorkStep]]) -> WorkGraph:
        """Return the graph with the steps of the nodes that are named replaced."""
        assert steps.keys() <= set(self.names), steps
        return WorkGraph(tuple(replace(node, steps=tuple(steps.get(node.name, node.steps))) for node in self.nodes))

    def critical_path(self) -> tuple[str, ...]:
        """Return the names along the path that takes longest: the least time of the job, whatever runs side by side."""
        longest: dict[str, tuple[float, tuple[str, ...]]] = {}
        for node in self.nodes:
            seconds, path = max((longest[name] for name in node.needs), key=lambda end: end[0], default=(0.0, ()))
            longest[node.name] = (seconds + node.seconds, (*path, node.name))
        return max(reversed(longest.values()), key=lambda end: end[0], default=(0.0, ()))[1]
