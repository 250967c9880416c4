"""The graph of a plan's job and of a result's, and its drawings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from passes.base import Pass
from passes.files.atomic import write_json
from passes.kv_cache import KVCachePass
from passes.prune.depth import DepthPrune
from passes.quantize.exl2 import QuantizeExl2
from passes.quantize.format_names import pass_named
from passes.quantize.quantize import Quantize
from passes.run.job_graph import job_graph
from passes.run.result_folder import MARKER
from passes.steps.cost import WalkSize
from passes.steps.drawing import dot, mermaid, text
from passes.steps.graph import State, WorkGraph, WorkNode, WorkStep
from planner.apply_cost import effort, forecast
from planner.certificate import NAME, Certificate, FinishedStep, MeasuredQuality, PredictedFigures
from planner.cli.main import application
from planner.job_graph import finished_graph, plan_needs_text, planned_graph
from planner.plan.codec import to_json
from planner.plan.document import PlanDocument, portable, sealed
from planner.plan.make import Plan, plan
from planner.plan.saved import save
from planner.spec.parse import parse_spec

_SPEC = (
    "model: Llama-3.2-1B-Instruct\ntarget: { gpu: rtx-4090 }\nworkload: { context: 4096, concurrency: 1 }\n"
    "passes: { prune: { depth: 2 }, kv_cache: [fp8] }\n"
)
_SECONDS = {"calibration text": 1500.0, "measure depth": 20.25, "walk": 300.0, "evaluate": 12.5}
_PLAN_TEXT = """\
calibration text
    · calibration text: 1,500.0 s, to do
evaluation text
    · evaluation text: to do
1: prune_depth (drop 2 blocks) ← calibration text
    · measure depth: 20.2 s, to do
2: kv_cache (KV cache fp8) ← 1: prune_depth
walk ← 2: kv_cache
    · walk: 300.0 s, to do
assemble ← walk
    · assemble: to do
evaluate ← assemble, evaluation text
    · evaluate: 12.5 s, to do

1,832.8 s of steps; longest path 1,832.8 s: calibration text → 1: prune_depth → 2: kv_cache → walk → assemble → evaluate
"""
_PLAN_MERMAID = """\
graph TD
    n0["calibration text<br/>calibration text: 1,500.0 s, to do"]
    n1["evaluation text<br/>evaluation text: to do"]
    n2["1: prune_depth (drop 2 blocks)<br/>measure depth: 20.2 s, to do"]
    n3["2: kv_cache (KV cache fp8)"]
    n4["walk<br/>walk: 300.0 s, to do"]
    n5["assemble<br/>assemble: to do"]
    n6["evaluate<br/>evaluate: 12.5 s, to do"]
    n0 --> n2
    n2 --> n3
    n3 --> n4
    n4 --> n5
    n5 --> n6
    n1 --> n6
"""
_RESULT_TEXT = """\
calibration text
    · calibration text: 1,400.0 s, kept
evaluation text
    · evaluation text: 0.1 s, kept
1: prune_depth (drop 2 blocks) ← calibration text
    · measure depth: 19.0 s, kept
2: kv_cache (KV cache fp8) ← 1: prune_depth
walk ← 2: kv_cache
    · walk: 310.0 s, done
assemble ← walk
    · assemble: 0.5 s, done, key 0123abcd
evaluate ← assemble, evaluation text
    · evaluate: 11.0 s, done

1,740.6 s of steps; longest path 1,740.5 s: calibration text → 1: prune_depth → 2: kv_cache → walk → assemble → evaluate
"""
_RESULT_DOT = """\
digraph job {
    node [shape=box];
    n0 [label="calibration text\\ncalibration text: 1,400.0 s, kept"];
    n1 [label="evaluation text\\nevaluation text: 0.1 s, kept"];
    n2 [label="1: prune_depth (drop 2 blocks)\\nmeasure depth: 19.0 s, kept"];
    n3 [label="2: kv_cache (KV cache fp8)"];
    n4 [label="walk\\nwalk: 310.0 s, done"];
    n5 [label="assemble\\nassemble: 0.5 s, done, key 0123abcd"];
    n6 [label="evaluate\\nevaluate: 11.0 s, done"];
    n0 -> n2;
    n2 -> n3;
    n3 -> n4;
    n4 -> n5;
    n5 -> n6;
    n1 -> n6;
}
"""


@pytest.fixture(scope="module")
def made() -> Plan:
    return plan(parse_spec(_SPEC))


@pytest.fixture(scope="module")
def document(made: Plan) -> PlanDocument:
    """A plan whose expected seconds are not this machine's."""
    chosen = made.document.decision
    return sealed(replace(made.document, chosen=replace(chosen, apply=replace(chosen.apply, steps=_SECONDS))))


@pytest.fixture
def saved(document: PlanDocument, tmp_path: Path) -> Path:
    path = tmp_path / "a.plan.json"
    save(document, path)
    return path


@pytest.fixture
def result(document: PlanDocument, tmp_path: Path) -> Path:
    """A result's folder with what its graph is read from."""
    chosen = document.decision
    steps = (
        ("calibration text", 1400.0, True), ("evaluation text", 0.1, True), ("measure depth", 19.0, True), ("walk", 310.0, False),
        ("assemble", 0.5, False), ("evaluate", 11.0, False),
    )  # fmt: skip
    certificate = Certificate(
        format_version=document.format_version,
        model=document.model,
        label=chosen.label,
        plan_digest=document.digest,
        engine=chosen.engine,
        checks=(),
        goals=(),
        quality=MeasuredQuality(calibration_digest="c", evaluation_digest="e", predicted=chosen.quality),
        predicted=PredictedFigures(chosen.memory, chosen.kv_cache, chosen.speed),
        tensor_bytes=chosen.tensor_bytes,
        steps=tuple(FinishedStep(name, seconds, None, 1 << 20, reused) for name, seconds, reused in steps),
        losses={},
        without_calibration=(),
        holds=True,
        planned_passes=chosen.passes,
    )
    write_json(tmp_path / NAME, to_json(certificate))
    write_json(tmp_path / MARKER, {"key": "0123abcd"})
    return tmp_path


