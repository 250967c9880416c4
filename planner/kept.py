"""A finished result is kept: another plan does not take its place unless it is told to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from passes.errors import DoesNotFitError, InputError
from passes.run.result_folder import aside_of, finished
from planner.certificate import NAME, Certificate, read_certificate
from planner.choice.goals import Goal
from planner.figures import show
from planner.plan.document import PlanDocument
from planner.plan.saved import PLAN, read_plan
from planner.quality.expected import growth

#: What tells one source from another in a plan's lock.
_SOURCE = ("model", "revision", "header_digest", "config_digest")


def require_own_place(out: Path, plan: PlanDocument, *, calibrated: bool) -> None:
    """Refuse a place that holds the finished result of another plan, saying which (InputError).

    Plans are the same where they make the same checkpoint: the same source, passes and engine, and where the chain is `calibrated` the
    same text for it. Goals, predictions, versions and the text that judges may differ: such a result is brought up to date.
    """
    place = out if out.exists() else aside_of(out)  # where a run that replaced it was ended between two renames
    if not finished(place):
        return
    try:
        earlier, certificate = read_plan(place / PLAN), _certificate(place)
        differing = tuple(_differences(plan, earlier, certificate, calibrated))
        told = _told(earlier, certificate)
    except (InputError, DoesNotFitError):
        differing, told = ("all that is known of it",), "what made it cannot be read"
    if differing:
        raise InputError(
            f"{place} holds the finished result of another plan: {told}\n"
            f"  this plan makes {plan.model}, {plan.decision.label}; it differs in {' and '.join(differing)}",
            remedy="name another folder with -o, or say --replace to lose that one",
        )


def _certificate(place: Path) -> Certificate | None:
    """The certificate; None where there is none to read."""
    try:
        return read_certificate(place / NAME)
    except InputError:
        return None


def _differences(
    plan: PlanDocument, earlier: PlanDocument, certificate: Certificate | None, calibrated: bool
) -> Iterator[str]:
    """In what the checkpoint of a plan would differ from an earlier one."""
    chosen, before = plan.decision, earlier.decision
    if any(getattr(plan.lock, name) != getattr(earlier.lock, name) for name in _SOURCE):
        yield "the model"
    # A choice that waits to be measured stands open in a plan, and made in its result, which remembers how it was planned.
    if chosen.passes not in (before.passes, certificate and certificate.planned_passes):
        yield "the passes"
    if chosen.engine.name != before.engine.name:
        yield "the engine"
    if calibrated and plan.lock.calibration != earlier.lock.calibration:
        yield "the calibration text"


def _told(plan: PlanDocument, certificate: Certificate | None) -> str:
    """What a result is, and what was measured of it."""
    told = f"{plan.model}, {plan.decision.label}"
    quality = certificate.quality if certificate else None
    if quality is None or quality.kl is None or quality.log_ppl_increase is None:
        return told
    kl, rise = show(quality.kl, Goal.KL.unit), show(growth(quality.log_ppl_increase), Goal.PERPLEXITY.unit)
    return f"{told}, measured KL {kl}, perplexity {rise}"
