"""Locks every input that a plan rests on, and says which of them have moved since."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path

from passes.errors import InputError, StalePlanError
from passes.ir.sources import Source, open_model
from planner.choice.demand import target_gpu
from planner.plan.codec import from_json, to_json
from planner.plan.document import PlanDocument, spec_of
from planner.plan.parts.chosen import PlannedEngine
from planner.plan.parts.locked import Lock, LockedGpu, LockedText
from planner.plan.parts.portable import TEXTS, PortableSpec
from planner.spec.parse import load_spec
from planner.spec.spec import Spec, TextChoice
from planner.version import VERSION
from targets.engines.engine import ENGINE_NAMES, find_engine


def portable_spec(spec: Spec) -> PortableSpec:
    """Return the spec without the places of its files: those are in `places`, which travels with the plan but is no part of it."""
    said = spec.model_dump(mode="json", exclude={"model"}, exclude_none=True)
    for role in TEXTS:
        said[role]["dataset"] = _named(said[role]["dataset"])
    return from_json(PortableSpec, said, "the spec")


def lock(spec: Spec, source: Source, engine: PlannedEngine | None) -> Lock:
    """Return every input the plan rests on: a change of any makes it stale."""
    gpu, config = target_gpu(spec), json.dumps(source.ir.config, sort_keys=True, default=str)
    return Lock(
        model=source.ir.name,
        revision=source.revision,
        header_digest=source.header_digest,
        config_digest=hashlib.sha256(config.encode()).hexdigest(),
        calibration=_text_lock(spec.calibration),
        evaluation=_text_lock(spec.evaluation),
        gpu=LockedGpu(gpu.name, round(gpu.memory_bytes.value), spec.target.cards),
        engine=engine,
        tightfit=VERSION,
        data={name: _file_digest(str(Path(import_module(room).__path__[0], name))) for room, name in _data(engine)},
    )


def _data(engine: PlannedEngine | None) -> dict[tuple[str, str], None]:
    """Cards and fitted constants that predictions rest on, of our engines and the chosen one: (package, file) each, every one once."""
    names = (*ENGINE_NAMES, *((engine.name,) if engine else ()))
    fitted = [file for name in names for file in find_engine(name).fitted]
    quality = [
        ("planner.quality", f"{name}.json")
        for name in ("quality_fit", "quality_families", "quality_methods", "recovery_fit")
    ]
    return dict.fromkeys([("targets", "gpus.yaml"), *fitted, ("targets.speed", "speed_fit.json"), *quality])


def _text_lock(text: TextChoice) -> LockedText:
    return LockedText(_named(text.dataset), text.samples, text.length, text.seed, _file_digest(text.dataset))


def _named(dataset: str) -> str:
    return Path(dataset).name if Path(dataset).is_file() else dataset


def _file_digest(dataset: str) -> str | None:
    path = Path(dataset)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def stale_inputs(document: PlanDocument, spec: Spec, source: Source) -> list[str]:
    """Return the inputs that have moved since the plan was made: model, texts, card, the tool and its data, the spec's own file. What was
    moved may be called otherwise.
    """
    from planner.explain.diff import changes, told

    engine = document.chosen.engine if document.chosen else None
    now = lock(spec, source, engine)
    elsewhere = document.places.moved if document.places else ()
    if "model" in elsewhere:
        now = replace(now, model=document.lock.model, revision=document.lock.revision)
    if "calibration" in elsewhere:
        now = replace(now, calibration=replace(now.calibration, dataset=document.lock.calibration.dataset))
    if "evaluation" in elsewhere:
        now = replace(now, evaluation=replace(now.evaluation, dataset=document.lock.evaluation.dataset))
    moved = changes(to_json(document.lock), to_json(now))
    file = document.places.spec if document.places else None
    if file is not None and Path(file).is_file():
        moved += changes(to_json(document.spec), to_json(portable_spec(load_spec(file))), "spec")
    return [f"{what}: {old} → {new}" for what, old, new in map(told, moved)]


def staleness(document: PlanDocument) -> list[str]:
    """List `stale_inputs` of a plan that is only read. A plan that travelled rests on places that are not here: nothing is said."""
    if document.places is None:
        return []
    try:
        spec = spec_of(document)
        return stale_inputs(document, spec, open_model(spec.model, revision=spec.revision, assume=spec.assume))
    except InputError as error:
        return [error.message]


def require_fresh(document: PlanDocument, spec: Spec, source: Source) -> None:
    """Refuse a plan whose inputs have moved, saying which (exit code 5)."""
    if moved := stale_inputs(document, spec, source):
        raise StalePlanError(f"the plan is stale; {'; '.join(moved)}", remedy="plan again: `optimize plan SPEC`")
