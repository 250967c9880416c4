"""The page of the spec: every key with what it means, what it takes, its default and an example."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, get_args

from pydantic import BaseModel

from planner.spec.meanings import described, example, in_line
from planner.spec.parse import spellings
from planner.spec.spec import Spec
from reference.tables import table

_HEAD = """# The spec

Made from the code. `optimize schema` prints the same as a JSON Schema, with which editors check and complete a spec; `optimize init`
writes a spec to start from. An unknown key, a value without its unit, or one that no model or card can have is refused with its place.

Units: memory in B, KB, MB, GB, TB (10^3 … 10^12) or KiB, MiB, GiB, TiB (2^10 … 2^40); times in us, ms, s, min, h; rates in tok/s;
shares in %; tokens may be written `32k` (32,768).
"""


def page() -> str:
    """Write the page."""
    return "\n".join((_HEAD, *_sections()))


def _sections() -> Iterator[str]:
    for places, part in _parts():
        name = " or ".join(f"`{place}`" if place else "the top" for place in places)
        yield f"## {name[0].upper()}{name[1:]}\n"
        yield f"{(part.__doc__ or '').strip()}\n"
        yield table(("key", "means", "takes", "default", "example"), _rows(places[0], part))


def _parts() -> Iterator[tuple[list[str], type[BaseModel]]]:
    """Every part of a spec with the places where it stands, from the top down."""
    found: dict[type[BaseModel], list[str]] = {}
    open_parts: list[tuple[str, type[BaseModel]]] = [("", Spec)]
    while open_parts:
        place, part = open_parts.pop(0)
        found.setdefault(part, []).append(place)
        for key, field in part.model_fields.items():
            for kind in (field.annotation, *get_args(field.annotation)):
                if isinstance(kind, type) and issubclass(kind, BaseModel):
                    open_parts.append((f"{place}.{key}".strip("."), kind))
    for part, places in found.items():
        yield places, part


def _rows(place: str, part: type[BaseModel]) -> Iterator[tuple[str, ...]]:
    schema, told = part.model_json_schema(), described()
    defaults = part.model_construct().model_dump(mode="json", warnings=False)
    for key, field in part.model_fields.items():
        path = (*place.split("."), key) if place else (key,)
        others = [f"`{other}`" for other in spellings(key, field)[1:] if other != key]
        default = "needed" if field.is_required() else _default(defaults[key])
        shown = example(part, key, path)
        yield (
            f"`{key}`" + (f" ({', '.join(others)})" if others else ""),
            " ".join(told[part.__name__, key].split()),
            ", ".join(dict.fromkeys(_takes(schema["properties"][key], schema.get("$defs", {})))),
            default, f"`{key}: {shown}`",
        )  # fmt: skip


def _default(value: Any) -> str:
    if value is None or value in ("", []):
        return "none"
    return "those of its keys" if isinstance(value, dict) else f"`{in_line(value)}`"


def _takes(shape: Mapping[str, Any], parts: Mapping[str, Any]) -> Iterator[str]:
    """What a value may be, of its schema, in words."""
    for branch in (*shape.get("anyOf", ()), *shape.get("oneOf", ())):
        yield from _takes(branch, parts)
    if "anyOf" in shape:
        return
    if "$ref" in shape:
        yield "a mapping"
    elif "enum" in shape:
        yield " or ".join(f"`{each}`" for each in shape["enum"])
    elif "const" in shape:
        yield f"`{shape['const']}`"
    elif shape.get("type") == "array":
        yield f"a list of {', '.join(_takes(shape['items'], parts))}"
    elif shape.get("type") == "string":
        said = shape.get("description", "")
        yield "`32k`" if "pattern" in shape else said.rstrip(".")[:1].lower() + said.rstrip(".")[1:] or "text"
    elif shape.get("type") in ("integer", "number"):
        yield _number(shape)
    elif shape.get("type") == "boolean":
        yield "`true` or `false`"


def _number(shape: Mapping[str, Any]) -> str:
    kind = "a whole number" if shape["type"] == "integer" else "a number"
    ends = (("minimum", "from"), ("exclusiveMinimum", "above"), ("maximum", "to"), ("exclusiveMaximum", "below"))
    said = [f"{word} {shape[end]:,}" for end, word in ends if end in shape and abs(shape[end]) < 2**31 - 1]
    return " ".join((kind, *said))
