"""The plan as a document: what was chosen, why each other lost, and a lock on every input it rests on.

`planner.plan.codec` writes the fields as the keys of the command-line contract, in their order, and reads them back.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from passes import chain
from passes.base import Pass
from passes.errors import DoesNotFitError, GoalMissedError, InputError
from passes.record import dataclass
from planner.plan.codec import to_json
from planner.plan.parts.chosen import ChosenPlan
from planner.plan.parts.locked import Lock, Places
from planner.plan.parts.others import Alternative, IllegalKind, ParetoPlan, RejectedPlan
from planner.plan.parts.portable import TEXTS, PortableSpec
from planner.spec.parse import validated
from planner.spec.spec import Spec


@dataclass(frozen=True, slots=True)
class PlanDocument:
    """A plan as it is saved. `weights`: their count. `searched`: candidates settled. `digest`: sha256 over all but itself and `places`;
    no timestamp or path is inside of what is hashed. A plan that has left the place where it was made has no `places`.
    """

    format_version: str
    model: str
    weights: int
    spec: PortableSpec
    chosen: ChosenPlan | None
    rejected: tuple[RejectedPlan, ...]
    alternatives: tuple[Alternative, ...]
    illegal: tuple[IllegalKind, ...]
    pareto: tuple[ParetoPlan, ...]
    searched: int
    lock: Lock
    digest: str
    places: Places | None = None
    lost: int = 0
    """Designs that lost, each with its best settings: `explain` lists so many."""

    @property
    def decision(self) -> ChosenPlan:
        """What was chosen. Raises DoesNotFitError where nothing was."""
        if self.chosen is None:
            raise DoesNotFitError(
                "the plan found nothing that meets the goals",
                remedy="loosen a goal or change the target, then plan again",
            )
        return self.chosen


def digest(document: Mapping[str, Any]) -> str:
    """Return the sha256 over a plan's JSON but for the places of files."""
    said = {key: value for key, value in document.items() if key not in ("digest", "places")}
    return hashlib.sha256(json.dumps(said, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def sealed(document: PlanDocument) -> PlanDocument:
    """Return a plan with the digest of what it says."""
    return replace(document, digest=digest(to_json(document)))


def portable(document: PlanDocument) -> PlanDocument:
    """Return a plan as it travels with its result: without the places of this machine."""
    return replace(document, places=None)


def resolved_plan(document: PlanDocument, passes: Sequence[Pass], tensor_bytes: int) -> PlanDocument:
    """Return a plan whose measured choices are filled in: the same decision where it was resolved already.

    Raises GoalMissedError where the resolved bytes exceed what the bounded plan promised.
    """
    chosen = document.decision
    if tensor_bytes > chosen.tensor_bytes or (chosen.state == "resolved" and tensor_bytes != chosen.tensor_bytes):
        raise GoalMissedError(
            f"the measured choices take {tensor_bytes:,} bytes, the plan promised {chosen.tensor_bytes:,}",
            remedy="plan again",
        )
    steps = tuple(to_json(chain.to_json(passes)))
    return sealed(replace(document, chosen=replace(chosen, passes=steps, tensor_bytes=tensor_bytes, state="resolved")))


def asked_spec(document: PlanDocument) -> Spec:
    """Return the spec as `spec_of` does, with the model that was asked for where a published checkpoint of it was chosen."""
    spec = spec_of(document)
    asked = document.places.asked if document.places else None
    return spec if asked is None else spec.model_copy(update={"model": asked})


def spec_of(document: PlanDocument) -> Spec:
    """Return the spec inside a plan, with the model where the plan found it."""
    if document.places is None:
        raise InputError(
            "this plan has left the place it was made at: it names neither model nor texts",
            remedy="say where the model is (apply --model), apply the plan that `optimize plan` saved, or plan again",
        )
    spec = to_json(document.spec)
    texts = {role: spec[role] | {"dataset": getattr(document.places, role)} for role in TEXTS}
    return validated(None, spec | texts | {"model": document.places.model}, "the spec in the plan")


def moved_plan(document: PlanDocument, places: Mapping[str, Path]) -> PlanDocument:
    """Return a plan whose model and texts lie elsewhere now, by what they are called in `Places`. What they are decides whether it is
    stale, not what they are called.
    """
    known = document.places or Places("", document.spec.calibration.dataset, document.spec.evaluation.dataset)
    if not known.model and "model" not in places:
        raise InputError("this plan has left the place it was made at", remedy="say where the model is: --model PATH")
    now = {name: str(path.resolve()) for name, path in places.items()}
    return replace(document, places=replace(known, spec=None, moved=tuple(now), **now))


def require_executable(document: PlanDocument) -> None:
    """Refuse a plan that chose nothing or cannot be run, before anything is done."""
    chosen = document.decision
    if not chosen.executable:
        raise InputError(
            f"this plan cannot be applied: {'; '.join(chosen.missing)}", remedy="name a model whose weights are here"
        )
