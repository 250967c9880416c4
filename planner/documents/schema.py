"""JSON Schemas of the documents, as the fields of their classes say them."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from typing import Any, Union, get_args, get_origin, get_type_hints

from planner.documents.listed import DOCUMENTS
from planner.plan.codec import FORMAT_VERSION
from targets.quantity import Basis, Quantity


def schema(name: str) -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of a document by its name; its `$id` says the format's version."""
    kind, others = DOCUMENTS[name].kind, DOCUMENTS[name].others
    whole = _object(kind)
    whole["properties"] |= {key: _value(hint) for key, hint in others.items()}
    inside = dict.fromkeys(
        part for hint in (kind, *others.values()) for each in _classes(hint) for part in (each, *parts(each))
    )
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema", "$id": f"tightfit:{name}:{FORMAT_VERSION}",
        "title": DOCUMENTS[name].title, **whole,
        "$defs": {"Quantity": _QUANTITY, **{part.__name__: _object(part) for part in inside if part is not kind}},
    }  # fmt: skip


_END = {"type": ["number", "null"]}
_QUANTITY = {
    "description": "A figure with its 90 % interval; null: no limit.", "type": "object", "additionalProperties": False,
    "properties": {"value": _END, "low": _END, "high": _END, "basis": {"enum": [str(basis) for basis in Basis]}},
    "required": ["value", "low", "high", "basis"],
}  # fmt: skip


def _object(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind)
    needed = [each.name for each in fields(kind) if each.default is MISSING and each.default_factory is MISSING]
    return {
        "description": " ".join((inspect.getdoc(kind) or "").split()), "type": "object", "additionalProperties": False,
        "properties": {each.name: _value(hints[each.name]) for each in fields(kind)}, "required": needed,
    }  # fmt: skip


_PLAIN: Mapping[Any, dict[str, Any]] = {
    str: {"type": "string"}, int: {"type": "integer"}, float: {"type": "number"}, bool: {"type": "boolean"},
    types.NoneType: {"type": "null"}, Any: {},
}  # fmt: skip


def _value(hint: Any) -> dict[str, Any]:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return {"anyOf": [_value(each) for each in arguments]}
    if origin is tuple:
        return {"type": "array", "items": _value(arguments[0])}
    if origin is not None:
        return {"type": "object", "additionalProperties": _value(arguments[-1])}
    if isinstance(hint, type) and issubclass(hint, Enum):
        return {"enum": [str(member.value) for member in hint]}
    return dict(_PLAIN.get(hint) or {"$ref": f"#/$defs/{hint.__name__}"}) if hint is not Any else {}


def parts(kind: Any) -> Iterator[Any]:
    """Give the dataclasses inside of one, each once; quantities are no part."""
    seen, waiting = {kind}, [kind]
    while waiting:
        for hint in get_type_hints(waiting.pop(0)).values():
            for part in _classes(hint):
                if part not in seen:
                    seen.add(part)
                    waiting.append(part)
                    yield part


def _classes(hint: Any) -> Iterator[Any]:
    if isinstance(hint, type) and is_dataclass(hint) and hint is not Quantity:
        yield hint
    for inner in get_args(hint):
        yield from _classes(inner)
