"""The JSON Schema of a spec, for editors: every key with its type as users write it, what it means, and an example."""

from __future__ import annotations

import ast
import inspect
import itertools
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from planner.spec import spec as parts
from planner.spec.parse import spellings


def schema() -> dict[str, Any]:
    """Return the JSON Schema of a spec. Keys are described by the docstrings that stand below them in the code."""
    document: dict[str, Any] = parts.Spec.model_json_schema()
    described = dict(_described())
    defined = {**document["$defs"], parts.Spec.__name__: document}
    for name, definition in defined.items():
        part: type[BaseModel] = vars(parts)[name]
        defaults = part.model_construct().model_dump(mode="json", warnings=False)
        for key, field in definition.get("properties", {}).items():
            said = described.get((name, key))
            if said is not None:
                field["description"] = said
            if field.get("default") is not None:
                field["default"] = defaults[key]
        definition["properties"] |= {
            other: definition["properties"][key]
            for key, field in part.model_fields.items() for other in spellings(key, field)
        }  # fmt: skip
    return document


def _described() -> Iterator[tuple[tuple[str, str], str]]:
    """Every key of every part with the docstring below it."""
    for part in ast.parse(inspect.getsource(parts)).body:
        body = part.body if isinstance(part, ast.ClassDef) else []
        for key, below in itertools.pairwise(body):
            told = below.value if isinstance(below, ast.Expr) else None
            if isinstance(key, ast.AnnAssign) and isinstance(told, ast.Constant):
                assert isinstance(part, ast.ClassDef) and isinstance(key.target, ast.Name)
                yield (part.name, key.target.id), inspect.cleandoc(str(told.value))
