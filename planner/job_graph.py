"""The graph of a plan's job with what it is expected to take, and of a result's with what it took."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from passes import chain
from passes.errors import InputError
from passes.files.atomic import read_json, readable
from passes.ir.sources import open_model
from passes.run.job_graph import ASSEMBLE, job_graph
from passes.run.result_folder import MARKER
from passes.steps.graph import State, WorkGraph, WorkNode, WorkStep
from planner.certificate import Certificate, FinishedStep
from planner.plan.document import PlanDocument, spec_of
from planner.plan.saved import PLAN, read_plan


def planned_graph(document: PlanDocument, *, needs_text: bool) -> WorkGraph:
    """Return the graph of a plan's job: all to do, with the seconds that the plan expects of its steps; empty where nothing is made."""
    if document.decision.nothing_to_make:
        return WorkGraph(())
    graph, expected = job_graph(document.decision.chain, needs_text=needs_text), document.decision.apply.steps
    return graph.with_steps(
        {node.name: [replace(step, seconds=expected.get(step.name)) for step in node.steps] for node in graph.nodes}
    )


def plan_needs_text(document: PlanDocument) -> bool:
    """Return whether a plan's chain looks at text; where the model is not here, as the passes alone say, without stored scales."""
    passes = document.decision.chain
    try:
        spec = spec_of(document)
        source = open_model(spec.model, revision=spec.revision, assume=spec.assume)
    except InputError:
        return any(pass_.needs_text for pass_ in passes)
    return chain.needs_text(passes, chain.rewrite(source.ir, passes))


def finished_graph(graph: WorkGraph, steps: Sequence[FinishedStep], keys: Mapping[str, str]) -> WorkGraph:
    """Return the graph of a result's job with the steps that were run and what they took; `keys` of steps, as far as they are known.

    A step belongs to the first node that names it from the last one's on; one that no node names (the dense model that is written for an
    outside tool), to the maker of the weights.
    """
    maker = next(node for node in graph.nodes if node.name == ASSEMBLE).needs[0]
    ran: dict[str, list[WorkStep]] = {name: [] for name in graph.names}
    place = 0
    for step in steps:
        takes = (number for number in range(place, len(graph.nodes)) if _takes(graph.nodes[number], step, ran))
        named = next(takes, None)
        place = place if named is None else named
        state = State.KEPT if step.reused else State.DONE
        finished = WorkStep(step.name, step.seconds, step.peak_bytes, keys.get(step.name), state)
        ran[maker if named is None else graph.names[place]].append(finished)
    return graph.with_steps(ran)


def _takes(node: WorkNode, step: FinishedStep, ran: Mapping[str, Sequence[WorkStep]]) -> bool:
    """Whether a node names a step (of an outside tool, without the version behind it) and has not run it yet."""
    names = {planned.name for planned in node.steps}
    named = step.name in names or step.name.split()[0] in names
    return named and all(step.name != finished.name for finished in ran[node.name])


def result_graph(certificate: Certificate, folder: Path) -> WorkGraph:
    """Return the graph of the job that made the result in `folder`. Raises InputError where the result is damaged."""
    passes = certificate.planned_passes
    if passes is None:
        passes = read_plan(folder / PLAN).decision.passes
    graph = job_graph(chain.from_json(passes), needs_text=certificate.quality.calibration_digest is not None)
    marker = read_json(folder / MARKER, "marker") if readable(folder / MARKER) else {}
    return finished_graph(graph, certificate.steps, {ASSEMBLE: marker["key"]} if "key" in marker else {})
