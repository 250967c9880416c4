"""YAML whose values say why they are so: a tree of plain values in which any may be `Said`, written in its own order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from textwrap import wrap
from typing import Any

import yaml

from passes.record import dataclass

#: Columns up to which a comment stands behind its value, and at which one above it is wrapped.
_WIDTH = 110


@dataclass(frozen=True, slots=True)
class Said:
    """A value, and why it is so."""

    value: Any
    why: str


@dataclass(frozen=True, slots=True)
class Block:
    """Text that stands in the file as it is (`|`): a document inside of another."""

    text: str


def commented(tree: Any, head: str = "") -> str:
    """Return a tree as YAML; each line of `head` is a comment above it."""
    top = [f"# {line}".rstrip() for line in head.splitlines()]
    return "\n".join([*top, *_lines(tree, "")]) + "\n"


def plain(tree: Any) -> Any:
    """Return a tree without its comments."""
    if isinstance(tree, Said):
        return plain(tree.value)
    if isinstance(tree, Block):
        return tree.text
    if isinstance(tree, Mapping):
        return {key: plain(value) for key, value in tree.items()}
    return [plain(value) for value in tree] if _is_list(tree) else tree


def _lines(tree: Any, pad: str) -> Iterator[str]:
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from _entry(f"{pad}{_scalar(key)}:", value, f"{pad}  ")
    else:
        for value in tree:
            yield from _entry(f"{pad}-", value, f"{pad}  ")


def _entry(head: str, value: Any, pad: str) -> Iterator[str]:
    """A key or a dash with what stands behind or below it."""
    why = value.why if isinstance(value, Said) else ""
    value = value.value if isinstance(value, Said) else value
    nested = (isinstance(value, Mapping) or _is_list(value)) and len(value) > 0
    line = head if nested else f"{head} |" if isinstance(value, Block) else f"{head} {_scalar(value)}"
    if why and not nested and len(line) + len(why) + 4 <= _WIDTH:
        line, why = f"{line}  # {why}", ""
    indent = " " * (len(head) - len(head.lstrip()))
    yield from (f"{indent}# {part}" for part in wrap(why, _WIDTH - len(indent)))
    if isinstance(value, Block):
        yield line
        yield from (f"{pad}{each}".rstrip() for each in value.text.splitlines())
    elif not nested:
        yield line
    elif head.endswith("-") and isinstance(value, Mapping):
        first, *rest = _lines(value, pad)
        comments = [first] if first.lstrip().startswith("#") else []
        while comments and rest and rest[0].lstrip().startswith("#"):
            comments.append(rest.pop(0))
        if comments:
            yield from (f"{indent}{each.lstrip()}" for each in comments)
            first = rest.pop(0)
        yield f"{head} {first.lstrip()}"
        yield from rest
    else:
        yield line
        yield from _lines(value, pad)


def _scalar(value: Any) -> str:
    text: str = yaml.safe_dump(value, default_flow_style=True, width=1 << 20, allow_unicode=True)
    return text.removesuffix("...\n").strip()


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)
