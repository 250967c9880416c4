"""The Plan document: what was chosen, why each other lost, and a lock on every input it rests on.

JSON with `format_version`. `digest` is a sha256 over all of it but `places`, where its files are on this machine; no timestamp or
path is inside of what is hashed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from passes.base import Pass
from passes.chain import missing, rewrite, to_json
from passes.ir.sources import Source, open_model
from passes.text.source import refuse_same_text
from planner.alternatives import alternatives
from planner.apply_cost import effort
from planner.plan.codec import FORMAT_VERSION, quantity_json, settings_json
from planner.plan.document import TEXTS, digest
from planner.plan.lock import lock, portable_spec
from planner.search import SearchResult, search
from planner.spec.parse import load_spec
from planner.spec.spec import Spec
from planner.verdict import Verdict, estimates_json
from targets.engines.engine import find_engine

if TYPE_CHECKING:
    from passes.steps.progress import Progress
    from planner.quality.trials import Trial


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
        from planner.quality.trials import trials

        tried = trials(spec, source, result, measure, progress)
        result = search(spec, source.ir, measured={chain: trial.quality for chain, trial in tried.items()})
    chosen = _resolved(result.chosen, source, tried)
    document: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "model": source.ir.name,
        "weights": source.ir.weights,
        "spec": portable_spec(spec),
        "chosen": None if chosen is None else _chosen(spec, chosen, source),
        "rejected": [_rejected(v) for v in result.nearest()],
        "alternatives": [] if chosen else list(alternatives(spec, source.ir)),
        "illegal": result.illegal,
        "pareto": [{"candidate": v.candidate.label, **estimates_json(v)} for v in result.pareto],
        "searched": result.searched,
        "lock": lock(spec, source, _engine(chosen) if chosen else None),
    }
    document["digest"] = digest(document)
    document["places"] = {"model": _place(spec.model)} | {role: _place(getattr(spec, role).dataset) for role in TEXTS}
    if file is not None:
        document["places"]["spec"] = str(file.resolve())
    return Plan(document, spec, source, result)


def _resolved(verdict: Verdict | None, source: Source, tried: Mapping[tuple[Pass, ...], Trial]) -> Verdict | None:
    """The chosen verdict with the choices that its trial made."""
    if verdict is None or verdict.candidate.passes not in tried:
        return verdict
    passes = tried[verdict.candidate.passes].passes
    return replace(verdict, candidate=replace(verdict.candidate, passes=passes), ir=rewrite(source.ir, passes))


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
                "name": g.goal,
                "wanted": g.wanted,
                "unit": g.goal.unit,
                "at_most": g.goal.at_most,
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
