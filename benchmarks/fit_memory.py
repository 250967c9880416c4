"""Fits the terms of vLLM's memory that arithmetic does not give and writes `targets/engines/vllm/memory/memory_fit.json`.

    python -m benchmarks.fit_memory [--check]       --check: print only, write nothing; how strangers are held with their source left out

Rows: start-ups of `data/vllm_memory_logs.jsonl` that print the term and whose arguments are known (card, version, model).
Three constants of the activation peak are fitted (soft L1, relative); what a layer and the sampler hold is counted, not fitted. Non-torch and graph memory are medians by version and kind of card. Each source (publication) is left out
in turn and predicted by the others; the 90 % bands come from these held-out errors.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import least_squares

from benchmarks import first_contact
from benchmarks.memory_rows import Question, ask, load_rows
from passes.errors import TightfitError
from targets.engines.resident_weights import weights_per_stage
from targets.engines.vllm.defaults import rules_on_card
from targets.engines.vllm.memory.activations import (
    Profile,
    accounting_era,
    explained_bytes,
    is_integrated,
    peak_bytes,
    regime,
    samplers,
)
from targets.engines.vllm.memory.ranks import profile_of
from targets.engines.vllm.rules.versions import Rules
from targets.gpu import find_gpu

_GIB, _MIB = 1 << 30, 1 << 20
#: Sources without which all tell what the error of a regime is.
_FEW = 2
FIT = Path(__file__).parents[1] / "targets" / "engines" / "vllm" / "memory" / "memory_fit.json"
#: Start of the fit; what `FREE` does not name stays: counted in vLLM's source, and `layer_bytes` between what an H100 shows (260 MiB) and
#: what others do.
PRIOR = {
    "hidden": 3.0,
    "widest": 1.5,
    "layer_bytes": 200.0 * _MIB,
    "sampler_sort_bytes": 36.0,
    "base_bytes": 70.0 * _MIB,
    "encoder_bytes": 100.0 * _MIB,
}
#: What an interval of 90 % leaves out below and above.
SHARES = (0.05, 0.95)
REGIMES = ("sorting", "hopper", "hoppers", "other")
FREE = ("sampler_sort_bytes", "base_bytes", "encoder_bytes")
#: Half widths of the bands never fall below these: run-to-run spread of one configuration, and cards' totals.
FLOOR_BYTES = {"activation": 60 * _MIB, "non_torch": 60 * _MIB, "cuda_graphs": 100 * _MIB}


@dataclass(frozen=True)
class Peak:
    """One start-up that prints its activation peak."""

    question: Question
    profile: Profile
    rules: Rules
    bytes: float

    def predicted(self, constants: Mapping[str, float]) -> float:
        """Bytes with these constants."""
        return peak_bytes(self.question.ir, self.profile, self.rules, constants)


def questions() -> list[Question]:
    """Rows whose arguments are known."""
    out = []
    for row in load_rows():
        try:
            question = ask(row)
        except TightfitError:
            continue
        if question.settings.version is not None and "LoRA" not in str(row["quantization"]):
            out.append(question)
    return out


def peaks(found: Sequence[Question]) -> list[Peak]:
    """Rows that print an activation peak; of a pipeline the first stage, which does not sample."""
    out = []
    for q in found:
        if q.row["activation_peak_gib"] is None:
            continue
        rules, _ = rules_on_card(q.settings.version, q.gpu)
        if rules.counts_reserved:
            continue  # it prints fragments and graphs with the peak: `beside`
        profile = profile_of(q.gpu, q.settings, q.workload, rules)
        if profile.pp > 1:
            profile = replace(profile, samples=False)
        out.append(Peak(q, profile, rules, float(q.row["activation_peak_gib"]) * _GIB))
    return out


def fitted(rows: Sequence[Peak]) -> dict[str, float]:
    """The constants that predict these rows best."""

    def constants(x: Sequence[float]) -> dict[str, float]:
        return PRIOR | {name: PRIOR[name] * float(np.exp(value)) for name, value in zip(FREE, x, strict=True)}

    def residuals(x: Sequence[float]) -> list[float]:
        values = constants(x)
        prior = [0.1 * float(value) for value in x]
        return [(row.predicted(values) / row.bytes - 1) / 0.02 for row in rows] + prior

    return constants(least_squares(residuals, [0.0] * len(FREE), loss="soft_l1", max_nfev=200).x)


def held_out(rows: Sequence[Peak]) -> list[tuple[Peak, float]]:
    """Measured / predicted of every row, predicted without its source (and, inside the large source, without its model)."""

    def group(row: Peak) -> str:
        return f"{row.question.source} {row.question.ir.name}"

    out = []
    for name in sorted({group(row) for row in rows}):
        constants = fitted([row for row in rows if group(row) != name])
        out += [(row, row.bytes / row.predicted(constants)) for row in rows if group(row) == name]
    return out


def band(ratios: Sequence[float]) -> list[float]:
    """5th and 95th percentile, never above or below one."""
    low, high = np.quantile(ratios, [0.05, 0.95])
    return [round(min(1.0, float(low)), 4), round(max(1.0, float(high)), 4)]


def non_torch(found: Sequence[Question]) -> dict[str, object]:
    """Medians by era, tensor parallelism and kind of card."""
    cells: dict[tuple[str, str], list[float]] = {}
    for q in found:
        if q.row["non_torch_gib"] is None or q.settings.parallel.pp > 1:
            continue
        rules, _ = rules_on_card(q.settings.version, q.gpu)
        linked = profile_of(q.gpu, q.settings, q.workload, rules).linked
        wide = "tp_bytes" if (q.gpu.capability or 0) >= 90 and linked else "tp_pcie_bytes"
        key = "old" if accounting_era(rules) == "old" else "new", "tp1_bytes" if q.settings.parallel.tp == 1 else wide
        cells.setdefault(key, []).append(float(q.row["non_torch_gib"]) * _GIB)
    # Rows that do not print their version, hence are not fitted, show 0.54 and 0.55 GiB on Hopper (llmd-qwen3-32b-tp2,
    # llmd-llama33-70b-fp8-tp2). Without a switch between the cards: 0.1 printed of two RTX 4090 (0.26), no room for more on two L40S and
    # two RTX PRO 6000, 0.75 reported of two RTX 5090: NCCL comes before the first look at the memory, so mostly as much as one card.
    assumed = {("old", "tp_bytes"): 0.54 * _GIB, ("new", "tp_pcie_bytes"): 0.25 * _GIB}
    out: dict[str, dict[str, int]] = {"old": {}, "new": {}}
    for era in out:
        for key in ("tp1_bytes", "tp_bytes", "tp_pcie_bytes"):
            values = cells.get((era, key))
            # Where a source that is left out was the only one of its era, the older one tells.
            known = assumed.get((era, key), out["old"].get(key, 0))
            out[era][key] = int(statistics.median(values) if values else known)
    ratios = {e: [v / out[era][key] for (era, key), values in cells.items() if era == e for v in values] for e in out}
    bands = {era: band(values or [1.0]) for era, values in ratios.items()}
    return {
        **out,
        "ratio_90": {"old": bands["old"], **dict.fromkeys(("v1", "v2", "reserved"), bands["new"])},
        "floor_bytes": FLOOR_BYTES["non_torch"],
    }


#: Regime, source and bytes of a start-up.
Leftover = tuple[str, str, float]


def leftovers(found: Sequence[Question], document: Mapping[str, Any]) -> list[Leftover]:
    """Bytes that start-ups took beside what the terms explain: what compilers, autotuning and attention's workspaces take is in no term, and
    from 0.27 on fragments count, which a warm compile cache leaves out. Where a version does not tell which sampler ran, by the nearer one.
    """
    out: list[Leftover] = []
    for q in found:
        row, (rules, _) = q.row, rules_on_card(q.settings.version, q.gpu)
        if row["available_kv_gib"] is None or not (row["score_tokens"] or row.get("predictable")):
            continue
        if not rules.v1 or q.settings.parallel.pp > 1 or is_integrated(q.gpu):
            continue
        profile = profile_of(q.gpu, q.settings, q.workload, rules)
        asked = q.gpu.memory_bytes.value * (q.settings.gpu_memory_utilization or rules.utilization)
        weights = row["weights_gib"] or weights_per_stage(q.ir, q.settings.parallel, rules)[0] / _GIB
        taken = asked - (weights + row["available_kv_gib"]) * _GIB
        left = (taken - explained_bytes(q.ir, profile, variant, document) for variant in samplers(rules))
        out.append((regime(profile, rules), q.source, min(left, key=abs)))
    return out


def middles(left: Sequence[Leftover]) -> dict[str, float]:
    """The middle of each regime, every source with the same weight, as far as it is taken: less than nothing is an error of the terms."""
    return {name: max(0.0, weighted_quantiles(values, (0.5,))[0]) for name, values in by_regime(left, least=1).items()}


def by_regime(left: Sequence[Leftover], least: int) -> dict[str, list[tuple[str, float]]]:
    """Sources and bytes of each regime; one that fewer than `least` sources tell of is told by all."""
    every = [(source, value) for _, source, value in left]
    own = {name: [(source, value) for regime, source, value in left if regime == name] for name in REGIMES}
    return {name: values if len({source for source, _ in values}) >= least else every for name, values in own.items()}


@dataclass(frozen=True)
class Stranger:
    """A start-up that nothing is fitted to, as it was asked about. `tells`: whether it tells how wide intervals are: not where flags are
    unpublished (what an answer counts with, it knows) or something is unexplained, nor models and machines that have an error of their own.
    """

    contact: first_contact.Contact
    regime: str
    tells: bool

    @property
    def source(self) -> str:
        """Where it was published."""
        return str(self.contact.row["source_url"])

    def held(self, stored: Sequence[float], ends: Sequence[float]) -> bool:
        """Whether its interval would hold it with other ends of what is beside the terms than those that it was asked with."""
        unit = self.contact.unit_bytes
        low = self.contact.low * unit - (ends[2] - stored[2])
        high = self.contact.high * unit + (stored[0] - ends[0])
        return low <= self.contact.printed * unit <= high


@lru_cache(maxsize=1)
def strangers() -> tuple[Stranger, ...]:
    """Start-ups of the V1 engine that nothing is fitted to, and what was said of them beside what they took. They are asked of the fit that
    is stored: one whose terms move is made twice.
    """
    out: list[Stranger] = []
    for row in first_contact.load_rows():
        gpu = find_gpu(row["gpu"])
        rules, _ = rules_on_card(row["vllm_version"], gpu)
        if not rules.v1 or not isinstance(answer := first_contact.ask(row), first_contact.Contact):
            continue
        own = is_integrated(gpu) or "DeepSeek-V4" in row["command"]
        profile = Profile(1, 1, tp=row["gpus"], pp=1, eager=False, capability=gpu.capability or 0)
        out.append(Stranger(answer, regime(profile, rules), not (row["loose"] or row["unexplained"] or own)))
    return tuple(out)


def residuals_beside(
    found: Sequence[Question], document: Mapping[str, Any], without: Callable[[str], Mapping[str, Any]]
) -> list[Leftover]:
    """What a source took beside what a fit without that source says, and strangers beside what is said of them."""
    out: list[Leftover] = []
    for source in dict.fromkeys(question.source for question in found):
        terms = without(source)
        expected = middles(leftovers([question for question in found if question.source != source], terms))
        own = leftovers([question for question in found if question.source == source], terms)
        out += [(name, source, value - expected[name]) for name, _, value in own]
    return out + [(each.regime, each.source, each.contact.missing_bytes) for each in strangers() if each.tells]


def ends_of(residuals: Sequence[Leftover], middle: Mapping[str, float]) -> dict[str, list[int]]:
    """For each regime the bytes beside the terms: low, middle, high; the ends are 5th and 95th percentile of the residuals."""
    out = {}
    for name, values in by_regime(residuals, least=_FEW).items():
        low, high = weighted_quantiles(values, SHARES)
        floor = FLOOR_BYTES["activation"]
        out[name] = [int(middle[name] + value) for value in (min(-floor, low), 0.0, max(floor, high))]
    return out


def beside(
    found: Sequence[Question], document: Mapping[str, Any], without: Callable[[str], Mapping[str, Any]]
) -> dict[str, list[int]]:
    """For each regime the bytes beside the terms: low, middle, high. `without` gives the terms of a fit without a source."""
    return ends_of(residuals_beside(found, document, without), middles(leftovers(found, document)))


def held_without_source(residuals: Sequence[Leftover], middle: Mapping[str, float]) -> list[tuple[Stranger, bool]]:
    """Whether each stranger is held where nothing of its source told how wide intervals are."""
    stored = json.loads(FIT.read_text(encoding="utf-8"))["beside"]
    out = []
    for each in strangers():
        ends = ends_of([value for value in residuals if value[1] != each.source], middle)[each.regime]
        out.append((each, each.held(stored[each.regime], ends)))
    return out


def weighted_quantiles(values: Sequence[tuple[str, float]], shares: Sequence[float]) -> list[float]:
    """Quantiles of values in which each source has the same weight: between two values, on the line between their middles."""
    of_source = Counter(source for source, _ in values)
    ordered = sorted((value, 1 / of_source[source]) for source, value in values)
    weights = np.array([weight for _, weight in ordered])
    middles = (np.cumsum(weights) - weights / 2) / weights.sum()
    return [float(np.interp(share, middles, [value for value, _ in ordered])) for share in shares]


def graphs(found: Sequence[Question]) -> dict[str, object]:
    """A line through layers: what capture took before 0.21, and the estimate made since (about three quarters of it)."""
    rows = [
        (len(q.ir.decoder.layers) / q.settings.parallel.pp, float(q.row["cuda_graph_gib"]) * _GIB)
        for q in found
        if (q.row["cuda_graph_gib"] or 0) > 0 and q.settings.version >= "0.17"  # type: ignore[operator]
    ]
    layers, taken = np.array(rows).T
    slope, base = np.polyfit(layers, taken, 1)
    ratios = taken / (base + slope * layers)
    return {
        "taken": {"base_bytes": int(base), "layer_bytes": int(slope)},
        "estimate": {"base_bytes": int(0.75 * base), "layer_bytes": int(0.75 * slope)},
        "ratio_90": dict.fromkeys(("old", "v1", "v2", "reserved"), band(ratios)), "floor_bytes": FLOOR_BYTES["cuda_graphs"],
    }  # fmt: skip


def terms(found: Sequence[Question], outside: Sequence[tuple[Peak, float]] = ()) -> dict[str, Any]:
    """The terms as these rows tell them; the bands of the peaks come from `outside`: peaks held out, measured / predicted."""
    rows = peaks(found)
    ratios = {era: [ratio for row, ratio in outside if accounting_era(row.rules) == era] for era in ("old", "v1")}
    errors = {era: round(statistics.median(abs(r - 1) for r in values), 4) for era, values in ratios.items() if values}
    bands = {era: band(values or [1.0]) for era, values in ratios.items()}
    return {
        "provenance": {
            "script": "benchmarks/fit_memory.py",
            "data": "benchmarks/data/vllm_memory_logs.jsonl",
            "activation_rows": len(rows),
            "held_out_median_error": errors,
            "held_out": "source and model left out together",
        },
        "activation": {
            **{name: round(value, 3) for name, value in fitted(rows).items()},
            "ratio_90": {"old": bands["old"], **dict.fromkeys(("v1", "v2", "reserved"), bands["v1"])},
            "floor_bytes": FLOOR_BYTES["activation"],
        },
        "non_torch": non_torch(found),
        "cuda_graphs": graphs(found),
    }


class Fits:
    """Fits of the same rows with sources left out, each made once."""

    def __init__(self, found: Sequence[Question]) -> None:
        self.found = found
        self._outside = held_out(peaks(found))
        self._terms: dict[frozenset[str], dict[str, Any]] = {}

    def document(self, left_out: str | None = None) -> dict[str, Any]:
        """Everything that is fitted, without a source's rows if one is named."""
        omitted = frozenset({left_out} - {None})
        found = self._without(omitted)
        document = dict(self._fitted(omitted))
        document["beside"] = beside(found, document, lambda source: self._fitted(omitted | {source}))
        return document

    def strangers_held(self) -> list[tuple[Stranger, bool]]:
        """Strangers, and whether each is held with its source left out."""
        document = self._fitted(frozenset())
        residuals = residuals_beside(self.found, document, lambda source: self._fitted(frozenset({source})))
        return held_without_source(residuals, middles(leftovers(self.found, document)))

    def outside(self) -> list[tuple[Peak, float]]:
        """Peaks, measured / predicted without their source."""
        return self._outside

    def _without(self, omitted: frozenset[str]) -> list[Question]:
        return [question for question in self.found if question.source not in omitted]

    def _fitted(self, omitted: frozenset[str]) -> dict[str, Any]:
        if omitted not in self._terms:
            outside = [(peak, ratio) for peak, ratio in self._outside if peak.question.source not in omitted]
            self._terms[omitted] = terms(self._without(omitted), outside)
        return self._terms[omitted]


