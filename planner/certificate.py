"""The certificate of a result: what was promised and what was measured, slot by slot. Pure; `planner.apply` writes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from passes.files.checkpoint import Checkpoint
from passes.measure.evaluate import Measured
from passes.run.job import Outcome
from planner.goals import Goal
from planner.plan.codec import FORMAT_VERSION, quantity_json
from planner.quality.expected import growth, perplexity_growth
from planner.verdict import show_interval
from targets.quantity import Basis, Quantity

NAME = "certificate.json"
#: Where it keeps the passes as they were planned, choices that had to be measured still open.
PLANNED = "planned_passes"


def certificate(plan: Mapping[str, Any], outcome: Outcome, folder: Path) -> dict[str, Any]:
    """The document on the result in `folder`. `holds` says whether every check does."""
    chosen = plan["chosen"]
    stored = list(Checkpoint(folder).describe())
    measured_bytes = sum(tensor.bytes for tensor in stored)
    measured, quality = outcome.measured, chosen["quality"]
    found = _measured(measured)
    checks = [
        _check(
            "bytes of tensors",
            f"{chosen['tensor_bytes']:,}",
            f"{measured_bytes:,}",
            measured_bytes == chosen["tensor_bytes"],
        ),
        _check(
            "tensors in their format",
            f"{sum(1 for _ in outcome.target.tensors()):,}",
            f"{len(stored):,}",
            _same(outcome, stored),
        ),
        *_losses(quality, found),
    ]
    work = chosen["apply"]
    checks.append(_cost("seconds of work", work["seconds"], sum(step.seconds for step in outcome.steps), "{:.0f}"))
    checks.append(
        _cost(
            "peak memory, MiB", work["memory_bytes"], max(step.peak_bytes for step in outcome.steps), "{:.0f}", 1 << 20
        )
    )
    goals = [_goal(goal, outcome) for goal in chosen["goals"]]
    return {
        "format_version": FORMAT_VERSION,
        "model": plan["model"],
        "label": chosen["label"],
        "plan_digest": plan["digest"],
        "engine": chosen["engine"],
        "checks": checks,
        "goals": [goal for goal in goals if goal is not None],
        "quality": {
            **(asdict(measured) if measured is not None else {}),
            **({"intervals": {key: quantity_json(each) for key, each in found.items()}} if found else {}),
            "calibration_digest": outcome.calibration_digest, "evaluation_digest": outcome.evaluation_digest,
            "predicted": quality,
        },
        "predicted": {key: chosen[key] for key in ("memory", "kv_cache", "speed")},
        "tensor_bytes": measured_bytes,
        "steps": [
            {
                "name": s.name, "seconds": s.seconds, "expected_seconds": _expected(work["steps"], s.name),
                "peak_bytes": s.peak_bytes, "reused": s.reused,
            }
            for s in outcome.steps
        ],
        "losses": outcome.losses,
        "without_calibration": list(outcome.unseen),
        "holds": all(check["holds"] or not check["binding"] for check in checks) and all(g["met"] for g in goals if g is not None),
    }  # fmt: skip


def _expected(steps: Mapping[str, float], name: str) -> float | None:
    """What the plan expected of a step; an outside tool's has its version behind the name."""
    return steps.get(name, steps.get(name.split()[0]))


def _losses(predicted: Mapping[str, Any], found: Mapping[str, Quantity]) -> list[dict[str, Any]]:
    """Quality against its interval; where nothing here reads the format back, that it was not measured."""
    return [
        _loss(
            Goal.PERPLEXITY,
            "perplexity",
            predicted["log_ppl_increase"],
            found.get("log_ppl_increase"),
            perplexity_growth,
        ),
        _loss(Goal.KL, "KL divergence", predicted["kl"], found.get("kl"), lambda kl: kl),
    ]


def _measured(measured: Measured | None) -> dict[str, Quantity]:
    """What was measured, with the 90 % interval of its spread over texts; empty where nothing was."""
    if measured is None:
        return {}

    def around(value: float, stderr: float) -> Quantity:
        half = measured.half_width(stderr)
        return Quantity(value, value - half, value + half, Basis.MEASURED)

    return {
        "log_ppl_increase": around(measured.log_ppl_increase, measured.log_ppl_stderr),
        "kl": around(measured.kl, measured.kl_stderr),
    }


def _check(name: str, predicted: str, measured: str, holds: bool) -> dict[str, Any]:
    return {"name": name, "predicted": predicted, "measured": measured, "holds": holds, "binding": True}


def _loss(
    goal: Goal, name: str, predicted: Mapping[str, Any], found: Quantity | None, shown: Callable[[Quantity], Quantity]
) -> dict[str, Any]:
    """A measured figure against the predicted 90 % interval: informative, one in ten lies outside by design. `shown`: as people read it."""
    expected = Quantity.of_json(predicted)
    return {
        "name": name,
        "predicted": show_interval(shown(expected), goal.unit),
        "measured": "not measured" if found is None else show_interval(shown(found), goal.unit),
        "holds": found is not None and expected.low <= found.high and found.low <= expected.high,
        "binding": False,
    }


def _cost(name: str, predicted: Mapping[str, Any], value: float, form: str, unit: int = 1) -> dict[str, Any]:
    """What the work took against what was predicted: informative."""
    low, high = (form.format(predicted[end] / unit) for end in ("low", "high"))
    return {
        "name": name, "predicted": f"{form.format(predicted['value'] / unit)} ({low} … {high})", "measured": form.format(value / unit),
        "holds": predicted["low"] <= value <= predicted["high"], "binding": False,
    }  # fmt: skip


def _same(outcome: Outcome, stored: list[Any]) -> bool:
    return {(t.name, t.dtype, t.shape) for t in stored} == {
        (t.name, t.dtype, t.shape) for t in outcome.target.tensors()
    }


def _goal(goal: Mapping[str, Any], outcome: Outcome) -> dict[str, Any] | None:
    """A quality goal against the measurement; goals on speed are `verify`'s."""
    if outcome.measured is None:
        return None
    values = {Goal.PERPLEXITY: growth(outcome.measured.log_ppl_increase), Goal.KL: outcome.measured.kl}
    if goal["name"] not in values:
        return None
    value = values[Goal(goal["name"])]
    return {"name": goal["name"], "wanted": goal["wanted"], "measured": value, "met": value <= goal["wanted"]}


def result_folder(path: Path) -> bool:
    """Whether a path is a finished result."""
    return (path / NAME).is_file()
