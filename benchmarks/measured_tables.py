"""Tables of what `benchmarks.measured` keeps, and of the fits beside it; `benchmarks.stored_tables` writes them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import fit_quality, load_first_contact, measured
from benchmarks.quality_rows import DATA, SUITE, loss_rows, traits_by_name
from benchmarks.tables import table
from benchmarks.whatif_moves import GOAL, p95
from passes.formats.format import Rounding
from planner.quality import law as quality_law

#: How tables call what was asked.
_PEERS = {"tightfit": "here", "AIConfigurator": "AIConfigurator, steady state", "its simulator": "its simulator"}
_SPECS = {
    "llama-3.1-8b-l4": "8B, fifty people on an L4 (goals on p95, so that each leading candidate's load is simulated)",
    "qwen2.5-32b-rtx4090": "32B on one RTX 4090", "llama-3.3-70b-rtx4090": "70B on one RTX 4090",
}  # fmt: skip


def planner_cold(kept: measured.Measured) -> str:
    """Return what whole processes take from a cold start, and how much of it is loading."""
    rows = [
        (f"`optimize {each['what']}`", *(_seconds(each[part]) for part in ("wall", "processor", "imports")), _goal(each, each["wall"]))
        for each in kept.figures
    ]  # fmt: skip
    return table(("what", "wall", "processor", "of it loading", "goal"), rows)


def planner_warm(kept: measured.Measured) -> str:
    """Return what the parts of planning take in a process that has begun."""
    rows = [
        (each["what"], _milliseconds(statistics.median(each["seconds"])), f"{_milliseconds(min(each['seconds']))} to {_milliseconds(max(each['seconds']))}", _goal(each, each["seconds"]))
        for each in kept.figures
    ]  # fmt: skip
    return table(("what", "median", "range", "goal"), rows)


def whatif_moves(kept: measured.Measured) -> str:
    """Return how long the what-if page's plan takes to follow a move, in milliseconds of one processor."""
    rows = [
        (
            _SPECS[each["spec"]], f"{statistics.median(each['plan']):.0f}", f"{p95(each['plan']):.0f}", f"{max(each['plan']):.0f}",
            f"{sum(one <= GOAL for one in each['plan'])} of {len(each['plan'])}", f"{p95(each['others']):.0f}",
        )
        for each in kept.figures
    ]  # fmt: skip
    heads = ("spec", "median", "95 of 100 within", "longest", f"within {GOAL}", "95 of 100 with what came nearest")
    return table(heads, rows)


def serving_peer(kept: measured.Measured) -> str:
    """Return the median errors of three ways to tell a load, on rows that each of them answers."""
    rows = [
        (
            f"{each['n']} {each['kind']}s: {_PEERS[each['by']]}",
            *(f"{each[figure] * 100:.3g} %" if each.get(figure) is not None else "" for figure in ("TPOT", "TTFT", "tok/s")),
            f"{each['seconds']:.2g} s" if each.get("seconds") else "",
        )
        for each in kept.figures
    ]  # fmt: skip
    return table(("rows, by", "TPOT", "first token", "throughput", "an answer"), rows)


def calibrated_cpu(kept: measured.Measured) -> str:
    """Return signed errors of time to first token and time between tokens before and after calibration."""
    stages = ("shipped", "machine", "load")
    rows = [
        (
            f"{each['prompt']} + {each['new']}", f"{each['ttft_ms']:.0f}", f"{each['tpot_ms']:.1f}",
            *(", ".join(f"{error:+.1%}".replace("%", " %") for error in each["errors"][stage]) for stage in stages),
        )
        for each in kept.figures
    ]  # fmt: skip
    middle = [
        ", ".join(f"{statistics.median(abs(each['errors'][stage][part]) for each in kept.figures) * 100:.1f} %" for part in (0, 1))
        for stage in stages
    ]  # fmt: skip
    heads = ("prompt + new", "TTFT, ms", "TPOT, ms", "shipped", "machine measured", "after the load")
    return table(heads, [*rows, ("median", "", "", *middle)])


def first_sight(kept: measured.Measured) -> str:
    """Return how the second contact's rows were told when they were asked for the first time."""
    found = [
        contact
        for row in load_first_contact.load_rows()
        if row["id"] in kept.figures
        for contact in load_first_contact.contacts(row, {"speed": kept.figures[row["id"]]})
    ]
    return load_first_contact.summaries(
        found,
        {
            "all": lambda row: True,
            "but Nemotron 3 Nano and prompts met before": lambda row: (
                "Nemotron-3-Nano" not in row["command"] and "prompts met before" not in (row["loose"] or "")
            ),
            "one client": lambda row: load_first_contact.kind(row) == "alone",
        },
    )  # fmt: skip


def large_models(kept: measured.Measured) -> str:
    """Return what four bits are said to lose of large models, by the stored fit and by one that has not seen Qwen3's tables."""
    rows = []
    for name in LARGE_MODELS:
        gptq, fp4 = (quality_law.loss(traits_by_name(name), cause).value for cause in LARGE_FORMATS)
        without = kept.figures[name]
        rows.append((name, f"{without[0]:.3f}", f"{gptq:.3f}", _published(name), f"{without[1]:.3f}", f"{fp4:.3f}"))
    heads = (
        "",
        "GPTQ, 4 bits, groups of 128: without Qwen3's tables",
        "as shipped",
        "published",
        "NVFP4, without",
        "as shipped",
    )
    return table(heads, rows)


#: Models of which four bits are told, and the formats.
LARGE_MODELS = ("Qwen3-8B", "Qwen3-14B", "Qwen3-32B", "Qwen3-235B-A22B", "Llama-3.1-8B", "Llama-3.1-405B")
LARGE_FORMATS = (Rounding("gptq", 4, 128), Rounding("nvfp4", 0))


def _published(name: str) -> str:
    """What tables hold of a model by GPTQ in 4 bits and groups of 128, and of its base model where that has another name."""
    found = [
        (row.model.removeprefix(name), row.rise)
        for row in loss_rows()
        if row.cause == LARGE_FORMATS[0] and row.model in (name, f"{name}-Base") and not row.metric.startswith(SUITE)
    ]
    return ", ".join(f"{rise:.3f}{' (base model)' * bool(rest)}" for rest, rise in sorted(found))


@dataclass(frozen=True)
class Made:
    """A table: what makes it of kept figures, and the files besides that it depends on."""

    name: str
    make: Callable[[measured.Measured], str]
    files: tuple[Path, ...] = ()

    def text(self) -> str:
        """Return it, with where it comes from."""
        kept = measured.read(self.name)
        return f"{self.make(kept)}\n\n{kept.told}"


TABLES = {
    made.name: made
    for made in (
        Made("planner-cold", planner_cold), Made("planner-warm", planner_warm), Made("what-if", whatif_moves), Made("serving-peer", serving_peer),
        Made("calibrated-cpu", calibrated_cpu), Made("load-first-sight", first_sight, (load_first_contact.ROWS,)),
        Made("quality-large", large_models, (fit_quality.OUT, DATA / "quality_refs.jsonl")),
    )
}  # fmt: skip


def _seconds(taken: Sequence[float]) -> str:
    return f"{statistics.median(taken):.2f} s" if taken else ""


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms"


def _goal(each: Mapping[str, Any], taken: Sequence[float]) -> str:
    """A goal in its unit, and whether the median meets it."""
    goal, missed = each["goal"], statistics.median(taken) > each["goal"]
    return (f"{goal:g} s" if goal >= 0.1 else f"{1000 * goal:g} ms") + ", missed" * missed
