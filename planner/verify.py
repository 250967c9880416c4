"""`optimize verify`: start the engine on a result from its launch files, measure, hold it against the prediction."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from passes.errors import InputError
from passes.files.atomic import read_json, write_json
from planner.certificate import NAME, Comparison, kept
from planner.choice.goals import Goal
from planner.machine import require_build, require_cards
from planner.plan.codec import FORMAT_VERSION, to_json
from planner.plan.document import PlanDocument
from planner.plan.saved import PLAN, read_plan
from targets.engines.engine import ServerLog, find_engine
from targets.launch.write import FOLDER
from targets.machine.devices import installed_gpus
from targets.quantity import Quantity
from targets.serve.client import Timing, measure
from targets.serve.engine_build import engine_build
from targets.serve.process import engine_python, serving

#: What `verify` writes into the result.
REPORT = "verified.json"
#: Half of the last digit of the concurrency that vLLM prints.
_AS_PRINTED = 0.005


@dataclass(frozen=True)
class VerifyReport:
    """What the running engine showed, check by check; `holds` when every binding check does."""

    checks: tuple[Comparison, ...]
    start_seconds: float
    sample: str

    @property
    def holds(self) -> bool:
        """Whether every promise is kept."""
        return kept(self.checks)

    def as_json(self) -> dict[str, Any]:
        """The report as a document."""
        return {
            "format_version": FORMAT_VERSION, "holds": self.holds, "checks": to_json(self.checks),
            "start_seconds": self.start_seconds, "sample": self.sample,
        }  # fmt: skip


def verify(out: Path, engine: Path | None = None, *, say: Callable[[str], None] = lambda text: None) -> VerifyReport:
    """Start, measure, stop. Raises InputError where `out` is no result or was planned for another machine or build of the engine,
    EngineError where the engine does not start.
    """
    plan = _read(out)
    engine_name = plan.decision.engine.name
    target = find_engine(engine_name)
    if (server := target.server) is None:
        raise InputError(
            f"verify drives vLLM; {out} is made for {engine_name}",
            remedy=f"start it as {out / FOLDER} says, and ask it something",
        )
    require_cards(plan, installed_gpus())
    script = out / FOLDER / "run.sh"
    workload = plan.spec.workload
    python = engine_python(engine)
    require_build(plan, engine_build(python), python)
    say(f"starting {engine_name} from {script}")
    with serving(script, python) as served:
        say(f"answers after {served.start_seconds:.0f} s; measuring")
        timing = measure(
            served, target.served_name(out / FOLDER), input_tokens=workload.input_tokens,
            output_tokens=min(workload.output_tokens, 64), requests=5,
        )  # fmt: skip
        log = served.log.read_text(errors="replace")
        checks = tuple(_checks(plan, server, log, timing))
        report = VerifyReport(checks, round(served.start_seconds, 1), timing.text[:200])
    write_json(out / REPORT, report.as_json())
    return report


def _read(out: Path) -> PlanDocument:
    """The plan of a finished result."""
    if not (out / NAME).is_file() or not (out / PLAN).is_file():
        raise InputError(f"{out} is no finished result", remedy="name the folder that `optimize apply` made")
    read_json(out / NAME, "certificate")
    return read_plan(out / PLAN)


def _checks(plan: PlanDocument, server: ServerLog, log: str, timing: Timing) -> Iterator[Comparison]:
    chosen = plan.decision
    kv, speed = chosen.kv_cache, chosen.speed
    yield _within("KV tokens", kv.tokens, server.kv_tokens(log), "{:,.0f}", binding=True)
    concurrency = server.max_concurrency(log)
    yield _within(
        "concurrency at full context", kv.max_concurrency, concurrency, "{:.2f}", binding=False, slack=_AS_PRINTED
    )
    asked_alone = plan.spec.workload.concurrency == 1
    if not asked_alone or speed is None:
        yield _shown("TTFT alone, ms", timing.ttft_ms, "{:.0f}")
        yield _shown("decode alone, tok/s", timing.decode_tok_s, "{:.1f}")
        return
    yield _within("TTFT, ms", speed.ttft_ms, timing.ttft_ms, "{:.0f}", binding=False)
    yield _within("decode, tok/s", speed.decode_tok_s_per_request, timing.decode_tok_s, "{:.1f}", binding=False)
    measured = {Goal.TTFT: timing.ttft_ms, Goal.TPOT: timing.tpot_ms, Goal.DECODE: timing.decode_tok_s}
    for goal in chosen.goals:
        if goal.name in measured:
            value = measured[goal.name]
            met = value <= goal.wanted if goal.at_most else value >= goal.wanted
            wanted = f"{'≤' if goal.at_most else '≥'} {goal.wanted:g} {goal.unit}"
            yield Comparison(f"goal: {goal.name}", wanted, f"{value:.1f} {goal.unit}", met, binding=True)


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
