"""Fits the law of quality loss, writes `planner/quality/quality_fit.json` and prints how often intervals hold with sources held out.

    python -m benchmarks.fit_quality [--check]      --check: print only, write nothing

The law (`planner/quality/features.py`) is a linear model of ln(rise of log-perplexity) whose coefficients are non-negative but for a few
free ones. Every coefficient has a Gaussian prior whose width says how far families, methods and tables may deviate from the
general figure: hierarchical shrinkage under bounds. Effects of tables (source, group, metric) and of single models are fitted and left out of
predictions; those of models move the ends of their intervals.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality_rows import DATA, SUITE, Row, loss_rows, traits_by_name
from benchmarks.quality_side import kl_ratio, mxfp4_over_nvfp4
from passes.formats.format import Rounding
from passes.ir.distortions import Removed, Zeros
from planner.quality import law as quality_law
from planner.quality.features import Cause, Traits, features, kind, model_key, scheme
from planner.quality.law import FREE, Law, feature_kind, general
from planner.quality.traits import nominal

OUT = Path(__file__).parent.parent / "planner" / "quality" / "quality_fit.json"

#: Mean and standard deviation of each general coefficient. The mean of `fewer_bits` is ln 4, physics; that of `log_tokens` and `group`
#: (bounded noise of a uniform quantizer) theory; `row` is what a scale a row costs beyond its range; what a method loses beyond better ones
#: is about what its tables say, so that one without a table keeps its place. NVFP4 shares its loss between weights and inputs; MXFP4
#: loses as many times more as in AutoRound's accuracy tables. No table varies the share of zeros: the fourth power is assumed.
GENERAL: dict[str, tuple[float, float]] = {
    "kind:weights": (-3.5, 3.0), "kind:outliers": (-4.5, 3.0), "kind:zeros": (-1.0, 3.0), "kind:cache": (-4.0, 3.0), "kind:depth": (-1.5, 3.0), "kind:width": (-1.0, 3.0),
    "kind:experts": (-2.0, 3.0),
    "log_tokens": (0.4, 0.05), "log_tokens:zeros": (0.4, 0.3), "tuned": (0.0, 0.2), "fewer_bits": (math.log(4), 0.05), "bend": (0.2, 0.25), "group": (1.0, 0.25), "row": (0.3, 0.15),
    "few_bits:row": (0.1, 0.3), "few_bits:rtn": (0.1, 0.5), "row:rtn": (0.1, 0.3), "few_bits:row:rtn": (0.3, 0.5),
    "smaller:0.1-0.5": (0.35, 0.15), "smaller:0.5-1.5": (0.35, 0.15), "smaller:1.5-4": (0.1, 0.1), "smaller:4-10": (0.1, 0.1),
    "smaller:10-30": (0.1, 0.15), "smaller:30-100": (0.1, 0.15), "smaller:100-500": (0.1, 0.15),
    "smaller:zeros": (0.2, 0.15), "smaller:cache": (0.05, 0.05), "smaller:depth": (0.1, 0.1), "smaller:width": (0.1, 0.1), "smaller:experts": (0.1, 0.1),
    "share:zeros": (4.0, 0.5), "bend:zeros": (8.0, 3.0), "share:depth": (1.5, 0.3), "share:width": (1.5, 0.3), "share:experts": (1.5, 0.3),
    "beyond:gptq": (0.05, 0.1), "beyond:awq": (0.05, 0.1), "beyond:rtn": (0.4, 0.3), "beyond:exl2": (1.2, 0.3), "beyond:fp8": (0.3, 0.2),
    "beyond:mxfp8": (0.1, 0.2), "beyond:nvfp4": (math.log(2), 0.15), "beyond:mxfp4": (math.log(mxfp4_over_nvfp4()), 0.1),
    "beyond:wanda": (0.1, 0.2), "beyond:4:8": (0.5, 0.5), "beyond:2:4": (0.5, 0.5),
}  # fmt: skip
#: Standard deviations of a family's or a method's own coefficient around the general one, by the kind of the general one.
OWN = {"smaller:": 0.15, "beyond:": 0.15, "fewer_bits": 0.15, "bend": 0.7}
#: Mean and standard deviation of the other coefficients, which have no general one.
SINGLE = {
    "family:": (0.0, 0.35), "family_outliers:": (0.0, 0.5), "family_zeros:": (0.0, 0.35), "family_cache:": (0.0, 0.35), "method:": (0.0, 1.0), "cache:": (0.0, 1.5),
    "smaller:": (0.1, 0.1), "source:": (0.0, 0.05), "table:": (0.0, 0.1), "suite:": (0.0, 0.7), "metric:": (0.0, 0.08), "model:": (0.0, 0.2),
    "model_method:": (0.0, 0.15), "bend:": (0.1, 1.0),
}  # fmt: skip
#: What is fitted and left out of predictions.
HIDDEN = ("source:", "table:", "suite:", "metric:", "model:", "model_method:")
NOISE = 0.15
#: Perplexities are printed to about this, and run to run they differ by as much.
FLOOR = 0.001
#: What a fit may know of a model under a scheme, most first.
TIERS = ("pair", "model", "family", "unseen")
OFFERED = ("gptq", "awq", "rtn", "exl2", "exl3", "w8a8", "fp8", "mxfp8", "nvfp4a16", "nvfp4", "mxfp4")
_USELESS = math.log(3)


@dataclass(frozen=True)
class Residual:
    """A row, ln of the damage that was predicted of it, and what the fit knew of its model (`tier_of`)."""

    row: Row
    ln_damage: float
    tier: str

    @property
    def value(self) -> float:
        """The rise that was predicted."""
        return quality_law.rise_of(self.row.cause, self.ln_damage)

    @property
    def needed(self) -> float:
        """Half of the interval, in ln of the damage, that would just hold it: it is widened by the noise of perplexities itself."""
        cause, rise = self.row.cause, self.row.rise
        below = quality_law.ln_damage_of(cause, rise - FLOOR) if rise > FLOOR else -math.inf
        return max(0.0, below - self.ln_damage, self.ln_damage - quality_law.ln_damage_of(cause, rise + FLOOR))

    def interval(self, half: float) -> tuple[float, float]:
        """The ends of the interval of such a half width."""
        low, high = (quality_law.rise_of(self.row.cause, self.ln_damage + part) for part in (-half, half))
        return max(0.0, low - FLOOR), high + FLOOR


def offered(row: Row) -> bool:
    """Whether plans weigh what was done, and it is of use: other methods, suites of tasks, and perplexities three times as high only teach."""
    return (
        not row.metric.startswith(SUITE)
        and row.rise < _USELESS
        and (not isinstance(row.cause, Rounding) or row.cause.method in OFFERED)
    )


def fit(rows: Sequence[Row]) -> Law:
    """Posterior mode of every coefficient; Huber weights against single odd figures."""
    designs = [dict(features(row.cause, row.traits)) | dict(_effects(row)) for row in rows]
    names = sorted({name for design in designs for name in design} | GENERAL.keys())
    column = {name: index for index, name in enumerate(names)}
    X = np.zeros((len(rows), len(names)))
    for index, design in enumerate(designs):
        for name, value in design.items():
            X[index, column[name]] = value
    pull, towards = _priors(names, column)
    free = np.array([feature_kind(name) in FREE or feature_kind(name) in HIDDEN for name in names])
    told = np.array([quality_law.ln_damage_of(row.cause, row.rise) for row in rows])
    variance = np.array([_variance(row) for row in rows])
    weight, found = np.ones(len(rows)), np.ones(len(names))
    for _ in range(4):
        scale = np.sqrt(weight / variance)
        A = np.vstack([X * scale[:, None], pull])
        found = least_squares(A, np.concatenate([told * scale, towards]), free, found)
        odd = np.abs(told - X @ found) / np.sqrt(variance)
        weight = np.where(odd > 2, 2 / np.maximum(odd, 2), 1.0)
    return dict(zip(names, found.tolist(), strict=True))


def _variance(row: Row) -> float:
    """Of ln of the damage that a row tells of: by run, by what was read from something else, by the figures that tables print."""
    printed = 0.0 if row.metric == "kl" or row.metric.startswith(SUITE) else (0.003 / row.baseline + 0.0008) / row.rise
    told = [quality_law.ln_damage_of(row.cause, row.rise * part) for part in (0.99, 1.01)]
    steep = (told[1] - told[0]) / math.log(1.01 / 0.99)
    # Beyond a rise of one half, tables disagree by multiples; a damage that the rise lags behind does so by itself.
    beyond = 0.0 if isinstance(row.cause, Zeros) else 0.5 * min(max(row.rise - 0.5, 0.0), 2.0)
    return (NOISE**2 + row.blur**2 + printed**2) * steep**2 + beyond**2


def _effects(row: Row) -> Iterator[tuple[str, float]]:
    """What single tables and models add to their rows."""
    if row.metric.startswith(SUITE):
        yield row.metric, 1.0
        return
    yield f"source:{row.source}", 1.0
    yield f"table:{row.group}", 1.0
    if isinstance(row.cause, Rounding) and row.cause.bits:
        yield f"model:{model_key(row.traits)}", 1.0
        yield f"model_method:{model_key(row.traits)}/{row.cause.method}", 1.0
    if row.metric != "wikitext-2":
        yield f"metric:{row.metric}", 1.0


def _priors(names: Sequence[str], column: Mapping[str, int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Every coefficient's prior as a row of a least-squares problem: its own mean, or the general coefficient's value."""
    pull, towards = np.zeros((len(names), len(names))), np.zeros(len(names))
    for index, name in enumerate(names):
        if "|" in name:
            width = OWN[feature_kind(general(name))]
            pull[index, index], pull[index, column[general(name)]] = 1 / width, -1 / width
        else:
            mean, width = GENERAL.get(name) or SINGLE[feature_kind(name)]
            pull[index, index], towards[index] = 1 / width, mean / width
    return pull, towards


