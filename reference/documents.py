"""The page of the JSON documents: every key of what `--json` prints and of what lies in files, with its type and default."""

from __future__ import annotations

import ast
import inspect
import itertools
import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields
from enum import Enum
from typing import Any, Union, get_args, get_origin, get_type_hints

from planner.documents.listed import DOCUMENTS
from planner.documents.schema import parts
from reference.tables import table
from targets.quantity import Quantity

_HEAD = """# JSON documents

Made from the code: the fields of these classes are the keys of the JSON, in this order. A key that holds its default is left out.

`format_version` counts up when a key changes its meaning or goes; a key that is added has a default, so that what was saved before is read.
The version before is read too, and what an older one lacks is said.

A **quantity** is an object with `value`, `low` and `high` (the 90 % interval; whole numbers are integers, `null` is no limit) and `basis`:
`exact` (arithmetic), `measured` (on this machine), `calibrated` (fitted, its error known), `assumed`. Its unit stands in the key: `_ms`
milliseconds, `_tok_s` tokens a second, `_bytes` bytes; memory by terms is in bytes. [What each figure means](../figures.md).

An error, with `--json`, is `{"format_version": …, "error": {"message": …, "remedy": …, "location": {"file": …, "line": …, "column": …}}}`;
the exit code says of which kind.
"""


def page() -> str:
    """Write the page."""
    return "\n".join((_HEAD, *_sections()))


def _sections() -> Iterator[str]:
    told: set[Any] = set()
    for name, document in DOCUMENTS.items():
        yield f"## {document.title}\n\nWritten by {document.written}; as a JSON Schema: `optimize schema {name}`.\n"
        yield from _part(document.kind)
        for part in parts(document.kind):
            if part not in told and part is not document.kind:
                told.add(part)
                yield f"### {part.__name__}\n"
                yield from _part(part)


def _part(kind: Any) -> Iterator[str]:
    hints, below = get_type_hints(kind), _below(kind)
    yield f"{inspect.cleandoc(kind.__doc__ or '')}\n"
    rows = (
        (f"`{field.name}`", _type(hints[field.name]), _default(field), below.get(field.name, ""))
        for field in fields(kind)
    )
    yield table(("key", "type", "default", ""), rows)


def _below(kind: Any) -> Mapping[str, str]:
    """What stands below fields in the code."""
    body = ast.parse(inspect.cleandoc(inspect.getsource(kind))).body[0]
    assert isinstance(body, ast.ClassDef)
    return {
        field.target.id: str(said.value.value)
        for field, said in itertools.pairwise(body.body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        and isinstance(said, ast.Expr) and isinstance(said.value, ast.Constant)
    }  # fmt: skip


def _default(field: Any) -> str:
    if field.default_factory is not MISSING:
        return "empty"
    if field.default is MISSING:
        return ""
    return "`null`" if field.default is None else "empty" if field.default in ((), "") else f"`{field.default}`"


_PLAIN = {str: "text", int: "integer", float: "number", bool: "true or false", types.NoneType: "null", Any: "anything"}


def _type(hint: Any) -> str:
    """A type in the words of JSON."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(_type(each) for each in arguments)
    if origin is tuple:
        return f"list of {_type(arguments[0])}"
    if origin is not None:
        return f"object of {_type(arguments[-1])}"
    if isinstance(hint, type) and issubclass(hint, Enum):
        return " or ".join(f"`{member.value}`" for member in hint)
    return _PLAIN.get(hint) or ("quantity" if hint is Quantity else f"[{hint.__name__}](#{hint.__name__.lower()})")
