"""Fits the law of quality loss and writes `planner/quality/quality_fit.json`; prints its error on groups and sources held out.

    python -m benchmarks.fit_quality [--check]      --check: print only, write nothing

The law (`planner/quality/features.py`) is a linear model of ln(rise of log-perplexity). Every feature has a Gaussian prior
whose width says how far families, models, methods and tables may deviate from the trend: hierarchical shrinkage. Widths
were found by marginal likelihood and kept. Table effects (source, group, metric) are fitted and then left out.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np

from benchmarks.quality_rows import DATA, Row, weight_rows
from benchmarks.quality_side import kl_ratio, kv_losses, mxfp4_over_nvfp4, sparsity_losses
from passes.formats.format import Rounding
from planner.quality import law as quality_law
from planner.quality.features import Traits, joint_features, model_features, model_key, rounding_features
from planner.quality.law import feature_kind, tier_of
from planner.quality.traits import nominal

OUT = Path(__file__).parent.parent / "planner" / "quality" / "quality_fit.json"

#: Mean and standard deviation of each kind of feature. The mean of `fewer_bits` is ln 4, physics; that of `log_tokens`
#: and `group_range` (bounded noise of a uniform quantizer) theory; `channel` is what a row of some thousand weights adds.
PRIORS: dict[str, tuple[float, float]] = {
    "constant": (-3.5, 3.0), "log_tokens": (0.4, 0.05), "log_size": (0.0, 0.04), "small": (0.4, 0.2), "tuned": (0.0, 0.2), "family:": (0.0, 0.35),
    "family_log_size:": (0.0, 0.15), "model:": (0.0, 0.3), "method:": (0.0, 1.0), "fewer_bits": (math.log(4), 0.025),
    "fewer_bits:": (0.0, 0.15), "bend": (0.0, 0.25), "bend:": (0.0, 1.0), "channel": (1.0, 0.05), "channel:": (0.0, 0.2),
    "channel_fewer_bits:": (0.0, 0.5), "channel_bend:": (0.0, 0.25), "group_range": (1.0, 0.25),
    "log_size_fewer_bits": (0.0, 0.02), "log_size_method:": (0.0, 0.03), "log_tokens_method:": (0.0, 0.03), "family_log_size_method:": (0.0, 0.2),
    "model_method:": (0.0, 0.1), "model_fewer_bits:": (0.0, 0.1), "family_channel:": (0.0, 0.1),
    "family_method:": (0.0, 0.15), "small_method:": (0.0, 0.5), "family_fewer_bits:": (0.0, 0.1),
    "source:": (0.0, 0.05), "group:": (0.0, 0.1), "metric:": (0.0, 0.08),
}  # fmt: skip
NOISE = 0.15
#: Perplexities are printed to about this, and run to run they differ by as much.
FLOOR = 0.001
#: What a fit may know of a model under a method, most first.
TIERS = ("pair", "model", "family", "unseen")
#: Features whose presence says what the fit has seen, however small they are.
SEEN = ("model:", "model_method:")
#: Methods whose residuals the tiers' widths come from.
_TIERED = ("gptq", "awq", "rtn", "exl2")
Law = dict[str, float]


def features(scheme: Rounding, traits: Traits) -> Law:
    return dict(rounding_features(scheme) + model_features(traits) + joint_features(scheme, traits))


def fit(rows: Sequence[Row]) -> Law:
    """Posterior mean of every coefficient; Huber weights against single odd figures."""
    designs = [
        features(row.scheme, row.traits)
        | {f"source:{row.source}": 1.0, f"group:{row.group}": 1.0}
        | ({f"metric:{row.metric}": 1.0} if row.metric != "wikitext-2" else {})
        for row in rows
    ]
    names = sorted({name for design in designs for name in design})
    column = {name: index for index, name in enumerate(names)}
    X = np.zeros((len(rows), len(names)))
    for index, design in enumerate(designs):
        for name, value in design.items():
            X[index, column[name]] = value
    mean, width = np.array([PRIORS[feature_kind(name)] for name in names]).T
    rise = np.array([row.rise for row in rows])
    rounding = (0.003 / np.array([row.baseline for row in rows]) + 0.0008) / rise
    # Beyond a rise of one half, tables disagree by multiples.
    variance = NOISE**2 + rounding**2 + (0.5 * np.clip(rise - 0.5, 0, 2)) ** 2
    A, z = X * width, np.log(rise) - X @ mean
    kernel, weight = A @ A.T, np.ones(len(rows))
    for _ in range(4):
        dual = np.linalg.solve(kernel + np.diag(variance / weight), z)
        odd = np.abs(z - kernel @ dual) / np.sqrt(variance)
        weight = np.where(odd > 2, 2 / np.maximum(odd, 2), 1.0)
    return dict(zip(names, (mean + width * (A.T @ dual)).tolist(), strict=True))


def predict(law: Law, scheme: Rounding, traits: Traits) -> float:
    return math.exp(
        sum(value * law.get(name, PRIORS[feature_kind(name)][0]) for name, value in features(scheme, traits).items())
    )


def sizes_of(rows: Sequence[Row]) -> dict[str, list[float]]:
    found: dict[str, set[float]] = defaultdict(set)
    for row in rows:
        found[row.traits.family].add(row.traits.size_b)
    return {family: sorted(sizes) for family, sizes in sorted(found.items())}


Residual = tuple[Row, float, str]


def cross_validate(rows: Sequence[Row], key: Callable[[Row], Hashable]) -> list[Residual]:
    """(row, prediction, what the fit knew of its model under its method) of every judged row, its group held out."""
    out: list[Residual] = []
    for held in sorted({key(row) for row in rows if row.judged}, key=str):
        train = [row for row in rows if key(row) != held]
        law, sizes = fit(train), sizes_of(train)
        for row in rows:
            if key(row) == held and row.judged:
                known = nominal(row.traits, tuple(sizes.get(row.traits.family, ())))
                out.append((row, predict(law, row.scheme, known), tier_of(law, sizes, known, row.scheme.method)))
    return out


def spearman(points: Sequence[tuple[float, float]]) -> float | None:
    ranks = []
    for axis in (0, 1):
        values = [point[axis] for point in points]
        order = sorted(values)
        ranks.append([order.index(value) for value in values])
    if len(points) < 4 or any(len(set(rank)) < 2 for rank in ranks):
        return None
    return statistics.correlation(*ranks)


def figures(residuals: Sequence[tuple[Row, float]]) -> dict[str, float]:
    """Median and 90th percentile of the relative error, median rank correlation within (source, model)."""
    errors = sorted(abs(value / row.rise - 1) for row, value in residuals)
    groups: dict[Hashable, list[tuple[float, float]]] = defaultdict(list)
    for row, value in residuals:
        groups[row.group].append((value, row.rise))
    ranks = [rank for rank in map(spearman, groups.values()) if rank is not None]
    return {
        "rows": len(errors), "median": round(statistics.median(errors), 3), "p90": round(errors[int(0.9 * (len(errors) - 1))], 3),
        "spearman": round(statistics.median(ranks), 3) if ranks else math.nan,
    }  # fmt: skip


def spreads(*holdouts: Sequence[Residual]) -> tuple[dict[str, float], dict[str, float]]:
    """Half widths of the 90 % interval in ln by tier, and each family's factor, shrunk towards 1 by ten rows' worth.

    A tier's width is the geometric mean over the ways of holding out that reach it: what users ask for is now a new model of a known
    table's kind, now a table of its own.
    """
    tiers = {}
    for tier in TIERS:
        errors = [[abs(math.log(value / row.rise)) for row, value, t in holdout if t == tier] for holdout in holdouts]
        tiers[tier] = statistics.geometric_mean(float(np.quantile(one, 0.9)) for one in errors if len(one) >= 5)
    ln = [(abs(math.log(value / row.rise)), tier, row.traits.family) for one in holdouts for row, value, tier in one]
    for more, less in pairwise(TIERS):
        tiers[less] = max(tiers[less], tiers[more])
    scaled: dict[str, list[float]] = defaultdict(list)
    for error, tier, family in ln:
        if tier != "unseen":
            scaled[family].append(min(error / tiers[tier], 2.0))
    typical = float(np.mean([value**2 for values in scaled.values() for value in values]))
    return tiers, {
        f: round(math.sqrt((10 * typical + sum(v * v for v in vs)) / (10 + len(vs)) / typical), 3)
        for f, vs in sorted(scaled.items())
    }


def method_spreads(tiers: Law, family_spread: Law, *holdouts: Sequence[Residual]) -> Law:
    """How much wider than its tier a method's interval has to be to hold nine in ten of its own held-out residuals, shrunk towards 1 by ten
    groups' worth. The tiers come from GPTQ, AWQ, RTN and EXL2 alone; formats of 8 bits and 4-bit activations have fewer tables, that agree less.
    """
    ratios: dict[str, list[float]] = defaultdict(list)
    groups: dict[str, set[Hashable]] = defaultdict(set)
    for row, value, tier in itertools.chain(*holdouts):
        width = tiers[tier] * family_spread.get(row.traits.family, 1.0)
        ratios[row.scheme.method].append(abs(math.log(value / row.rise)) / width)
        groups[row.scheme.method].add(row.group)
    shrunk = {
        method: (10 + len(groups[method]) * float(np.quantile(found, 0.9))) / (10 + len(groups[method]))
        for method, found in ratios.items()
    }
    return {method: round(factor, 3) for method, factor in sorted(shrunk.items()) if factor > 1}


def with_known_scheme(residuals: Sequence[Residual], rows: Sequence[Row]) -> list[Residual]:
    """Residuals of a held-out source whose kind of scheme other tables still taught (three models or more): with a source as
    large as OmniQuant's gone, round to nearest and whole-row scales would be guesses, which no real prediction is."""
    kind = lambda row: (row.scheme.method, row.scheme.group_size < 0)  # noqa: E731
    others = {
        (kind(row), source): len({other.group for other in rows if kind(other) == kind(row) and other.source != source})
        for row, source in ((row, row.source) for row, _, _ in residuals)
    }
    return [residual for residual in residuals if others[kind(residual[0]), residual[0].source] >= 3]


