"""What differs between two plans: inputs that moved, choices that follow; and of any two JSON documents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from planner.plan.codec import number, to_json
from planner.plan.document import ChosenPlan, PlanDocument


@dataclass(frozen=True, slots=True)
class Change:
    """A place where two documents differ, and both values as JSON has them; None where there is none."""

    what: str
    old: Any
    new: Any


@dataclass(frozen=True, slots=True)
class PlanDifference:
    """What changed between two plans: inputs (lock and spec) that moved, and choices that follow."""

    inputs: tuple[Change, ...]
    choices: tuple[Change, ...]


def diff(old: PlanDocument, new: PlanDocument) -> PlanDifference:
    """What changed between two plans."""
    return PlanDifference(
        tuple(changes(_inputs(old), _inputs(new))),
        tuple(changes(_decided(old.chosen), _decided(new.chosen))),
    )


def _inputs(plan: PlanDocument) -> dict[str, Any]:
    return {"lock": to_json(plan.lock), "spec": to_json(plan.spec)}


def _decided(chosen: ChosenPlan | None) -> dict[str, Any]:
    """The choices of a plan and the figures that people compare."""
    if chosen is None:
        return {"chosen": None}
    decided = {name: to_json(getattr(chosen, name)) for name in ("engine", "passes", "settings", "tensor_bytes")}
    if chosen.speed is not None:
        decided["ttft_ms"] = number(chosen.speed.ttft_ms.value)
        decided["decode_tok_s_per_request"] = number(chosen.speed.decode_tok_s_per_request.value)
    decided["log_ppl_increase"] = number(chosen.quality.log_ppl_increase.value)
    decided["kv_tokens"] = number(chosen.kv_cache.tokens.value)
    return decided


def changes(old: Any, new: Any, path: str = "") -> list[Change]:
    """Every place where two JSON documents differ, with both values."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = list(dict.fromkeys([*old, *new]))
        return [c for key in keys for c in changes(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [c for n, (a, b) in enumerate(zip(old, new, strict=True)) for c in changes(a, b, f"{path}[{n}]")]
    return [] if old == new else [Change(path, old, new)]
