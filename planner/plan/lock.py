"""Locks every input that a plan rests on, and says which of them have moved since."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

from passes.errors import InputError, StalePlanError
from passes.ir.sources import Source, open_model
from planner.plan.document import TEXTS, spec_of
from planner.search import target_gpu
from planner.spec.parse import load_spec
from planner.spec.spec import Spec, TextChoice
from planner.version import VERSION
from targets.engines.engine import ENGINE_NAMES, find_engine


def portable_spec(spec: Spec) -> dict[str, Any]:
    """The spec without the places of its files: those are in `places`, which travels with the plan but is no part of it."""
    out = spec.model_dump(mode="json", exclude={"model"}, exclude_none=True)
    for role in TEXTS:
        out[role]["dataset"] = _named(out[role]["dataset"])
    return out


def lock(spec: Spec, source: Source, engine: Mapping[str, Any] | None) -> dict[str, Any]:
    """Every input the plan rests on: a change of any makes it stale. `engine`: name and version."""
    gpu = target_gpu(spec)
    return {
        "model": source.ir.name,
        "revision": source.revision,
        "header_digest": source.header_digest,
        "config_digest": hashlib.sha256(json.dumps(source.ir.config, sort_keys=True, default=str).encode()).hexdigest(),
        **{role: _text_lock(getattr(spec, role)) for role in TEXTS},
        "gpu": {"name": gpu.name, "memory_bytes": round(gpu.memory_bytes.value), "count": spec.target.count},
        "engine": engine,
        "tightfit": VERSION,
        "data": {name: _file_digest(str(files(room).joinpath(name))) for room, name in _data(engine)},
    }  # fmt: skip


def _data(engine: Mapping[str, Any] | None) -> dict[tuple[str, str], None]:
    """Cards and fitted constants that predictions rest on, of our engines and the chosen one: (package, file) each, every one once."""
    names = (*ENGINE_NAMES, *((engine["name"],) if engine else ()))
    fitted = [file for name in names for file in find_engine(name).fitted]
    quality = [("planner.quality", "quality_fit.json"), ("planner.quality", "quality_families.json")]
    return dict.fromkeys([("targets", "gpus.yaml"), *fitted, ("targets.speed", "speed_fit.json"), *quality])


def _text_lock(text: TextChoice) -> dict[str, Any]:
    return text.model_dump() | {"dataset": _named(text.dataset), "digest": _file_digest(text.dataset)}


def _named(dataset: str) -> str:
    return Path(dataset).name if Path(dataset).is_file() else dataset


def _file_digest(dataset: str) -> str | None:
    path = Path(dataset)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def stale_inputs(document: Mapping[str, Any], spec: Spec, source: Source) -> list[str]:
    """The inputs that have moved since the plan was made: model, texts, card, the tool and its data, the spec's own file."""
    from planner.explain import changes

    engine = document["chosen"]["engine"] if document["chosen"] else None
    moved = changes(document["lock"], lock(spec, source, engine))
    file = document.get("places", {}).get("spec")
    if file is not None and Path(file).is_file():
        moved += changes(document["spec"], portable_spec(load_spec(file)), "spec")
    return [f"{each['what']}: {each['old']} → {each['new']}" for each in moved]


def staleness(document: Mapping[str, Any]) -> list[str]:
    """As `stale_inputs`, of a plan that is only read. A plan that travelled rests on places that are not here: nothing is said."""
    if "places" not in document:
        return []
    try:
        spec = spec_of(document)
        return stale_inputs(document, spec, open_model(spec.model, revision=spec.revision, assume=spec.assume))
    except InputError as error:
        return [error.message]


def require_fresh(document: Mapping[str, Any], spec: Spec, source: Source) -> None:
    """Refuse a plan whose inputs have moved, saying which (exit code 5)."""
    if moved := stale_inputs(document, spec, source):
        raise StalePlanError(f"the plan is stale; {'; '.join(moved)}", remedy="plan again: `optimize plan SPEC`")
