"""Where things stand in a spec's YAML: its nodes, the place of a key, keys that stand twice."""

from __future__ import annotations

from typing import Any

import yaml

from passes.errors import InputError, Location


def compose(text: str, name: str) -> yaml.Node | None:
    """The nodes of a YAML text. Raises InputError with the place where it is not YAML."""
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        location = Location(name, mark.line + 1, mark.column + 1) if mark else Location(name)
        raise InputError(
            f"not YAML: {error.problem}", remedy="check indentation, quotes and colons here", location=location
        ) from None


def refuse_twice(node: yaml.Node | None, name: str) -> None:
    """A key that stands twice in one mapping: YAML would silently keep the last."""
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, yaml.Mark] = {}
        for key, inner in node.value:
            if str(key.value) in seen:
                first = seen[str(key.value)].line + 1
                raise InputError(
                    f"{key.value!r} stands twice, first in line {first}",
                    remedy="keep one of them",
                    location=Location(name, key.start_mark.line + 1, key.start_mark.column + 1),
                )
            seen[str(key.value)] = key.start_mark
            refuse_twice(inner, name)
    elif isinstance(node, yaml.SequenceNode):
        for inner in node.value:
            refuse_twice(inner, name)


def locate(node: yaml.Node | None, path: list[Any], name: str) -> Location:
    """Where a key stands; the nearest existing parent where it does not."""
    mark = node.start_mark if node else None
    for step in path:
        if isinstance(node, yaml.MappingNode):
            found = next(((k, v) for k, v in node.value if k.value == str(step)), None)
            if found is None:
                break
            mark, node = found[0].start_mark, found[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
            node = node.value[step]
            mark = node.start_mark
        else:
            break
    return Location(name, mark.line + 1, mark.column + 1) if mark else Location(name)
