"""The graph of a job's work: its order, its longest path, and the steps that its pieces ran."""

from __future__ import annotations

from functools import partial

import pytest

from passes.base import Pass
from passes.kv_cache import KVCachePass
from passes.prune.depth import DepthPrune
from passes.quantize.exl2 import QuantizeExl2
from passes.run.job_graph import job_graph
from passes.steps.execution import Execution
from passes.steps.graph import WorkGraph, WorkNode, WorkStep
from passes.steps.progress import Step


def test_what_is_needed_comes_first_and_else_the_order_of_adding() -> None:
    done: list[str] = []
    finished: list[Step] = []

    def make(name: str, count: int) -> None:
        done.append(name)
        finished.extend(Step(f"{name} {number}", "key", 1.0, 1, False) for number in range(count))

    nodes, work = [], {}
    for name, count, needs in (
        ("text", 1, ()), ("held out", 1, ()), ("choice", 2, ("text",)), ("plain", 0, ("choice",)), ("judge", 1, ("plain", "held out")),
    ):  # fmt: skip
        nodes.append(WorkNode(name, name, needs))
        work[name] = partial(make, name, count)
    graph = Execution(WorkGraph(tuple(nodes)), work)
    graph.run(finished)
    assert done == ["text", "held out", "choice", "plain", "judge"] == list(graph.order())
    assert [step.name for step in graph.steps("choice")] == ["choice 0", "choice 1"] and graph.steps("plain") == ()


def test_nothing_needs_what_is_not_there() -> None:
    with pytest.raises(AssertionError):
        WorkGraph((WorkNode("walk", "walk", ("text",)),))


def test_every_node_has_its_work_and_no_other() -> None:
    graph = WorkGraph((WorkNode("walk", "walk"),))
    for work in ({}, {"walk": lambda: None, "text": lambda: None}):
        with pytest.raises(AssertionError):
            Execution(graph, work)


@pytest.mark.parametrize(
    ("passes", "needs_text", "edges"),
    [
        ((), False, [("walk", "assemble"), ("assemble", "evaluate"), ("evaluation text", "evaluate")]),
        (
            (DepthPrune(2), KVCachePass("fp8", scales=True)),
            True,
            [
                ("calibration text", "1: prune_depth"), ("1: prune_depth", "2: kv_cache"), ("2: kv_cache", "walk"),
                ("walk", "assemble"), ("assemble", "evaluate"), ("evaluation text", "evaluate"),
            ],
        ),
        (
            (QuantizeExl2(4.0, backend="exllamav2"),),
            True,
            [
                ("calibration text", "1: quantize_exl2"), ("1: quantize_exl2", "exllamav2"), ("exllamav2", "assemble"),
                ("assemble", "evaluate"), ("evaluation text", "evaluate"),
            ],
        ),
    ],
)  # fmt: skip
def test_a_jobs_graph(passes: tuple[Pass, ...], needs_text: bool, edges: list[tuple[str, str]]) -> None:
    assert list(job_graph(passes, needs_text=needs_text).edges) == edges


def test_the_critical_path_is_the_longest() -> None:
    graph = job_graph((DepthPrune(2),), needs_text=True)
    assert [step.name for step in graph.steps] == [
        "calibration text", "evaluation text", "measure depth", "walk", "assemble", "evaluate",
    ]  # fmt: skip
    walked = graph.with_steps({"walk": [WorkStep("walk", 5.0)], "evaluation text": [WorkStep("evaluation text", 4.0)]})
    assert walked.critical_path() == ("calibration text", "1: prune_depth", "walk", "assemble", "evaluate")
    read = walked.with_steps({"evaluation text": [WorkStep("evaluation text", 6.0)]})
    assert read.critical_path() == ("evaluation text", "evaluate")
    assert WorkGraph(()).critical_path() == ()
