"""`optimize verify`: start the engine on a result from its launch files, put the load on it, hold it against the prediction.

How an engine is driven is the engine's (`Engine.verifier`); here is what a plan promises of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from passes.errors import GoalMissedError, InputError, Told
from passes.files.atomic import read_json, write_json
from passes.files.manifest import NAME as MANIFEST
from passes.files.manifest import damage, renew
from passes.record import dataclass
from planner.certificate import NAME, Comparison, read_certificate
from planner.choice.goals import Goal
from planner.figures import apart, show
from planner.machine import require_build, require_cards
from planner.plan.codec import to_json
from planner.plan.document import PlanDocument
from planner.plan.parts.chosen import ChosenPlan, PlannedEngine, PlannedGoal
from planner.plan.saved import PLAN, read_plan
from planner.spec.arguments import called, file_named, optional_path, public, record
from planner.verifying.comparing import shown, within
from planner.verifying.report import REPORT, VerifyReport
from planner.verifying.soak import SOAK_SECONDS, promise, request_of, soak_report
from targets.engines.engine import SpeedEstimate, find_engine
from targets.launch.write import FOLDER
from targets.machine.devices import installed_gpus
from targets.serve.load import Load, LoadTiming
from targets.serve.verifier import Observed, VerifyRequest
from targets.speed.estimate import ROUNDS

#: Half of the last digit of the concurrency that vLLM prints.
_AS_PRINTED = 0.005
#: Seconds that the load may take, by the prediction, and the fewest answers that each client waits for all the same.
LOAD_SECONDS, _LEAST_ROUNDS = 120.0, 3


@dataclass(frozen=True, slots=True)
class UnderLoad(metaclass=Told):
    """How a result is put under load. `rate`: requests a second by chance, instead of the workload's clients. `seconds` that the
    load may take, by the prediction (two minutes). `soak`: the same start is then filled to the promised context for as long (ten minutes).
    """

    rate: float | None = None
    seconds: float | None = None
    soak: bool = False


#: The workload's own clients, once.
ONCE = UnderLoad()


@public
def verify(
    out: str | Path,
    engine: Path | None = None,
    *,
    load: UnderLoad = ONCE,
    checkout: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> VerifyReport:
    """Start, measure, stop. Raises InputError where `out` is no result or was planned for another machine or build of the engine,
    EngineError where the engine does not start.

    `engine`: the Python that has it. `checkout`: of a server that is no part of the engine's package, driven too.
    """
    out = file_named("out", out, "the folder of a result")
    engine = optional_path("engine", engine, "the Python that has the engine")
    checkout = optional_path("checkout", checkout, "a folder")
    record("load", load, UnderLoad)
    called("say", say)
    plan = _read(out)
    chosen = plan.decision
    verifier = find_engine(chosen.engine.name).verifier()
    if verifier is None:
        raise InputError(
            f"nothing here drives {chosen.engine.name}, which {out} is made for",
            remedy=f"start it as {out / FOLDER} says, and ask it something",
        )
    if load.soak:
        _require_own_certificate(out)
    require_cards(plan, installed_gpus())
    python = verifier.python(engine)
    installed = verifier.installed(python)
    require_build(plan, installed.build, python)
    say(f"starting {chosen.engine.name} from {out / FOLDER}")
    asked = load_of(plan, load.rate, load.seconds or LOAD_SECONDS)
    promised = promise(out) if load.soak else None
    soaking = request_of(plan, load.seconds or SOAK_SECONDS) if load.soak else None
    cache, cards = chosen.kv_cache.tokens, chosen.settings.gpus
    seen = verifier.observe(
        VerifyRequest(_checkpoint(plan, out), out / FOLDER, python, asked, cache, cards, checkout, soaking), say
    )
    version = seen.version or installed.version
    checks = (*_engine_checks(chosen, seen, version), *_speed_checks(plan, seen.loads[0]))
    soaked = None if promised is None or seen.soaked is None else soak_report(promised, seen.soaked, version)
    report = VerifyReport(
        checks, round(seen.start_seconds, 1), seen.sample[:200], seen.loads, version, seen.notes, soaked
    )
    _record(out, report)
    return report


def _record(out: Path, report: VerifyReport) -> None:
    """Leave what was seen in the result: the report, in its certificate what a soak showed, and both in its list of files."""
    write_json(out / REPORT, report.as_json())
    written = [REPORT]
    if report.soak is not None and (out / NAME).is_file():
        write_json(out / NAME, to_json(read_certificate(out / NAME).soaked(report.soak)))
        written.append(NAME)
    renew(out, written)


def _require_own_certificate(out: Path) -> None:
    """Refuse to put a soak's figures into a certificate that is not what was made, or cannot be read: the list would vouch for both."""
    changed = next((each for each in damage(out, quick=True) if each.file in (NAME, MANIFEST)), None)
    if changed is not None:
        raise GoalMissedError(
            f"{out} is damaged: {changed.message}",
            remedy="`optimize verify --offline` names every file that is another; make the result again",
        )
    if (out / NAME).is_file():
        read_certificate(out / NAME)


def _checkpoint(plan: PlanDocument, out: Path) -> Path:
    """The folder that is served: the result, or the source where that is served as it is and lies here."""
    source = None if plan.places is None else Path(plan.places.model)
    return source if source is not None and source.exists() else out


def _read(out: Path) -> PlanDocument:
    """The plan of a finished result."""
    plan = read_plan(out / PLAN) if (out / PLAN).is_file() else None
    if plan is None or not (plan.places is not None or (out / NAME).is_file()):
        raise InputError(f"{out} is no finished result", remedy="name the folder that `optimize apply` made")
    if plan.places is None:
        read_json(out / NAME, "certificate")
    return plan


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
    ramp_s = workload.ramp_s if rate is None else 0.0
    return Load(workload.input_tokens, workload.output_tokens, clients, requests, rate, ramp_s)


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
    yield within("KV tokens", cache.tokens, seen.kv_tokens, "{:,.0f}", binding=True)
    if seen.max_concurrency is not None:
        yield within(
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
        yield shown(f"TTFT, ms, {asked.arrival}", timing.ttft_ms.mean, "{:.0f}")
        yield shown(f"decode, tok/s, {asked.arrival}", timing.decode_tok_s, "{:.1f}")
        yield shown(f"throughput, tok/s, {asked.arrival}", timing.tok_s, "{:.1f}")
    for goal in plan.decision.goals:
        if (
            goal.name.of_speed and goal.name != Goal.RATE
        ):  # a load of so many requests ends: what grows without end it does not show
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
        yield replace(within(name, predicted, value, form, binding=False), better=better)


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
