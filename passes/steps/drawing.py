"""Draws a graph of work: as text for a terminal, as mermaid for Markdown, as dot for Graphviz. Pure: a graph becomes a string."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from passes.steps.graph import WorkGraph, WorkNode, WorkStep


class Drawing(StrEnum):
    """The kinds of drawings."""

    TEXT = "text"
    MERMAID = "mermaid"
    DOT = "dot"


def drawn(graph: WorkGraph, kind: Drawing) -> str:
    """Return a graph drawn in lines, the last one ended."""
    draw: dict[Drawing, Callable[[WorkGraph], str]] = {Drawing.TEXT: text, Drawing.MERMAID: mermaid, Drawing.DOT: dot}
    return draw[kind](graph)


def text(graph: WorkGraph) -> str:
    """Return a list of the nodes, each with what it needs behind an arrow and its steps below; the longest path at the end."""
    if not graph.nodes:
        return "no steps: nothing is made\n"
    lines = []
    for node in graph.nodes:
        lines.append(f"{_head(node)} ← {', '.join(node.needs)}" if node.needs else _head(node))
        lines += [f"    · {_step(step)}" for step in node.steps]
    longest = graph.critical_path()
    seconds = {node.name: node.seconds for node in graph.nodes}
    whole, path = sum(seconds.values()), sum(seconds[name] for name in longest)
    lines += ["", f"{whole:,.1f} s of steps; longest path {path:,.1f} s: {' → '.join(longest)}"]
    return "\n".join(lines) + "\n"


def mermaid(graph: WorkGraph) -> str:
    """Return a mermaid flow chart from top to bottom."""
    lines = ["graph TD"]
    lines += [f'    {place}["{_mermaid_label(node)}"]' for node, place in _places(graph)]
    lines += [f"    {needed} --> {needing}" for needed, needing in _edges(graph)]
    return "\n".join(lines) + "\n"


def dot(graph: WorkGraph) -> str:
    """Return a directed graph in Graphviz's language."""
    lines = ["digraph job {", "    node [shape=box];"]
    lines += [f'    {place} [label="{_dot_label(node)}"];' for node, place in _places(graph)]
    lines += [f"    {needed} -> {needing};" for needed, needing in _edges(graph)]
    return "\n".join([*lines, "}"]) + "\n"


def _head(node: WorkNode) -> str:
    """A node's name, and its title where that says more."""
    return node.name if node.title == node.name else f"{node.name} ({node.title})"


def _step(step: WorkStep) -> str:
    """`walk: 12.3 s, done, key 0123abcd`: what is known of a step."""
    seconds = [] if step.seconds is None else [f"{step.seconds:,.1f} s"]
    key = [] if step.key is None else [f"key {step.key}"]
    return f"{step.name}: {', '.join([*seconds, step.state, *key])}"


def _places(graph: WorkGraph) -> list[tuple[WorkNode, str]]:
    """Each node with an identifier that both languages take, by its place."""
    return [(node, f"n{place}") for place, node in enumerate(graph.nodes)]


def _edges(graph: WorkGraph) -> list[tuple[str, str]]:
    places = {node.name: place for node, place in _places(graph)}
    return [(places[needed], places[needing]) for needed, needing in graph.edges]


def _mermaid_label(node: WorkNode) -> str:
    """A label between quotes, its lines apart; mermaid writes characters that mean something to it as `#name;`."""
    names = {"#": "#35;", "&": "#amp;", '"': "#quot;", "<": "#lt;", ">": "#gt;", "`": "#96;"}
    lines = [_head(node), *map(_step, node.steps)]
    return "<br/>".join("".join(names.get(letter, letter) for letter in line) for line in lines)


def _dot_label(node: WorkNode) -> str:
    lines = [_head(node), *map(_step, node.steps)]
    return "\\n".join(line.replace("\\", "\\\\").replace('"', '\\"') for line in lines)
