"""YAML that people write (a spec, a server's own file): its values, read as plain data only, its nodes, and the place of a key.

Only what such a file needs is read: text, numbers, true and false, lists and mappings, once each. Tags, aliases and merge keys are
refused, as are keys that stand twice, of which YAML would silently keep the last; what YAML takes for a date stays text.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

from passes.errors import InputError, Location

_DEEPEST, _MOST_BRACKETS = 20, 200
_TAG = "tag:yaml.org,2002:"
_FLATTER = "write it with fewer levels inside one another"
_PLAIN = "text, numbers, true and false, lists and mappings"
_SCALARS = {"null": "a null", "bool": "true or false", "int": "a whole number", "float": "a number"}
_TEXTS = frozenset({"str", "timestamp", "value"})
_construct = yaml.constructor.SafeConstructor()


def read_yaml(text: str, name: str) -> tuple[yaml.Node | None, Any]:
    """Read the nodes of a YAML text and the value they stand for. Raises InputError with the place of what cannot be read."""
    node = _compose(text, name)
    return node, None if node is None else _Reader(name).value(node)


def _compose(text: str, name: str) -> yaml.Node | None:
    if _open_brackets(text) > _MOST_BRACKETS:  # which PyYAML looks through again at each further one
        raise InputError("not YAML: nested too deeply", remedy=_FLATTER, location=Location(name))
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        place = Location(name, before.count("\n") + 1, len(before) - before.rfind("\n"))
        what = f"not YAML: the character U+{ord(text[error.position]):04X} is not allowed"
        raise InputError(what, remedy="remove it; this is plain text in UTF-8", location=place) from None
    except yaml.MarkedYAMLError as error:
        raise InputError(
            f"not YAML: {error.problem}",
            remedy="check indentation, quotes and colons here",
            location=_at(error.problem_mark, name),
        ) from None
    except (RecursionError, ValueError, OverflowError) as error:
        what = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise InputError(f"not YAML: {what}", remedy=_FLATTER, location=Location(name)) from None


def _open_brackets(text: str) -> int:
    """The most brackets that are open at once, those in quotes and comments too."""
    depth = deepest = 0
    for bracket in re.findall(r"[\[\]{}]", text):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _at(mark: yaml.Mark | None, name: str) -> Location:
    return Location(name, mark.line + 1, mark.column + 1) if mark else Location(name)


class _Reader:
    """Makes plain values of nodes. A node that comes again is an alias: those of YAML's would let ten lines stand for a billion."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.seen: set[int] = set()

    def refused(self, node: yaml.Node, what: str, remedy: str = f"write {_PLAIN}") -> InputError:
        return InputError(what, remedy=remedy, location=_at(node.start_mark, self.name))

    def value(self, node: yaml.Node, depth: int = 1) -> Any:
        """Make the plain value of a node. Raises InputError for aliases, tags and depths that no such file needs."""
        if id(node) in self.seen:
            raise self.refused(node, "an alias (*) is not read here", "write out what it stands for")
        self.seen.add(id(node))
        if depth > _DEEPEST:
            raise self.refused(node, f"nested more than {_DEEPEST} deep", _FLATTER)
        kind = node.tag.removeprefix(_TAG)
        if isinstance(node, yaml.ScalarNode):
            return self.scalar(node, kind)
        if isinstance(node, yaml.SequenceNode) and kind == "seq":
            return [self.value(inner, depth + 1) for inner in node.value]
        if isinstance(node, yaml.MappingNode) and kind == "map":
            return self.mapping(node, depth)
        raise self.refused(node, f"the tag {node.tag.replace(_TAG, '!!')!r} is not read here")

    def mapping(self, node: yaml.MappingNode, depth: int) -> dict[str, Any]:
        """Make a dictionary of a mapping. Raises InputError for a key that is no plain word, or that stands twice."""
        found: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key, inner in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise self.refused(key, "a list or mapping cannot be a key", "write a word before the colon")
            if key.tag == f"{_TAG}merge":
                raise self.refused(key, "a merge key (<<) is not read here", "write out what it stands for")
            if key.value in found:
                raise self.refused(
                    key, f"{key.value!r} stands twice, first in line {lines[key.value]}", "keep one of them"
                )
            found[self.text(key)] = self.value(inner, depth + 1)
            lines[key.value] = key.start_mark.line + 1
        return found

    def scalar(self, node: yaml.ScalarNode, kind: str) -> Any:
        if kind in _TEXTS:
            return self.text(node)
        if kind not in _SCALARS:
            raise self.refused(node, f"the tag {node.tag.replace(_TAG, '!!')!r} is not read here")
        try:
            return _construct.yaml_constructors[node.tag](_construct, node)
        except (ValueError, KeyError, IndexError, OverflowError):
            raise self.refused(node, f"{node.value!r:.60} should be {_SCALARS[kind]}") from None

    def text(self, node: yaml.ScalarNode) -> str:
        text: str = node.value
        if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
            raise self.refused(node, f"{text!r:.60} holds a character that no name has")
        return text


def locate(node: yaml.Node | None, path: list[Any], name: str) -> Location:
    """Find where a key stands; the nearest existing parent where it does not."""
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
    return _at(mark, name)
