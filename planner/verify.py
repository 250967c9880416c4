"""`optimize verify`: start the engine on a result from its launch files, measure, hold it against the prediction."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from passes.errors import InputError
from passes.files.atomic import read_json, write_json
from planner.certificate import NAME
from planner.goals import Goal
from planner.machine import require_build, require_cards
from planner.plan.codec import FORMAT_VERSION
from targets.launch.write import FOLDER
from targets.machine.devices import installed_gpus
from targets.serve.client import Timing, measure
from targets.serve.engine_build import engine_build
from targets.serve.process import Served, engine_python, serving

#: What `verify` writes into the result.
REPORT = "verified.json"


@dataclass(frozen=True)
class VerifyReport:
    """What the running engine showed, check by check; `holds` when every binding check does."""

    checks: tuple[Mapping[str, Any], ...]
    start_seconds: float
    sample: str

    @property
    def holds(self) -> bool:
        """Whether every promise is kept."""
        return all(check["holds"] or not check["binding"] for check in self.checks)

    def as_json(self) -> dict[str, Any]:
        """The report as a document."""
        return {
            "format_version": FORMAT_VERSION, "holds": self.holds, "checks": list(self.checks),
            "start_seconds": round(self.start_seconds, 1), "sample": self.sample,
        }  # fmt: skip


def verify(out: Path, engine: Path | None = None, *, say: Callable[[str], None] = lambda text: None) -> VerifyReport:
    """Start, measure, stop. Raises InputError where `out` is no result or was planned for another machine or build of the engine,
    EngineError where the engine does not start.
    """
    plan, _ = _read(out)
    engine_name = plan["chosen"]["engine"]["name"]
    if not engine_name.startswith("vllm"):
        raise InputError(
            f"verify drives vLLM; {out} is made for {engine_name}",
            remedy=f"start it as {out / FOLDER} says, and ask it something",
        )
    require_cards(plan, installed_gpus())
    script = out / FOLDER / "run.sh"
    config = yaml.safe_load((out / FOLDER / "vllm.yaml").read_text(encoding="utf-8"))
    workload = plan["spec"]["workload"]
    python = engine_python(engine)
    require_build(plan, engine_build(python), python)
    say(f"starting {engine_name} from {script}")
    with serving(script, python) as served:
        say(f"answers after {served.start_seconds:.0f} s; measuring")
        timing = measure(
            served, config["served-model-name"], input_tokens=workload["input_tokens"],
            output_tokens=min(workload["output_tokens"], 64), requests=5,
        )  # fmt: skip
        report = VerifyReport(tuple(_checks(plan, served, timing)), served.start_seconds, timing.text[:200])
    write_json(out / REPORT, report.as_json())
    return report


def _read(out: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    if not (out / NAME).is_file() or not (out / "plan.json").is_file():
        raise InputError(f"{out} is no finished result", remedy="name the folder that `optimize apply` made")
    return read_json(out / "plan.json", "plan"), read_json(out / NAME, "certificate")


def _checks(plan: Mapping[str, Any], served: Served, timing: Timing) -> list[dict[str, Any]]:
    chosen = plan["chosen"]
    kv, speed = chosen["kv_cache"], chosen["speed"]
    tokens = served.kv_tokens()
    out = [_within("KV tokens", kv["tokens"], tokens, "{:,.0f}", binding=True)]
    out.append(
        _within(
            "concurrency at full context",
            kv["max_concurrency"],
            served.max_concurrency(),
            "{:.2f}",
            binding=False,
            slack=0.005,
        )
    )
    asked_alone = plan["spec"]["workload"]["concurrency"] == 1
    if asked_alone:
        out.append(_within("TTFT, ms", speed["ttft_ms"], timing.ttft_ms, "{:.0f}", binding=False))
        out.append(
            _within("decode, tok/s", speed["decode_tok_s_per_request"], timing.decode_tok_s, "{:.1f}", binding=False)
        )
    else:
        out.append(_shown("TTFT alone, ms", timing.ttft_ms, "{:.0f}"))
        out.append(_shown("decode alone, tok/s", timing.decode_tok_s, "{:.1f}"))
    measured = {Goal.TTFT: timing.ttft_ms, Goal.TPOT: timing.tpot_ms, Goal.DECODE: timing.decode_tok_s}
    for goal in chosen["goals"]:
        if goal["name"] in measured and asked_alone:
            value, at_most = measured[Goal(goal["name"])], goal["at_most"]
            met = value <= goal["wanted"] if at_most else value >= goal["wanted"]
            sign = "≤" if at_most else "≥"
            out.append(
                {
                    "name": f"goal: {goal['name']}",
                    "predicted": f"{sign} {goal['wanted']:g} {goal['unit']}",
                    "measured": f"{value:.1f} {goal['unit']}",
                    "holds": met,
                    "binding": True,
                }
            )
    return out


def _within(
    name: str, predicted: Mapping[str, Any], value: float | None, form: str, *, binding: bool, slack: float = 0.0
) -> dict[str, Any]:
    """A measured figure against its interval; an exact prediction must be met exactly (`slack`: as printed)."""
    if value is None:
        return {
            "name": name,
            "predicted": form.format(predicted["value"]),
            "measured": "not printed",
            "holds": False,
            "binding": binding,
        }
    low, high = predicted["low"] - slack, predicted["high"] + slack
    interval = (
        ""
        if predicted["low"] == predicted["high"]
        else f" ({form.format(predicted['low'])} … {form.format(predicted['high'])})"
    )
    return {
        "name": name,
        "predicted": form.format(predicted["value"]) + interval,
        "measured": form.format(value),
        "holds": low <= value <= high,
        "binding": binding,
    }


def _shown(name: str, value: float, form: str) -> dict[str, Any]:
    return {"name": name, "predicted": "", "measured": form.format(value), "holds": True, "binding": False}
