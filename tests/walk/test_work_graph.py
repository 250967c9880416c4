"""The graph of a job's work: its order, and the steps that its pieces ran."""

from __future__ import annotations

from functools import partial

import pytest

from passes.steps.graph import WorkGraph
from passes.steps.progress import Step


def test_what_is_needed_comes_first_and_else_the_order_of_adding() -> None:
    done: list[str] = []
    finished: list[Step] = []

    def make(name: str, count: int) -> None:
        done.append(name)
        finished.extend(Step(f"{name} {number}", "key", 1.0, 1, False) for number in range(count))

    graph = WorkGraph()
    for name, count, needs in (
        ("text", 1, []), ("held out", 1, []), ("choice", 2, ["text"]), ("plain", 0, ["choice"]), ("judge", 1, ["plain", "held out"]),
    ):  # fmt: skip
        graph.add(name, partial(make, name, count), needs)
    graph.run(finished)
    assert done == ["text", "held out", "choice", "plain", "judge"] == list(graph.order())
    assert [step.name for step in graph.steps("choice")] == ["choice 0", "choice 1"] and graph.steps("plain") == ()


def test_nothing_needs_what_is_not_there() -> None:
    with pytest.raises(AssertionError):
        WorkGraph().add("walk", lambda: None, ["text"])
