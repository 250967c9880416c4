"""What the work takes, step by step, and what all of it rests on."""

from __future__ import annotations

from collections.abc import Iterator

from passes.record import dataclass
from planner.figures import show, show_interval
from planner.report.facts import Facts


@dataclass(frozen=True, slots=True)
class Step:
    """A step of the work: seconds expected and taken, peak memory; `share` of the longest, for its bar."""

    name: str
    expected: str
    taken: str
    memory: str
    share: float


@dataclass(frozen=True, slots=True)
class Work:
    """The steps, and in a line what they take in all."""

    steps: tuple[Step, ...]
    said: str
    measured: bool


def work(facts: Facts) -> Work | None:
    """Lay out the steps of a result, as they were; else of the plan, as they are expected. None where nothing is to be made."""
    if facts.plan.chosen is None or facts.plan.chosen.nothing_to_make:
        return None
    effort, certificate = facts.plan.chosen.apply, facts.certificate
    if certificate is not None:
        longest = max((step.seconds for step in certificate.steps), default=0.0) or 1.0
        steps = tuple(
            Step(
                step.name + (" (kept from before)" if step.reused else ""),
                "" if step.expected_seconds is None else _seconds(step.expected_seconds),
                _seconds(step.seconds), show(step.peak_bytes, "B"), round(100 * step.seconds / longest, 1),
            )
            for step in certificate.steps
        )  # fmt: skip
        taken = sum(step.seconds for step in certificate.steps)
        return Work(steps, f"The work took {_seconds(taken)}.", measured=True)
    longest = max(effort.steps.values(), default=0.0) or 1.0
    planned = tuple(
        Step(name, _seconds(seconds), "", "", round(100 * seconds / longest, 1))
        for name, seconds in effort.steps.items()
    )
    return Work(planned, " ".join(_efforts(facts)), measured=False)


def _seconds(seconds: float) -> str:
    return show(seconds / 3600, "h")


def _efforts(facts: Facts) -> Iterator[str]:
    chosen = facts.plan.chosen
    for effort in () if chosen is None else (chosen.apply, chosen.apply_on_card):
        if effort is not None:
            hours, memory = effort.seconds.scaled(1 / 3600), effort.memory_bytes
            where = effort.device or "this machine"
            yield (
                f"On {where}: {show_interval(hours, 'h')}, {show_interval(memory, 'B')} of memory, "
                f"{show(effort.disk_bytes, 'B')} of disk ({effort.seconds.basis})."
            )


def provenance(facts: Facts) -> tuple[tuple[str, str], ...]:
    """Return every input that the plan rests on, by name."""
    return tuple((name, said) for name, said in _provenance(facts) if said)


def _provenance(facts: Facts) -> Iterator[tuple[str, str]]:
    plan = facts.plan
    lock = plan.lock
    yield "Model", lock.model
    yield "Revision", lock.revision or ""
    yield "Tensors (sha256 of headers)", lock.header_digest
    yield "config.json (sha256)", lock.config_digest
    for name, text in (("Calibration", lock.calibration), ("Evaluation", lock.evaluation)):
        digest = f", sha256 {text.digest}" if text.digest else ""
        yield name, f"{text.dataset}, {text.samples} × {text.length} tokens, seed {text.seed}{digest}"
    yield "Card", f"{lock.gpu.count} × {lock.gpu.name}, {show(lock.gpu.memory_bytes, 'B')}"
    if lock.engine is not None:
        yield "Engine", f"{lock.engine.name} {lock.engine.version or ''}".strip()
    yield "tightfit", lock.tightfit
    for name, digest in lock.data.items():
        yield f"Data: {name}", str(digest)
    yield "Plan (sha256)", plan.digest
    if facts.certificate is not None:
        yield "Result of plan (sha256)", facts.certificate.plan_digest
