"""The graph of a job: the pieces of work that a chain of passes makes, by name, with the names of their steps. Pure; nothing runs here."""

from __future__ import annotations

from collections.abc import Sequence

from passes import chain
from passes.base import Pass
from passes.steps.graph import WorkGraph, WorkNode, WorkStep

CALIBRATION_TEXT, EVALUATION_TEXT = "calibration text", "evaluation text"
WALK, ASSEMBLE, EVALUATE = "walk", "assemble", "evaluate"


def job_graph(passes: Sequence[Pass], *, needs_text: bool) -> WorkGraph:
    """Return what there is to do for a chain, and what needs what. `needs_text`: whether the chain looks at text.

    Steps bear the names that the certificate gives them; behind an outside tool's stands its version there.
    """
    nodes, needs = [], tuple[str, ...]()
    if needs_text:
        nodes.append(_node(CALIBRATION_TEXT))
        needs = (CALIBRATION_TEXT,)
    nodes.append(_node(EVALUATION_TEXT))
    for number, pass_ in enumerate(passes, start=1):
        node = WorkNode(pass_node(number, pass_), pass_.title(), needs, tuple(map(WorkStep, pass_.choice_steps)))
        nodes.append(node)
        needs = (node.name,)
    maker = maker_node(passes)
    nodes.append(_node(maker, *needs))
    nodes.append(_node(ASSEMBLE, maker))
    nodes.append(_node(EVALUATE, ASSEMBLE, EVALUATION_TEXT))
    return WorkGraph(tuple(nodes))


def pass_node(number: int, pass_: Pass) -> str:
    """Return the name of a pass's node, the passes of a chain counted from 1."""
    return f"{number}: {pass_.name}"


def maker_node(passes: Sequence[Pass]) -> str:
    """Return the name of the node that makes the quantized weights: the walk, or an outside tool's."""
    tool = chain.outside(passes)
    return WALK if tool is None else tool.backend


def _node(name: str, *needs: str) -> WorkNode:
    return WorkNode(name, name, needs, (WorkStep(name),))
