"""A finished result as somebody else gets it: whether its files are what was made, where it comes from, what of it nobody measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from passes.errors import InputError
from passes.files.manifest import NAME as MANIFEST
from passes.files.manifest import Damage, damage, manifest_digest
from passes.record import dataclass
from planner.certificate import NAME, Certificate
from planner.plan.parts.locked import LockedText
from planner.plan.saved import PLAN, read_plan
from planner.verifying.report import REPORT, read_report


@dataclass(frozen=True)
class FilesReport:
    """What a result's files are against the list that `apply` wrote: `damage` names each that is another. `quick`: large ones by their
    size alone. `digest`: of the list, None where an older version wrote none.
    """

    holds: bool
    digest: str | None
    damage: tuple[Damage, ...]
    quick: bool


def verify_files(out: Path, *, quick: bool = False) -> FilesReport:
    """Return whether a result is what was made, without starting anything. `quick` says nothing of a result without a list, else that is
    no proof. Raises InputError where `out` is no result.
    """
    if not (out / MANIFEST).is_file() and not (out / NAME).is_file():
        raise InputError(f"{out} is no finished result", remedy="name the folder that `optimize apply` made")
    found, digest = damage(out, quick=quick), manifest_digest(out)
    if digest is None and not found and not quick:
        message = f"{MANIFEST} is missing: nothing says what the files were (results of older versions have none)"
        found = (Damage(MANIFEST, "missing", message),)
    return FilesReport(not found, digest, tuple(map(_explained, found)), quick)


def _explained(each: Damage) -> Damage:
    """Say of what `verify` writes that it may have come from there: its earlier versions put it into no list."""
    if (each.file, each.kind) != (REPORT, "added"):
        return each
    message = (
        f"{REPORT} is not in the list: `optimize verify` of an earlier version wrote it so, or somebody else did; "
        "verify the result again, which lists it"
    )
    return replace(each, message=message)


@dataclass(frozen=True)
class Origin:
    """Where a result comes from and what it was made for. `unmeasured`: what is predicted and was never measured."""

    card: str
    cards: int
    engine: str
    engine_version: str | None
    context: int
    concurrency: int | None
    input_tokens: int
    output_tokens: int
    revision: str | None
    header_digest: str
    calibration: str
    evaluation: str
    tightfit: str
    unmeasured: tuple[str, ...]


def origin(out: Path, certificate: Certificate) -> Origin | None:
    """Return what the plan of a result says of it, and what nobody measured yet; None where the plan is not there."""
    if not (out / PLAN).is_file():
        return None
    plan = read_plan(out / PLAN)
    lock, workload, chosen = plan.lock, plan.spec.workload.asked, plan.decision
    quality = [] if certificate.quality.perplexity is not None else ["quality"]
    report = read_report(out)
    served = [] if report is not None else ["the engine's start", "KV tokens", "TTFT and decode speed"]
    soaked = [] if certificate.soak is not None else ["the full context under load (--soak)"]
    return Origin(
        card=lock.gpu.name, cards=chosen.settings.gpus, engine=chosen.engine.name, engine_version=chosen.engine.version,
        context=workload.context, concurrency=workload.concurrency, input_tokens=workload.input_tokens,
        output_tokens=workload.output_tokens, revision=lock.revision, header_digest=lock.header_digest, calibration=_said(lock.calibration),
        evaluation=_said(lock.evaluation), tightfit=lock.tightfit, unmeasured=(*quality, *served, *soaked),
    )  # fmt: skip


def _said(text: LockedText) -> str:
    """A text as people read it, with the beginning of its file's sha256."""
    digest = f", sha256 {text.digest[:12]}" if text.digest else ""
    return f"{text.dataset}, {text.samples} × {text.length} tokens{digest}"
