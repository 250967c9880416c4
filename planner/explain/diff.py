"""What differs between two plans, or results: inputs that moved, choices that follow, what was measured; and of any two JSON documents."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from passes import chain
from passes.record import dataclass
from planner.asked import spoken
from planner.certificate import NAME, Certificate, read_certificate, result_folder
from planner.figures import apart, show
from planner.plan.codec import number, to_json
from planner.plan.document import PlanDocument
from planner.plan.parts.chosen import ChosenPlan
from planner.plan.saved import PLAN, load_plan, read_plan
from planner.quality.expected import growth


@dataclass(frozen=True, slots=True)
class Change:
    """A place where two documents differ, and both values as JSON has them; None where there is none."""

    what: str
    old: Any
    new: Any


@dataclass(frozen=True, slots=True)
class PlanDifference:
    """What changed between two plans: inputs (lock and spec) that moved, and choices that follow. `measured`: what certificates say
    otherwise, where both are results.
    """

    inputs: tuple[Change, ...]
    choices: tuple[Change, ...]
    measured: tuple[Change, ...] = ()


def diff_files(old: Path, new: Path) -> PlanDifference:
    """Find what changed between two saved plans or results' folders. Raises InputError for what is neither."""
    (before, first), (after, second) = _read(old), _read(new)
    found = diff(before, after)
    if first is None or second is None:
        return found
    return replace(found, measured=tuple(changes(_measured(first), _measured(second))))


def _read(what: Path) -> tuple[PlanDocument, Certificate | None]:
    if result_folder(what):
        return read_plan(what / PLAN), read_certificate(what / NAME)
    return load_plan(what), None


def _measured(result: Certificate) -> dict[str, Any]:
    """The figures of a certificate that people compare."""
    quality = result.quality
    figures = {name: number(getattr(quality, name)) for name in ("kl", "log_ppl_increase")}
    return {"holds": result.holds, "tensor_bytes": result.tensor_bytes} | figures


def diff(old: PlanDocument, new: PlanDocument) -> PlanDifference:
    """Find what changed between two plans."""
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
        decided["throughput_tok_s"] = number(chosen.speed.throughput_tok_s.value)
    decided["memory"] = number(chosen.memory.total.value)
    decided["log_ppl_increase"] = number(chosen.quality.log_ppl_increase.value)
    decided["kv_tokens"] = number(chosen.kv_cache.tokens.value)
    return decided


#: Units of the figures in which plans differ, by the last part of where they stand.
_UNITS = {
    "tensor_bytes": "B", "memory_bytes": "B", "memory": "B", "ttft_ms": "ms", "decode_tok_s_per_request": "tok/s",
    "throughput_tok_s": "tok/s", "kv_tokens": "tokens", "bpw": "bits", "head_bits": "bits", "length": "tokens", "context": "tokens",
    "input_tokens": "tokens", "output_tokens": "tokens", "log_ppl_increase": "%", "kl": "nats",
}  # fmt: skip


#: What people call the figures of plans and results.
_SAID = {
    "log_ppl_increase": "perplexity", "kl": "KL divergence", "tensor_bytes": "weights", "ttft_ms": "TTFT",
    "decode_tok_s_per_request": "decode", "throughput_tok_s": "throughput", "kv_tokens": "KV tokens",
}  # fmt: skip


def told(change: Change) -> tuple[str, str, str]:
    """Say a change as people read it: what, before and after, figures with their units and the digits that tell them apart."""
    last = change.what.rpartition(".")[2]
    unit = _UNITS.get(last, "")
    name = _SAID.get(change.what, change.what)
    if change.what == "passes":
        return name, _chain(change.old), _chain(change.new)
    old, new = (_figure(value, last) for value in (change.old, change.new))
    if isinstance(old, float) and isinstance(new, float):
        return (name, *apart(old, new, unit))
    before, after = (show(value, unit) if isinstance(value, float) else value for value in (old, new))
    return name, before, after


def _chain(passes: Any) -> str:
    """The passes of a plan in words."""
    return " ─► ".join(map(spoken, chain.from_json(passes or []))) or "none"


def _figure(value: Any, name: str) -> float | str:
    """A figure, perplexity as the share by which it grows; everything else as a spec would say it."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return growth(value) if name == "log_ppl_increase" else float(value)
    if isinstance(value, str) and (size := re.fullmatch(r"(\d+) B", value)):
        return show(int(size[1]), "B")
    if isinstance(value, str) and (time := re.fullmatch(r"(\d+\.\d+) s", value)):
        return f"{float(time[1]):.6g} s"
    if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{40,64}", value):
        return value[:8]
    return _plain(value)


def _plain(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(inner)}" for key, inner in value.items()) or "none"
    if isinstance(value, list | tuple):
        return "; ".join(map(_plain, value)) or "none"
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def changes(old: Any, new: Any, path: str = "") -> list[Change]:
    """List every place where two JSON documents differ, with both values."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = list(dict.fromkeys([*old, *new]))
        return [c for key in keys for c in changes(old.get(key), new.get(key), f"{path}.{key}" if path else str(key))]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [c for n, (a, b) in enumerate(zip(old, new, strict=True)) for c in changes(a, b, f"{path}[{n}]")]
    return [] if old == new else [Change(path, old, new)]
