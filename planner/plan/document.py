"""Saves and reads the plan document; `digest` is a sha256 over all of it but `places`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from passes.base import Pass
from passes.chain import from_json, to_json
from passes.errors import DoesNotFitError, GoalMissedError, InputError
from planner.plan.codec import FORMAT_VERSION
from planner.spec.spec import Spec

#: The parts of a spec that name texts.
TEXTS = ("calibration", "evaluation")


def digest(document: Mapping[str, Any]) -> str:
    """sha256 over the document but for the places of files."""
    said = {key: value for key, value in document.items() if key not in ("digest", "places")}
    return hashlib.sha256(json.dumps(said, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def save(document: Mapping[str, Any], path: Path) -> None:
    """Write a plan atomically; its folder is made where it is missing."""
    from passes.files.atomic import write_json
    from passes.files.os_errors import clear_disk_errors

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
    texts = {role: document["spec"][role] | {"dataset": document["places"][role]} for role in TEXTS}
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
