"""`optimize verify`: start the engine on a result from its launch files, put the load on it, hold it against the prediction.

How an engine is driven is the engine's (`Engine.verifier`); here is what a plan promises of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from passes.errors import InputError
from passes.files.atomic import read_json, write_json
from passes.files.manifest import NAME as MANIFEST
from passes.files.manifest import Damage, damage, manifest_digest
from planner.certificate import NAME, Certificate, Comparison, kept
from planner.choice.goals import Goal
from planner.figures import apart, show
from planner.machine import require_build, require_cards
from planner.plan.codec import FORMAT_VERSION, to_json
from planner.plan.document import ChosenPlan, LockedText, PlanDocument, PlannedEngine, PlannedGoal
from planner.plan.saved import PLAN, read_plan
from planner.spec.arguments import file_named
from targets.engines.engine import SpeedEstimate, find_engine
from targets.launch.write import FOLDER
from targets.machine.devices import installed_gpus
from targets.quantity import Quantity
from targets.serve.load import Load, LoadTiming
from targets.serve.verifier import Observed, VerifyRequest
from targets.speed.estimate import ROUNDS

#: What `verify` writes into the result.
REPORT = "verified.json"
#: Half of the last digit of the concurrency that vLLM prints.
_AS_PRINTED = 0.005
#: Seconds that the load may take, by the prediction, and the fewest answers that each client waits for all the same.
LOAD_SECONDS, _LEAST_ROUNDS = 120.0, 3


@dataclass(frozen=True)
class VerifyReport:
    """What the running engine showed, check by check; `holds` when every binding check does. `loads`: every load that was put on, the
    first of which the checks are about; `notes`: what was not done as asked.
    """

    checks: tuple[Comparison, ...]
    start_seconds: float
    sample: str
    loads: tuple[LoadTiming, ...] = ()
    engine_version: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def holds(self) -> bool:
        """Whether every promise is kept."""
        return kept(self.checks)

    def as_json(self) -> dict[str, Any]:
        """Return the report as a document."""
        return {
            "format_version": FORMAT_VERSION, "holds": self.holds, "checks": to_json(self.checks),
            "start_seconds": self.start_seconds, "sample": self.sample, "loads": to_json(self.loads),
            "engine_version": self.engine_version, "notes": list(self.notes),
        }  # fmt: skip


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
    return FilesReport(not found, digest, found, quick)


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
    served = [] if (out / REPORT).is_file() else ["the engine's start", "KV tokens", "TTFT and decode speed"]
    return Origin(
        card=lock.gpu.name, cards=chosen.settings.gpus, engine=chosen.engine.name, engine_version=chosen.engine.version,
        context=workload.context, concurrency=workload.concurrency, input_tokens=workload.input_tokens,
        output_tokens=workload.output_tokens, revision=lock.revision, header_digest=lock.header_digest, calibration=_said(lock.calibration),
        evaluation=_said(lock.evaluation), tightfit=lock.tightfit, unmeasured=(*quality, *served),
    )  # fmt: skip


def _said(text: LockedText) -> str:
    """A text as people read it, with the beginning of its file's sha256."""
    digest = f", sha256 {text.digest[:12]}" if text.digest else ""
    return f"{text.dataset}, {text.samples} × {text.length} tokens{digest}"


def verify(
    out: str | Path,
    engine: Path | None = None,
    *,
    rate: float | None = None,
    checkout: Path | None = None,
    seconds: float = LOAD_SECONDS,
    say: Callable[[str], None] = lambda text: None,
) -> VerifyReport:
    """Start, measure, stop. Raises InputError where `out` is no result or was planned for another machine or build of the engine,
    EngineError where the engine does not start.

    `engine`: the Python that has it. `rate`: requests a second that arrive by chance, instead of the workload's clients. `checkout`:
    of a server that is no part of the engine's package, driven too. `seconds` that the load may take, by the prediction.
    """
    out = file_named("out", out, "the folder of a result")
    plan = _read(out)
    chosen = plan.decision
    verifier = find_engine(chosen.engine.name).verifier()
    if verifier is None:
        raise InputError(
            f"nothing here drives {chosen.engine.name}, which {out} is made for",
            remedy=f"start it as {out / FOLDER} says, and ask it something",
        )
    require_cards(plan, installed_gpus())
    python = verifier.python(engine)
    installed = verifier.installed(python)
    require_build(plan, installed.build, python)
    say(f"starting {chosen.engine.name} from {out / FOLDER}")
    asked = load_of(plan, rate, seconds)
    cache, cards = chosen.kv_cache.tokens, chosen.settings.gpus
    seen = verifier.observe(VerifyRequest(out, out / FOLDER, python, asked, cache, cards, checkout), say)
    version = seen.version or installed.version
    checks = (*_engine_checks(chosen, seen, version), *_speed_checks(plan, seen.loads[0]))
    report = VerifyReport(checks, round(seen.start_seconds, 1), seen.sample[:200], seen.loads, version, seen.notes)
    write_json(out / REPORT, report.as_json())
    return report


def _read(out: Path) -> PlanDocument:
    """The plan of a finished result."""
    if not (out / NAME).is_file() or not (out / PLAN).is_file():
        raise InputError(f"{out} is no finished result", remedy="name the folder that `optimize apply` made")
    read_json(out / NAME, "certificate")
    return read_plan(out / PLAN)


