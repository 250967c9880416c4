"""A finished result is kept: another plan does not take its place unless it is told to."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from passes.errors import InputError
from passes.files.atomic import read_json
from passes.run.result_folder import aside_of, finished
from planner.certificate import NAME, PLANNED
from planner.quality.expected import growth
from planner.verdict import show

#: The resolved plan in a result's folder.
PLAN = "plan.json"
#: What tells one source from another in a plan's lock.
_SOURCE = ("model", "revision", "header_digest", "config_digest")


def require_own_place(out: Path, plan: Mapping[str, Any], *, calibrated: bool) -> None:
    """Refuse a place that holds the finished result of another plan, saying which (InputError).

    Plans are the same where they make the same checkpoint: the same source, passes and engine, and where the chain is `calibrated` the
    same text for it. Goals, predictions, versions and the text that judges may differ: such a result is brought up to date.
    """
    place = out if out.exists() else aside_of(out)  # where a run that replaced it was ended between two renames
    if not finished(place):
        return
    try:
        earlier, certificate = read_json(place / PLAN, "plan"), _certificate(place)
        differing = tuple(_differences(plan, earlier, certificate, calibrated))
        told = _told(earlier, certificate)
    except (InputError, KeyError, TypeError):
        differing, told = ("all that is known of it",), "what made it cannot be read"
    if differing:
        raise InputError(
            f"{place} holds the finished result of another plan: {told}\n"
            f"  this plan makes {plan['model']}, {plan['chosen']['label']}; it differs in {' and '.join(differing)}",
            remedy="name another folder with -o, or say --replace to lose that one",
        )


def _certificate(place: Path) -> Mapping[str, Any]:
    """The certificate; empty where there is none to read."""
    try:
        found: Mapping[str, Any] = read_json(place / NAME, "certificate")
    except InputError:
        return {}
    return found


def _differences(
    plan: Mapping[str, Any], earlier: Mapping[str, Any], certificate: Mapping[str, Any], calibrated: bool
) -> Iterator[str]:
    """In what the checkpoint of a plan would differ from an earlier one."""
    chosen, made = plan["chosen"], earlier["chosen"]
    if any(plan["lock"][key] != earlier["lock"][key] for key in _SOURCE):
        yield "the model"
    # A choice that waits to be measured stands open in a plan, and made in its result, which remembers how it was planned.
    if _as_read(chosen["passes"]) not in (made["passes"], certificate.get(PLANNED)):
        yield "the passes"
    if chosen["engine"]["name"] != made["engine"]["name"]:
        yield "the engine"
    if calibrated and _as_read(plan["lock"]["calibration"]) != earlier["lock"]["calibration"]:
        yield "the calibration text"


def _as_read(value: Any) -> Any:
    """A value as JSON gives it back."""
    return json.loads(json.dumps(value))


def _told(plan: Mapping[str, Any], certificate: Mapping[str, Any]) -> str:
    """What a result is, and what was measured of it."""
    told, quality = f"{plan['model']}, {plan['chosen']['label']}", certificate.get("quality", {})
    if "kl" in quality:
        told += (
            f", measured KL {show(quality['kl'], 'nats')}, perplexity {show(growth(quality['log_ppl_increase']), '%')}"
        )
    return told
