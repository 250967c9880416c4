"""Changes of a spec: a patch is a part of one, nested as its YAML is; what it names replaces what stands there, None takes it away.

The keys of a patch are those of the spec's own schema, so that whatever a spec may say can be changed, and is checked as a spec is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any, get_args

from pydantic import BaseModel

from planner.spec.parse import validated
from planner.spec.spec import Spec

Patch = Mapping[str, Any]
Path = tuple[str, ...]


def patched(spec: Spec, patch: Patch) -> Spec:
    """Return the spec with a patch. Raises InputError where it is none any more.

    A number of cards takes `max`, which is of `auto`, away; a rate takes the clients away, which wait for answers, and they the rate; and
    another rate stays as it is from the first request on.
    """
    base = spec.model_dump(mode="json", exclude_none=True)
    if isinstance(patch.get("target", {}).get("count"), int):
        base = merged(base, {"target": {"max": None}})
    load = patch.get("workload", {})
    if any(load.get(key) is not None for key in ("rate", "trace")):
        base = merged(base, {"workload": dict.fromkeys(("concurrency", "concurrency_ramp", "ramp_up"))})
    elif load.get("concurrency") is not None:
        base = merged(base, {"workload": dict.fromkeys(("rate", "trace", "burstiness", "max_concurrency", "ramp_up"))})
    return validated(None, merged(base, patch), "the changed spec")


def merged(base: Any, patch: Any) -> Any:
    """Return plain values with a patch of them."""
    if not isinstance(patch, Mapping):
        return patch
    out = dict(base) if isinstance(base, Mapping) else {}
    for key, value in patch.items():
        out[key] = merged(out.get(key), value)
    return {key: value for key, value in out.items() if value is not None}


def together(first: Patch, second: Patch) -> Patch:
    """Return two patches as one, the second over the first; a key that is taken away stays so, until it is named again."""
    out = dict(first)
    for key, value in second.items():
        known = out.get(key)
        out[key] = together(known, value) if isinstance(known, Mapping) and isinstance(value, Mapping) else value
    return out


def at(path: Path, value: Any) -> Patch:
    """Return the patch that puts a value at a place of the spec."""
    for key in reversed(path):
        value = {key: value}
    patch: Patch = value
    return patch


def written(patch: Patch) -> str:
    """Write a patch in one line, as it may stand in the spec: `workload: {context: 16384}`."""
    return ", ".join(f"{key}: {_flow(value)}" for key, value in patch.items())


def _flow(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_flow(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_flow, value)) + "]"
    text = value if isinstance(value, str) else json.dumps(value)
    return json.dumps(text) if any(mark in text for mark in ",{}[]#") or ": " in text else text


@cache
def places() -> tuple[Path, ...]:
    """List every key of a spec, as a path from its top, those nearest to the top first."""
    return tuple(sorted(dict.fromkeys(_places(Spec)), key=len))


def _places(model: type[BaseModel], above: Path = ()) -> Iterator[Path]:
    for name, field in model.model_fields.items():
        yield (*above, name)
        for kind in (field.annotation, *get_args(field.annotation)):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from _places(kind, (*above, name))
