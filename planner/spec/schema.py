"""The JSON Schema of a spec, for editors: every key with its type as users write it, what it means, and an example."""

from __future__ import annotations

from typing import Any

from planner.spec.meanings import described, parts
from planner.spec.parse import spellings
from planner.spec.spec import Spec


def schema() -> dict[str, Any]:
    """Return the JSON Schema of a spec. Keys are described by the docstrings that stand below them in the code."""
    document: dict[str, Any] = Spec.model_json_schema()
    told = described()
    defined = {**document["$defs"], Spec.__name__: document}
    for name, definition in defined.items():
        part = parts()[name]
        defaults = part.model_construct().model_dump(mode="json", warnings=False)
        for key, field in definition.get("properties", {}).items():
            said = told.get((name, key))
            if said is not None:
                field["description"] = said
            if field.get("default") is not None:
                field["default"] = defaults[key]
        definition["properties"] |= {
            other: definition["properties"][key]
            for key, field in part.model_fields.items() for other in spellings(key, field)
        }  # fmt: skip
    return document