def load_of(plan: PlanDocument, rate: float | None = None, seconds: float = LOAD_SECONDS) -> Load:
    """Return the plan's workload as a load. Each client waits for as many answers as the prediction is made for, for fewer where that would
    take longer than `seconds`; at a rate, what arrives in that time.
    """
    clients, speed = _clients(plan), plan.decision.speed
    workload = plan.spec.workload.asked
    rounds = _LEAST_ROUNDS
    if speed is not None:
        round_seconds = clients * workload.output_tokens / speed.throughput_tok_s.value
        rounds = int(min(ROUNDS, max(_LEAST_ROUNDS, seconds / round_seconds)))
    requests = rounds * clients
    if rate is not None:
        requests = max(_LEAST_ROUNDS, min(requests, int(rate * seconds)))
    return Load(workload.input_tokens, workload.output_tokens, clients, requests, rate)


def _clients(plan: PlanDocument) -> int:
    """The clients that a plan is made for: those asked for, else those it chose."""
    asked, needs = plan.spec.workload.asked.concurrency, plan.decision.capacity
    return asked or (needs.clients if needs else 1)


def _engine_checks(chosen: ChosenPlan, seen: Observed, version: str | None) -> Iterator[Comparison]:
    """Which engine ran, and the cache that it holds."""
    yield _version(chosen.engine, version)
    if not seen.tells_cache:
        return
    cache = chosen.kv_cache
    yield _within("KV tokens", cache.tokens, seen.kv_tokens, "{:,.0f}", binding=True)
    if seen.max_concurrency is not None:
        yield _within(
            "concurrency at full context", cache.max_concurrency, seen.max_concurrency, "{:.2f}", binding=False, slack=_AS_PRINTED
        )  # fmt: skip


def _version(planned: PlannedEngine, running: str | None) -> Comparison:
    """The version that ran beside the planned one: to know why figures differ, not a promise."""
    wanted = planned.version
    same = wanted is None or (running is not None and f"{running}.".startswith(f"{wanted}."))
    return Comparison(f"{planned.name} version", wanted or "any", running or "unknown", same, binding=False)


def _speed_checks(plan: PlanDocument, timing: LoadTiming) -> Iterator[Comparison]:
    """The load against the prediction and the goals, by the means that both are about; without either where it was another load."""
    asked, speed = timing.load, plan.decision.speed
    yield Comparison("requests without an answer", "0", f"{timing.failed:,}", timing.failed == 0, binding=True)
    planned_load = asked.rate is None and asked.concurrency == _clients(plan)
    if planned_load and speed is not None:
        yield from _predicted(speed, timing)
    else:
        yield _shown(f"TTFT, ms, {asked.arrival}", timing.ttft_ms.mean, "{:.0f}")
        yield _shown(f"decode, tok/s, {asked.arrival}", timing.decode_tok_s, "{:.1f}")
        yield _shown(f"throughput, tok/s, {asked.arrival}", timing.tok_s, "{:.1f}")
    for goal in plan.decision.goals:
        if goal.name.of_speed:
            judged = planned_load or (asked.rate is not None and goal.name != Goal.THROUGHPUT)
            yield _goal(goal, timing, judged=judged)


def _predicted(speed: SpeedEstimate, timing: LoadTiming) -> Iterator[Comparison]:
    for name, predicted, value, form, at_most in (
        ("TTFT, ms", speed.ttft_ms, timing.ttft_ms.mean, "{:.0f}", True),
        ("TPOT, ms", speed.tpot_ms, timing.tpot_ms.mean, "{:.2f}", True),
        ("decode, tok/s", speed.decode_tok_s_per_request, timing.decode_tok_s, "{:.1f}", False),
        ("throughput, tok/s", speed.throughput_tok_s, timing.tok_s, "{:.1f}", False),
    ):
        better = value < predicted.low if at_most else value > predicted.high
        yield replace(_within(name, predicted, value, form, binding=False), better=better)


def _goal(goal: PlannedGoal, timing: LoadTiming, *, judged: bool) -> Comparison:
    """A goal on speed against the load; one that this load says nothing about is told as such, and binds nothing."""
    sign = "≤" if goal.at_most else "≥"
    if not judged:
        wanted = f"{sign} {show(goal.wanted, goal.unit)}"
        return Comparison(f"goal: {goal.said}", wanted, f"not measured ({timing.load.arrival})", False, binding=False)
    value = {
        Goal.TTFT: timing.ttft_ms.statistic(goal.statistic), Goal.TPOT: timing.tpot_ms.statistic(goal.statistic),
        Goal.DECODE: timing.decode_tok_s, Goal.THROUGHPUT: timing.tok_s,
    }[goal.name]  # fmt: skip
    met = value <= goal.wanted if goal.at_most else value >= goal.wanted
    bound, measured = apart(goal.wanted, value, goal.unit)
    return Comparison(f"goal: {goal.said}", f"{sign} {bound}", measured, met, binding=True)


def _within(
    name: str, predicted: Quantity, value: float | None, form: str, *, binding: bool, slack: float = 0.0
) -> Comparison:
    """A measured figure against its interval; an exact prediction must be met exactly (`slack`: as printed)."""
    expected = form.format(predicted.value)
    if value is None:
        return Comparison(name, expected, "not printed", False, binding)
    if predicted.low != predicted.high:
        expected += f" ({form.format(predicted.low)} … {form.format(predicted.high)})"
    holds = predicted.low - slack <= value <= predicted.high + slack
    return Comparison(name, expected, form.format(value), holds, binding)


def _shown(name: str, value: float, form: str) -> Comparison:
    return Comparison(name, "", form.format(value), True, binding=False)
