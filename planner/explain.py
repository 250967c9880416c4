"""Answers to a person's questions about a plan: `why not AWQ`, `why exl2`, `what if 48 GB`; and the difference of two plans."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from passes.errors import InputError
from passes.ir.sources import Source
from planner.choice.search import SearchResult, complete, search
from planner.choice.verdict import Verdict
from planner.plan.codec import number, to_json
from planner.plan.document import ChosenPlan, PlanDocument
from planner.plan.stated import StatedReason, stated
from planner.spec.spec import Spec
from targets.gpu import find_gpu

_EXAMPLES = "`why not awq`, `why g64`, `what if 48GB`, `what if 2 cards`, `what if context 16384`"


@dataclass(frozen=True, slots=True)
class Row:
    """A candidate, what is to be said of it, and the reasons that say it."""

    candidate: str
    message: str
    reasons: tuple[StatedReason, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """A headline, and what is to be said of each candidate."""

    headline: str
    rows: tuple[Row, ...]

    def as_json(self) -> dict[str, Any]:
        """The answer as a document."""
        return {"answer": self.headline, "candidates": to_json(self.rows)}


def explain(spec: Spec, source: Source, question: str | None = None) -> Answer:
    """Answer a question about the plan of a spec; without one, every candidate with its reasons.

    Raises InputError for a question of no known form, or one that names nothing in the space.
    """
    result = search(spec, source.ir)
    text = (question or "").strip().rstrip("?").strip()
    if not text:
        chosen = result.chosen.candidate.label if result.chosen else "nothing"
        rows = tuple(_lost(v) for v in sorted(result.rejected, key=lambda v: v.distance))
        return Answer(f"{chosen} was chosen out of {result.searched}", rows)
    what_if = re.fullmatch(r"what if (.+)", text, re.IGNORECASE)
    if what_if:
        return _what_if(spec, source, result, what_if[1])
    why = re.fullmatch(r"why (not )?(.+)", text, re.IGNORECASE)
    if why:
        return _why_not(spec, result, why[2]) if why[1] else _why_chosen(result, why[2])
    raise InputError(f"cannot answer {question!r}", remedy=f"ask for instance {_EXAMPLES}")


def _lost(verdict: Verdict) -> Row:
    """Why a candidate lost."""
    message = "; ".join(r.message + (f" ({r.remedy})" if r.remedy else "") for r in verdict.reasons)
    return Row(verdict.candidate.label, message, tuple(map(stated, verdict.reasons)))


def _named(verdict: Verdict, name: str) -> bool:
    words = re.findall(r"[a-z0-9.]+", verdict.candidate.label.lower())
    asked = re.findall(r"[a-z0-9.]+", name.lower())
    return all(any(word == part or (len(part) > 1 and part in word) for word in words) for part in asked)


def _why_not(spec: Spec, result: SearchResult, name: str) -> Answer:
    found = [v for v in result.rejected if _named(v, name)]
    if not found:
        if result.chosen is not None and _named(result.chosen, name):
            return Answer(f"{name} was chosen: {result.chosen.candidate.label}", ())
        raise InputError(f"no candidate is called {name!r}", remedy="`optimize explain PLAN` lists all of them")
    nearest = sorted((complete(spec, result.gpu, v) for v in found), key=lambda v: v.distance)
    return Answer(f"{len(found)} candidates with {name} lost", tuple(_lost(v) for v in nearest[:8]))


def _why_chosen(result: SearchResult, name: str) -> Answer:
    chosen = result.chosen
    if chosen is None:
        return Answer("nothing was chosen: no candidate meets the goals", ())
    if not _named(chosen, name):
        return Answer(f"{name} was not chosen; {chosen.candidate.label} was", ())
    others = [v for v in result.rejected if v.candidate.engine == chosen.candidate.engine and not _named(v, name)]
    rows = tuple(_lost(v) for v in sorted(others, key=lambda v: v.distance)[:8])
    return Answer(f"{chosen.candidate.label} was chosen; without {name}:", rows)


def _what_if(spec: Spec, source: Source, before: SearchResult, change: str) -> Answer:
    cards = re.fullmatch(r"(\d+) (?:cards|gpus)", change, re.IGNORECASE)
    context = re.fullmatch(r"(?:a )?context (?:of )?([\d_,]+)", change, re.IGNORECASE)
    if cards:
        changed = spec.model_copy(update={"target": spec.target.model_copy(update={"count": int(cards[1])})})
    elif context:
        length = int(re.sub("[_,]", "", context[1]))
        changed = spec.model_copy(update={"workload": spec.workload.model_copy(update={"context": length})})
    else:
        name = (
            find_gpu(re.sub(r"^(an?|one|the) ", "", change)).name
            if not re.match(r"\d", change)
            else change.replace(" ", "")
        )
        find_gpu(name)
        changed = spec.model_copy(update={"target": spec.target.model_copy(update={"gpu": name})})
    after = search(changed, source.ir)
    old = before.chosen.candidate.label if before.chosen else "nothing meets the goals"
    new = after.chosen.candidate.label if after.chosen else "nothing meets the goals"
    same = "the same plan" if old == new else "another plan"
    return Answer(f"with {change}: {same}", (Row(old, "now"), Row(new, f"with {change}")))


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