def _shown(*arguments: str) -> str:
    done = CliRunner().invoke(application(), ["show", *arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_plans_graph_is_drawn(document: PlanDocument, saved: Path) -> None:
    assert _shown(str(saved), "--graph", "text") == _PLAN_TEXT
    assert _shown(str(saved), "--graph", "mermaid") == _PLAN_MERMAID
    assert _shown(str(saved), "--graph", "dot") == dot(planned_graph(document, needs_text=True))


def test_a_results_graph_is_drawn(result: Path) -> None:
    assert _shown(str(result), "--graph", "text") == _shown(str(result / NAME), "--graph", "text") == _RESULT_TEXT
    assert _shown(str(result), "--graph", "dot") == _RESULT_DOT
    (result / MARKER).unlink()
    assert _shown(str(result), "--graph", "text") == _RESULT_TEXT.replace(", key 0123abcd", "")


def test_json_stays_as_it_is(saved: Path, result: Path) -> None:
    for path in (saved, result):
        assert _shown(str(path), "--graph", "dot", "--json") == _shown(str(path), "--json")


def test_an_unknown_drawing_is_refused_with_the_known_ones(saved: Path) -> None:
    done = CliRunner().invoke(application(), ["show", str(saved), "--graph", "png"])
    assert done.exit_code == 2
    assert all(kind in done.output for kind in ("'text'", "'mermaid'", "'dot'"))


def test_a_plan_that_travelled_is_drawn_as_its_passes_say(document: PlanDocument) -> None:
    assert plan_needs_text(document) and plan_needs_text(sealed(portable(document)))


def test_an_outside_tools_steps_stand_at_its_node() -> None:
    storage = pass_named("w4a16-g128")
    assert isinstance(storage, Quantize)
    passes = (DepthPrune(1, (3,)), Quantize("gptq", storage.storage, backend="gptqmodel"))
    names = ("calibration text", "evaluation text", "dense model", "gptqmodel 5.0", "assemble")
    steps = [FinishedStep(name, 1.0, None, 1, False) for name in names]
    graph = finished_graph(job_graph(passes, needs_text=True), steps, {})
    ran = {node.name: [step.name for step in node.steps] for node in graph.nodes if node.steps}
    assert ran == {
        "calibration text": ["calibration text"], "evaluation text": ["evaluation text"], "gptqmodel": ["dense model", "gptqmodel 5.0"],
        "assemble": ["assemble"],
    }  # fmt: skip


def test_two_passes_of_a_kind_have_each_its_step() -> None:
    passes = (DepthPrune(1), DepthPrune(1))
    steps = [FinishedStep("measure depth", seconds, None, 1, False) for seconds in (1.0, 2.0)]
    graph = finished_graph(job_graph(passes, needs_text=True), steps, {})
    assert [node.seconds for node in graph.nodes if node.title.startswith("drop")] == [1.0, 2.0]


def test_what_a_language_reserves_is_escaped() -> None:
    step = WorkStep("a", 1.0, key="k", state=State.KEPT)
    graph = WorkGraph((WorkNode("n", 'say "#1" <b> \\', (), (step,)),))
    assert '["n (say #quot;#35;1#quot; #lt;b#gt; \\)<br/>a: 1.0 s, kept, key k"]' in mermaid(graph)
    assert '[label="n (say \\"#1\\" <b> \\\\)\\na: 1.0 s, kept, key k"]' in dot(graph)
    assert text(graph).splitlines()[0] == 'n (say "#1" <b> \\)'


@pytest.mark.parametrize(
    "passes",
    [(), (DepthPrune(2), KVCachePass("fp8", scales=True)), (QuantizeExl2(4.0),), (QuantizeExl2(4.0, backend="exllamav2"),)],
)  # fmt: skip
def test_the_forecast_sums_over_the_graph(made: Plan, passes: Sequence[Pass]) -> None:
    source = made.source.ir
    target = source
    for pass_ in passes:
        target = pass_.rewrite(target)
    graph, work = forecast(made.spec, source, target, passes), effort(made.spec, source, target, passes)
    assert graph.edges == job_graph(passes, needs_text=graph.names[0] == "calibration text").edges
    assert {step.name: step.seconds for step in graph.steps if step.seconds is not None} == work.steps
    assert work.memory_bytes.value == max(step.peak_bytes or 0 for step in graph.steps)
    assert sum(node.seconds for node in graph.nodes) == pytest.approx(sum(work.steps.values()))


def test_choices_name_the_steps_that_they_cost(made: Plan) -> None:
    mixed = pass_named("mixed-5.0-g64")
    assert mixed is not None
    for pass_ in (DepthPrune(2), DepthPrune(1, (3,)), QuantizeExl2(4.0), mixed, KVCachePass("fp8", scales=True)):
        assert (
            tuple(name for name in pass_.cost(made.source.ir, WalkSize(8, 64)) if name != "walk") == pass_.choice_steps
        )


def test_a_plan_that_makes_nothing_has_no_steps() -> None:
    spec = parse_spec("model: Qwen/Qwen2.5-7B-Instruct\ntarget: {gpu: rtx-4090}\n")
    made = plan(spec).document
    assert made.decision.nothing_to_make
    graph = planned_graph(made, needs_text=False)
    assert not graph.nodes
    assert text(graph) == "no steps: nothing is made\n"
