"""The JSON documents by name: what writes each, and its JSON Schema as the fields of its class say it."""

from __future__ import annotations

import inspect
import types
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from enum import Enum
from importlib import import_module
from typing import Any, Union, get_args, get_origin, get_type_hints

from planner.plan.codec import FORMAT_VERSION
from targets.quantity import Basis, Quantity


@dataclass(frozen=True, slots=True)
class Document:
    """A document: its title, what writes it, where its class is (`module:name`), and schemas of keys that stand beside its fields."""

    title: str
    written: str
    home: str
    beside: Mapping[str, Any] = field(default_factory=dict)

    @property
    def kind(self) -> Any:
        """Return its class."""
        module, _, name = self.home.partition(":")
        return getattr(import_module(module), name)


DOCUMENTS: Mapping[str, Document] = {
    "plan": Document(
        "A plan", "`optimize plan --json`, `*.plan.json`, `plan.json` of a result", "planner.plan.document:PlanDocument"
    ),
    "check": Document("An answer of check", "`optimize check --json`", "planner.check:CheckDocument"),
    "certificate": Document(
        "A certificate", "`optimize apply --json`, `certificate.json` of a result",
        "planner.certificate:Certificate",
    ),
    "verified": Document(
        "What verify saw", "`optimize verify --json`, `verified.json` of a result", "planner.verifying.report:VerifyReport",
        {"format_version": {"type": "string"}, "holds": {"type": "boolean"}},
    ),
    "files": Document("Files of a result", "`optimize verify --offline --json`", "planner.verifying.result:FilesReport"),
    "answer": Document("An answer of explain", "`optimize explain --json`", "planner.explain.answer:Answer"),
    "difference": Document("A difference of plans", "`optimize diff --json`", "planner.explain.diff:PlanDifference"),
    "drift": Document("A plan under other versions", "`optimize drift --json`", "planner.explain.drift:DriftDocument"),
    "machine": Document("What a machine can do", "`optimize doctor --json`", "planner.setup.doctor:Machine"),
}  # fmt: skip


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


def schema(name: str) -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of a document by its name; its `$id` says the format's version."""
    kind, whole = DOCUMENTS[name].kind, _object(DOCUMENTS[name].kind)
    whole["properties"] |= DOCUMENTS[name].beside
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema", "$id": f"tightfit:{name}:{FORMAT_VERSION}",
        "title": DOCUMENTS[name].title, **whole,
        "$defs": {"Quantity": _QUANTITY, **{part.__name__: _object(part) for part in parts(kind)}},
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
