"""The Plan document: what was chosen, why each other lost, and a lock on every input it rests on.

JSON with `format_version`. `digest` is a sha256 over all of it but `places`, where its files are on this machine; no timestamp or
path is inside of what is hashed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from passes.base import Pass
from passes.calibration import refuse_same_text
from passes.graph import from_json, missing, rewrite, to_json
from passes.ir.sources import Source, open_model
from passes.reason import DoesNotFitError, GoalMissedError, InputError, StalePlanError
from planner.alternatives import alternatives
from planner.effort import effort
from planner.search import SearchResult, search, target_gpu
from planner.shapes import FORMAT_VERSION, quantity_json, settings_json
from planner.spec import Spec, TextChoice, load_spec
from planner.verdict import Verdict, estimates_json
from planner.version import VERSION
from targets.engines import find_engine

if TYPE_CHECKING:
    from passes.job import Progress
    from planner.measure import Trial

#: The parts of a spec that name texts.
_TEXTS = ("calibration", "evaluation")
#: Cards and fitted constants that predictions rest on.
_DATA = (
    ("targets", "gpus.yaml"), ("targets.engines", "memory_fit.json"), ("targets.engines", "speed_fit.json"),
    ("planner", "quality_fit.json"), ("planner", "quality_families.json"),
)  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """A plan as a document (`document`, JSON) with the live objects it was made from."""

    document: Mapping[str, Any]
    spec: Spec
    source: Source
    result: SearchResult

    @property
    def feasible(self) -> bool:
        """Whether a candidate meets all goals."""
        return self.document["chosen"] is not None


def plan(
    spec: Spec | str | Path, *, measure: Path | None = None, progress: Callable[[Progress], None] = lambda event: None
) -> Plan:
    """Choose for a spec. A plan is returned also when nothing meets the goals; `feasible` says so.

    `measure`: a work folder; the leading candidates are tried on a little text, and what they lose replaces what is expected.
    """
    file = None if isinstance(spec, Spec) else Path(spec)
    if not isinstance(spec, Spec):
        spec = load_spec(spec)
    refuse_same_text(spec.calibration.dataset, spec.evaluation.dataset)
    source = open_model(spec.model, revision=spec.revision, assume=spec.assume)
    result = search(spec, source.ir)
    tried: dict[tuple[Pass, ...], Trial] = {}
    if measure is not None:
        from planner.measure import trials

        tried = trials(spec, source, result, measure, progress)
        result = search(spec, source.ir, measured={chain: trial.quality for chain, trial in tried.items()})
    chosen = _resolved(result.chosen, source, tried)
    document: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "model": source.ir.name,
        "weights": source.ir.weights,
        "spec": _portable_spec(spec),
        "chosen": None if chosen is None else _chosen(spec, chosen, source),
        "rejected": [_rejected(v) for v in result.nearest()],
        "alternatives": [] if chosen else list(alternatives(spec, source.ir)),
        "illegal": result.illegal,
        "pareto": [{"candidate": v.candidate.label, **estimates_json(v)} for v in result.pareto],
        "searched": result.searched,
        "lock": lock(spec, source, _engine(chosen) if chosen else None),
    }
    document["digest"] = digest(document)
    document["places"] = {"model": _place(spec.model)} | {role: _place(getattr(spec, role).dataset) for role in _TEXTS}
    if file is not None:
        document["places"]["spec"] = str(file.resolve())
    return Plan(document, spec, source, result)


def _resolved(verdict: Verdict | None, source: Source, tried: Mapping[tuple[Pass, ...], Trial]) -> Verdict | None:
    """The chosen verdict with the choices that its trial made."""
    if verdict is None or verdict.candidate.passes not in tried:
        return verdict
    passes = tried[verdict.candidate.passes].passes
    return replace(verdict, candidate=replace(verdict.candidate, passes=passes), ir=rewrite(source.ir, passes))


def _portable_spec(spec: Spec) -> dict[str, Any]:
    """The spec without the places of its files: those are in `places`, which travels with the plan but is no part of it."""
    out = spec.model_dump(mode="json", exclude={"model"}, exclude_none=True)
    for role in _TEXTS:
        out[role]["dataset"] = _named(out[role]["dataset"])
    return out


def _place(name: str) -> str:
    """A file's or folder's absolute path; other names as they are."""
    return str(Path(name).resolve()) if Path(name).exists() else name


def _chosen(spec: Spec, verdict: Verdict, source: Source) -> dict[str, Any]:
    lacking = list(missing(source.ir, verdict.candidate.passes))
    if not source.has_weights:
        lacking.append("the weights: only the description of the model is here")
    return {
        "engine": _engine(verdict),
        "label": verdict.candidate.label,
        "passes": to_json(verdict.candidate.passes),
        "settings": settings_json(verdict.candidate.settings),
        **estimates_json(verdict),
        "goals": [
            {
                "name": g.name,
                "wanted": g.wanted,
                "unit": g.unit,
                "at_most": g.at_most,
                "met": g.met,
                "predicted": quantity_json(g.predicted),
            }
            for g in verdict.goals
        ],
        "tensor_bytes": verdict.ir.tensor_bytes,
        "apply": effort(spec, source.ir, verdict.ir, verdict.candidate.passes).as_json(),
        "state": "resolved" if all(p.resolved for p in verdict.candidate.passes) else "bounded",
        "executable": not lacking,
        "missing": lacking,
        "notes": list(verdict.notes),
    }


def _engine(verdict: Verdict) -> dict[str, Any]:
    """The engine, and the version that was asked, else the newest one known."""
    known = find_engine(verdict.candidate.engine).known_versions()
    version = verdict.candidate.settings.version or (known[-1] if known else None)
    return {"name": verdict.candidate.engine, "version": version}


def _rejected(verdict: Verdict) -> dict[str, Any]:
    return {"candidate": verdict.candidate.label, "reasons": [reason.as_json() for reason in verdict.reasons]}


def lock(spec: Spec, source: Source, engine: Mapping[str, Any] | None) -> dict[str, Any]:
    """Every input the plan rests on: a change of any makes it stale. `engine`: name and version."""
    gpu = target_gpu(spec)
    return {
        "model": source.ir.name,
        "revision": source.revision,
        "header_digest": source.header_digest,
        "config_digest": hashlib.sha256(json.dumps(source.ir.config, sort_keys=True, default=str).encode()).hexdigest(),
        **{role: _text_lock(getattr(spec, role)) for role in _TEXTS},
        "gpu": {"name": gpu.name, "memory_bytes": round(gpu.memory_bytes.value), "count": spec.target.count},
        "engine": engine,
        "tightfit": VERSION,
        "data": {name: _file_digest(str(files(room).joinpath(name))) for room, name in _DATA},
    }  # fmt: skip


def _text_lock(text: TextChoice) -> dict[str, Any]:
    return text.model_dump() | {"dataset": _named(text.dataset), "digest": _file_digest(text.dataset)}


def _named(dataset: str) -> str:
    return Path(dataset).name if Path(dataset).is_file() else dataset


def _file_digest(dataset: str) -> str | None:
    path = Path(dataset)
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else None


def digest(document: Mapping[str, Any]) -> str:
    """sha256 over the document but for the places of files."""
    said = {key: value for key, value in document.items() if key not in ("digest", "places")}
    return hashlib.sha256(json.dumps(said, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def save(document: Mapping[str, Any], path: Path) -> None:
    """Write a plan atomically; its folder is made where it is missing."""
    from passes.checkpoint import write_json
    from passes.machine_errors import clear_disk_errors

    with clear_disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, document)


def resolved_plan(document: Mapping[str, Any], passes: Sequence[Pass], tensor_bytes: int) -> dict[str, Any]:
    """A plan whose measured choices are filled in: the same decision where it was resolved already.

    Raises GoalMissedError where the resolved bytes exceed what the bounded plan promised.
    """
    chosen = document["chosen"]
    if tensor_bytes > chosen["tensor_bytes"] or (
        chosen["state"] == "resolved" and tensor_bytes != chosen["tensor_bytes"]
    ):
        raise GoalMissedError(
            f"the measured choices take {tensor_bytes:,} bytes, the plan promised {chosen['tensor_bytes']:,}",
            remedy="plan again",
        )
    decided = {**chosen, "passes": to_json(passes), "tensor_bytes": tensor_bytes, "state": "resolved"}
    out = {**document, "chosen": decided}
    return {**out, "digest": digest(out)}


def load_plan(path: str | Path) -> dict[str, Any]:
    """Read a saved plan. Raises InputError where it is none, or was edited."""
    file = Path(path)
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"no plan at {file}", remedy="`optimize plan SPEC` makes one") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{file} is no plan: {error}", remedy="`optimize plan SPEC` makes one") from None
    if not isinstance(document, dict) or "chosen" not in document or "lock" not in document:
        raise InputError(f"{file} is no plan", remedy="`optimize plan SPEC` makes one")
    if document.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{file} has format {document.get('format_version')!r}, this tightfit reads {FORMAT_VERSION!r}",
            remedy="plan again",
        )
    if digest(document) != document.get("digest"):
        raise InputError(f"{file} was edited since it was made", remedy="change the spec and plan again")
    return document


def spec_of(document: Mapping[str, Any]) -> Spec:
    """The spec inside a plan, with the model where the plan found it."""
    if "places" not in document:
        raise InputError(
            "this plan has left the place it was made at: it names neither model nor texts",
            remedy="apply the plan that `optimize plan` saved, or plan again",
        )
    texts = {role: document["spec"][role] | {"dataset": document["places"][role]} for role in _TEXTS}
    return Spec.model_validate(document["spec"] | texts | {"model": document["places"]["model"]})


def chain_of_plan(document: Mapping[str, Any]) -> tuple[Pass, ...]:
    """The passes that a plan chose."""
    return from_json(document["chosen"]["passes"])


def require_executable(document: Mapping[str, Any]) -> None:
    """Refuse a plan that chose nothing or cannot be run, before anything is done."""
    chosen = document["chosen"]
    if chosen is None:
        raise DoesNotFitError(
            "the plan found nothing that meets the goals", remedy="loosen a goal or change the target, then plan again"
        )
    if not chosen["executable"]:
        raise InputError(
            f"this plan cannot be applied: {'; '.join(chosen['missing'])}", remedy="name a model whose weights are here"
        )


def stale_inputs(document: Mapping[str, Any], spec: Spec, source: Source) -> list[str]:
    """The inputs that have moved since the plan was made: model, texts, card, the tool and its data, the spec's own file."""
    from planner.explain import changes

    engine = document["chosen"]["engine"] if document["chosen"] else None
    moved = changes(document["lock"], lock(spec, source, engine))
    file = document.get("places", {}).get("spec")
    if file is not None and Path(file).is_file():
        moved += changes(document["spec"], _portable_spec(load_spec(file)), "spec")
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