def interval_figures(residuals: Sequence[Residual], tiers: Law, family_spread: Law) -> dict[str, float]:
    """Coverage and median half width over value of the intervals, on the residuals that their widths were read from."""
    inside, widths = [], []
    for row, value, tier in residuals:
        width = tiers[tier] * family_spread.get(row.traits.family, 1.0)
        low, high = value * math.exp(-width) - FLOOR, value * math.exp(width) + FLOOR
        inside.append(low <= row.rise <= high)
        widths.append((high - max(low, 0.0)) / 2 / value)
    return {"coverage": round(statistics.mean(inside), 3), "half_width_median": round(statistics.median(widths), 3)}


def with_derived(law: Law) -> tuple[Law, list[str]]:
    """FP4 variants that no perplexity table holds, from NVFP4's: weights and activations share its loss alike; MXFP4 loses as
    many times more as in AutoRound's accuracy tables."""
    half = law["method:nvfp4"] - math.log(2)
    return law | {"method:nvfp4a16": half, "method:mxfp4": half + math.log(mxfp4_over_nvfp4())}, ["mxfp4", "nvfp4a16"]


def check_rows() -> list[tuple[dict[str, object], float]]:
    """Figures that were never fitted (`quality_check.jsonl`) with the installed law's prediction."""
    out = []
    for line in (DATA / "quality_check.jsonl").read_text().splitlines():
        row = json.loads(line)
        traits = Traits(row["family"], row["size_b"], row["tokens_t"], tuned=True)
        out.append(
            (row, quality_law.weight_loss(traits, Rounding(row["method"], row["bits"], row.get("group_size", 0))).value)
        )
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    write = not parser.parse_args().check
    rows = list(weight_rows())
    law = fit(rows)
    keys: tuple[Callable[[Row], Hashable], ...] = (
        lambda row: row.group,
        lambda row: row.source,
        lambda row: model_key(row.traits),
        lambda row: row.traits.family,
    )
    by_group, by_source, by_model, by_family = (cross_validate(rows, key) for key in keys)
    report = {
        "in_sample": figures([(row, predict(law, row.scheme, row.traits)) for row in rows if row.judged]),
        "leave_out_source_and_model": figures([(row, value) for row, value, _ in by_group]),
        "leave_out_source": figures([(row, value) for row, value, _ in by_source]),
        "leave_out_model": figures([(row, value) for row, value, _ in by_model]),
        "leave_out_family": figures([(row, value) for row, value, _ in by_family]),
    }
    from_tables = with_known_scheme(by_source, rows)
    tiers, family_spread = spreads(by_group, from_tables, by_model, by_family)
    report["intervals"] = interval_figures(by_group + from_tables, tiers, family_spread)
    fitted = [(row, predict(law, row.scheme, row.traits), "pair") for row in rows if row.judged]
    for name, residuals in {
        "row": cross_validate(rows, id),
        "source_and_model": by_group,
        "source": from_tables,
        "model": by_model,
        "family": by_family,
        "nothing": fitted,
    }.items():
        report[f"intervals_without_{name}"] = interval_figures(residuals, tiers, family_spread)
    every = [replace(row, judged=row.rise < 1) for row in rows]
    wider = method_spreads(tiers, family_spread, *(cross_validate(every, key) for key in keys))
    wider = {method: factor for method, factor in wider.items() if method not in _TIERED}
    law, derived = with_derived(law)
    hidden = ("source:", "group:", "metric:")
    document = {
        "provenance": {
            "script": "benchmarks/fit_quality.py", "data": "benchmarks/data/quality_refs.jsonl", "rows": len(rows),
            "judged_rows": len(by_group), "error": report,
        },
        "coefficients": {name: round(value, 4) for name, value in law.items() if feature_kind(name) not in hidden and (abs(value) > 5e-4 or feature_kind(name) in SEEN)},
        "prior_means": {kind: mean for kind, (mean, _) in PRIORS.items() if mean and kind not in hidden},
        "sizes": sizes_of(rows), "spreads": {tier: round(value, 3) for tier, value in tiers.items()} | {"unseen_method": 0.9},
        "derived_methods": derived, "family_spread": family_spread, "method_spread": wider, "floor": FLOOR, "ceiling_ln": math.log(12.0),
        "kl_ratio": kl_ratio(), "kv": kv_losses(law, PRIORS), "sparsity": sparsity_losses(),
    }  # fmt: skip
    for name, line in report.items():
        print(f"{name:28s}", line)
    for family in sorted({row.traits.family for row, _, _ in by_group}):
        print(
            "   ", f"{family:12s}", figures([(row, value) for row, value, _ in by_group if row.traits.family == family])
        )
    print("spreads", tiers, family_spread, wider)
    for part in ("kl_ratio", "kv", "sparsity"):
        print(part, document[part])
    if write:
        OUT.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
        quality_law.law.cache_clear()
    checked = check_rows()
    errors = [
        abs(value / float(str(row["rise"])) - 1)
        for row, value in checked
        if row["method"] == "exl2" and float(str(row["rise"])) < 0.5
    ]
    print(f"never fitted, exl2: {len(errors)} rows, median error {statistics.median(errors):.3f}")


if __name__ == "__main__":
    main()