def least_squares(
    A: NDArray[np.float64], b: NDArray[np.float64], free: NDArray[np.bool_], near: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The x that minimises |A x - b|, non-negative but where `free`: an active set, grown by one and shrunk by all that are negative, that
    begins with what is not 0 in an x that is `near`.
    """
    gram, right = A.T @ A, A.T @ b
    active = free | (near > 0)
    for _ in range(10 * len(right)):
        x = np.zeros(len(right))
        x[active] = np.linalg.solve(gram[np.ix_(active, active)], right[active])
        negative = active & ~free & (x < 0)
        if negative.any():
            active &= ~negative
            continue
        gradient = np.where(active, 0.0, gram @ x - right)
        if gradient.min() > -1e-8:
            return x
        active[gradient.argmin()] = True
    raise ArithmeticError("the active set does not settle")


def seen_by(rows: Sequence[Row]) -> dict[str, dict[str, list[str]]]:
    """The schemes of rows by family and size."""
    found: dict[str, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for row in rows:
        found[row.traits.family][f"{row.traits.size_b:g}"].add(scheme(row.cause))
    return {
        family: {size: sorted(schemes) for size, schemes in sorted(sizes.items(), key=lambda item: float(item[0]))}
        for family, sizes in sorted(found.items())
    }


def cross_validate(rows: Sequence[Row], key: Callable[[Row], Hashable]) -> list[Residual]:
    """Residuals of every row, all rows of its group held out. A scheme that one other table at most teaches is no residual: with a
    source as large as OmniQuant's gone, whole-row scales would be a guess, which no real prediction is."""
    out: list[Residual] = []
    for held in sorted({key(row) for row in rows}, key=str):
        train = [row for row in rows if key(row) != held]
        law, seen = fit(train), seen_by(train)
        for row in (row for row in rows if key(row) == held and _taught(row.cause, train)):
            known = nominal(row.traits, tuple(map(float, seen.get(row.traits.family, ()))))
            found = quality_law.ln_damage(law, row.cause, known)
            out.append(Residual(row, found, quality_law.tier_of(seen, row.cause, known)))
    return out


def _taught(cause: Cause, train: Sequence[Row]) -> bool:
    """Whether other tables hold the same scheme, so far as that can be said of its kind of loss."""

    def taught(cause: Cause) -> Hashable:
        return scheme(cause), isinstance(cause, Rounding) and cause.group_size < 0

    return len({row.group for row in train if taught(row.cause) == taught(cause)}) >= 2


def spreads(residuals: Sequence[Residual]) -> dict[str, dict[str, float]]:
    """Half widths of the 90 % interval in ln by kind of loss, and factors on them by tier, by family and by size.

    Each is what nine in ten held-out rows need, shrunk towards what all kinds need by five rows' worth (a factor towards 1).
    """
    needed = [r for r in residuals if offered(r.row)]
    every = _ninth([r.needed for r in needed], 1.0)
    told = {
        "kind": lambda r: kind(r.row.cause),
        "tier": lambda r: r.tier,
        "family": lambda r: quality_law.spread_of(r.row.cause, r.row.traits),
        **{name: partial(_middle_of, name) for name in ("size", "size of zeros")},
    }
    found = {name: dict.fromkeys(sorted({key(r) for r in needed} - {""}), 1.0) for name, key in told.items()}
    found["tier"] = dict.fromkeys(TIERS, 1.0)

    def left(name: str, value: str) -> list[float]:
        """What rows need beyond all factors but this one."""
        own = [r for r in needed if told[name](r) == value]
        return [
            r.needed / quality_law.half_width(found, r.row.cause, r.row.traits, r.tier) * found[name][value]
            for r in own
        ]

    for _ in range(4):
        for name in told:
            for value in found[name]:
                found[name][value] = _ninth(left(name, value), every if name == "kind" else 1.0)
            if name == "tier":
                for more, less in pairwise(TIERS):
                    found[name][less] = max(found[name][less], found[name][more])
    for value in found["kind"]:
        # A kind that needs more than most is not narrowed for their sake.
        found["kind"][value] = max(found["kind"][value], float(np.quantile(left("kind", value), 0.9)))
    return found


def _middle_of(name: str, residual: Residual) -> str:
    """The middle of the range of sizes that a row is in, where its kind of loss takes the factors of that name."""
    return quality_law.middle(residual.row.traits) if quality_law.sizes_of(residual.row.cause) == name else ""


def _ninth(values: Sequence[float], typical: float) -> float:
    if not (count := len(values)):
        return typical
    # Of few rows a higher rank, as in conformal prediction: the next row is to lie inside nine times in ten.
    return (count * float(np.quantile(values, min(1.0, 0.9 * (count + 1) / count))) + 5 * typical) / (count + 5)


def covered(residual: Residual, widths: Mapping[str, Mapping[str, float]]) -> bool:
    """Whether a row lies in the interval around its held-out prediction."""
    return residual.needed <= quality_law.half_width(widths, residual.row.cause, residual.row.traits, residual.tier)


def coverage(residuals: Sequence[Residual], widths: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Share inside, median absolute ln error and median half width in ln of rows by size, kind of loss, method, source, and all together."""
    groups: dict[str, list[Residual]] = defaultdict(list)
    for residual in (residual for residual in residuals if offered(residual.row)):
        cause, source = residual.row.cause, publication(residual.row.source)
        for name in (quality_law.size_band(residual.row.traits), kind(cause), f"by {_method(cause)}", source, "all"):
            groups[name].append(residual)
    return {
        name: {
            "rows": len(found), "coverage": round(statistics.mean(covered(r, widths) for r in found), 3),
            "median_ln_error": round(statistics.median(abs(math.log(r.value / r.row.rise)) for r in found), 3),
            "half_width_ln": round(statistics.median(_half_width(r, widths) for r in found), 2),
        }
        for name, found in sorted(groups.items())
    }  # fmt: skip


def _half_width(residual: Residual, widths: Mapping[str, Mapping[str, float]]) -> float:
    """Half of an interval, in ln of the rise."""
    half = quality_law.half_width(widths, residual.row.cause, residual.row.traits, residual.tier)
    low, high = (quality_law.rise_of(residual.row.cause, residual.ln_damage + part) for part in (-half, half))
    return math.log(high / low) / 2


def _method(cause: Cause) -> str:
    """How it rounds, or what it does else: a pattern of zeros, a type of the cache, what is removed."""
    return cause.method if isinstance(cause, Rounding) else scheme(cause)


def publication(source: str) -> str:
    """A source as a table names it: the repository, or the paper's number."""
    place = source.removeprefix("https://").removeprefix("github.com/")
    return "/".join(place.split("/")[:3] if place.startswith("arxiv") else place.split("/")[:2])


def spearman(points: Sequence[tuple[float, float]]) -> float | None:
    """Rank correlation; None where there is too little to rank."""
    ranks = []
    for axis in (0, 1):
        values = [point[axis] for point in points]
        order = sorted(values)
        ranks.append([order.index(value) for value in values])
    if len(points) < 4 or any(len(set(rank)) < 2 for rank in ranks):
        return None
    return statistics.correlation(*ranks)


def figures(residuals: Sequence[Residual]) -> dict[str, float]:
    """Of judged rows: median and 90th percentile of the relative error, median rank correlation within (source, model)."""
    judged = [residual for residual in residuals if residual.row.judged]
    errors = [abs(residual.value / residual.row.rise - 1) for residual in judged]
    groups: dict[Hashable, list[tuple[float, float]]] = defaultdict(list)
    for residual in judged:
        groups[residual.row.group].append((residual.value, residual.row.rise))
    ranks = [rank for rank in map(spearman, groups.values()) if rank is not None]
    return {
        "rows": len(errors), "median": round(statistics.median(errors), 3), "p90": round(float(np.quantile(errors, 0.9)), 3),
        "spearman": round(statistics.median(ranks), 3) if ranks else math.nan,
    }  # fmt: skip


def check_figures() -> dict[str, list[tuple[float, bool]]]:
    """Of figures that were never fitted (`quality_check.jsonl`), by method: the relative error of the installed law, and whether its
    interval holds them. Of the small models that were measured here the law knows other formats. `said`: where a method's name is not all.
    """
    found: dict[str, list[tuple[float, bool]]] = defaultdict(list)
    for row in map(json.loads, (DATA / "quality_check.jsonl").read_text().splitlines()):
        own = (row["family"], row["size_b"], row["tokens_t"]) if "family" in row else ()
        traits = Traits(*own, tuned=True) if own else traits_by_name(row["model"])
        loss = quality_law.loss(traits, Rounding(row["method"], row["bits"], row.get("group_size") or 0))
        name = row.get("said", row["method"])
        found[name].append((abs(loss.value / row["rise"] - 1), loss.low <= row["rise"] <= loss.high))
    return found


def print_coverage(title: str, groups: Mapping[str, Mapping[str, float]]) -> None:
    """A table of `coverage`, as the page on accuracy holds it."""
    print(f"\n{title}\n\n| | rows | covered | median error in ln | half width in ln |\n|---|---|---|---|---|")
    for name, line in groups.items():
        print(
            f"| {name} | {line['rows']} | {line['coverage'] * 100:.0f} % | {line['median_ln_error']:.2f} | {line['half_width_ln']:.2f} |"
        )


def named(cause: Cause) -> str:
    """Return what was done to a model, as tables say it."""
    match cause:
        case Rounding(method=method, bits=bits, group_size=group):
            return (
                method
                + (f"-{bits:g}" if bits else "")
                + (f"-g{group}" if group > 0 else "-channel" if group < 0 else "")
            )
        case Removed(share=share):
            return f"{share * 100:.0f} % of the {cause.what} dropped"
    return scheme(cause)


def main() -> None:
    """Fit, judge, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    write = not parser.parse_args().check
    rows = list(loss_rows())
    law, seen = fit(rows), seen_by(rows)
    fitted = [
        Residual(
            row, quality_law.ln_damage(law, row.cause, row.traits), quality_law.tier_of(seen, row.cause, row.traits)
        )
        for row in rows
    ]
    held_out = {
        "source": cross_validate(rows, lambda row: publication(row.source)),
        "model": cross_validate(rows, lambda row: model_key(row.traits)),
        "family": cross_validate(rows, lambda row: row.traits.family),
    }
    widths = spreads(held_out["source"])
    report = {name: figures(residuals) for name, residuals in {"nothing": fitted, **held_out}.items()}
    covering = {name: coverage(residuals, widths) for name, residuals in {"nothing": fitted, **held_out}.items()}
    document = {
        "provenance": {
            "script": "benchmarks/fit_quality.py", "data": "benchmarks/data/quality_refs.jsonl, prune_refs.jsonl, prune_recovery.jsonl, quality_own.jsonl",
            "rows": len(rows), "errors": report, "coverage": {name: found["all"] for name, found in covering.items()},
        },
        "coefficients": {name: round(value, 4) for name, value in law.items() if feature_kind(name) not in HIDDEN},
        "models": {name.removeprefix("model:"): round(value, 3) for name, value in law.items() if feature_kind(name) == "model:" and abs(value) > 0.05},
        "seen": seen, "schemes": sorted({scheme(row.cause) for row in rows}),
        "widths": {name: {key: round(value, 3) for key, value in found.items()} for name, found in widths.items()},
        "floor": FLOOR, "ceiling_ln": math.log(12.0), "kl_ratio": kl_ratio(),
    }  # fmt: skip
    for name, line in report.items():
        print(f"without {name:8s}", line)
    for name, found in covering.items():
        print_coverage(f"Held out: {name}", found)
    print("\nwidths", widths, "\nkl_ratio", document["kl_ratio"], "\nmodels", document["models"])
    if write:
        OUT.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n")
        quality_law.law.cache_clear()
        quality_law.loss.cache_clear()
    for method, pairs in check_figures().items():
        errors, inside = zip(*pairs, strict=True)
        print(
            f"never fitted, {method}: {sum(inside)} of {len(pairs)} inside, median error {statistics.median(errors):.3f}"
        )


if __name__ == "__main__":
    main()