def print_strangers(held: Sequence[tuple[Stranger, bool]]) -> None:
    """Print each stranger, and coverage by batch."""
    for each, holds in held:
        error = each.contact.error
        print(
            f"{each.contact.row['id']:36s} {each.regime:8s} {error:+.1%} {'held' if holds else 'NOT held'}{'' if each.tells else ' (loose)'}"
        )
    fresh = [(each, holds) for each, holds in held if not each.contact.row["met_before"]]
    batches = sorted({each.contact.row["collected"] for each, _ in fresh})
    for name, chosen in (
        ("all", held),
        ("new", fresh),
        *((f"new, of {batch}", [x for x in fresh if x[0].contact.row["collected"] == batch]) for batch in batches),
        ("new, fully published", [x for x in fresh if not x[0].contact.row["loose"]]),
    ):
        if chosen:
            print(
                f"{name}: {len(chosen)} rows, held with their source left out {sum(h for _, h in chosen) / len(chosen):.2f}"
            )


def main() -> None:
    """Fit, hold out, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="print only, write nothing")
    fits = Fits(questions())
    if parser.parse_args().check:
        print_strangers(fits.strangers_held())
        return
    document = fits.document()
    FIT.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(document, indent=2))
    for row, ratio in fits.outside():
        print(f"{row.question.row['id'][:48]:48s} {ratio:.3f}")


if __name__ == "__main__":
    main()
