"""Fits what distillation leaves of a loss after so many tokens, writes `planner/quality/recovery_fit.json`, prints residuals.

    python -m benchmarks.fit_recovery [--check]      --check: print only, write nothing

Rows: `data/prune_recovery.jsonl` (published runs, each with its source: NVIDIA's Model Optimizer for Minitron and Puzzletron, LLM-Pruner, Sheared
LLaMA, REAP and others; of those with figures before, after and without pruning), and `data/recovery_own.jsonl` (runs of this project's
trainer on SmolLM2: held-out KL divergence before and after).

How accuracies map: a row's share left is (baseline − after) / (baseline − before), of tasks whose gap is at least 8 % of the baseline, between
0.01 and 1; of an own run it is KL after over KL before. Rows of one model, method and budget are one figure, their median, so that
a run judged by eight tasks does not count as eight. ln(share) = −b ln(1 + n / n0) is fitted by least absolute residuals over those
figures; the width is the 90 % quantile of the residuals of models that were held out whole.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize

DATA = Path(__file__).parent / "data"
OUT = Path(__file__).parent.parent / "planner" / "quality" / "recovery_fit.json"
#: The least gap that is looked at, as a share of the baseline; the least share left that a figure stands for.
_GAP, _LEAST = 0.08, 0.01

#: Model, method and budget with the share left.
Figure = tuple[str, int, float]


def published() -> list[Figure]:
    """Return the figures of published runs."""
    shares: dict[tuple[str, str, int], list[float]] = defaultdict(list)
    for line in (DATA / "prune_recovery.jsonl").read_text(encoding="utf-8").splitlines():
        row: dict[str, Any] = json.loads(line)
        before, after, whole, tokens = (
            row[key] for key in ("value_before_recovery", "value", "baseline_value", "recovery_tokens_b")
        )
        if None in (before, after, whole, tokens) or not tokens or not row["metric"].startswith("accuracy"):
            continue
        if whole - before < _GAP * whole:
            continue
        share = min(1.0, max(_LEAST, (whole - after) / (whole - before)))
        shares[row["model"], row["method"], round(tokens * 1e9)].append(share)
    return [(model, tokens, statistics.median(found)) for (model, _, tokens), found in sorted(shares.items())]


def own() -> list[Figure]:
    """Return the figures of own runs; seeds of one run are one figure."""
    shares: dict[tuple[str, int], list[float]] = defaultdict(list)
    for row in _own_rows("logits"):
        shares[row["model"], row["tokens"]].append(row["kl"] / row["kl_before"])
    return [(model, tokens, statistics.median(found)) for (model, tokens), found in sorted(shares.items())]


def _own_rows(method: str) -> list[dict[str, Any]]:
    rows = map(json.loads, (DATA / "recovery_own.jsonl").read_text(encoding="utf-8").splitlines())
    return [row for row in rows if row["method"] == method]


def fitted(figures: Sequence[Figure]) -> tuple[float, float]:
    """Return n0 and b; every model counts the same."""
    counts = defaultdict(int)
    for model, _, _ in figures:
        counts[model] += 1
    tokens, shares = (np.array([figure[part] for figure in figures], dtype=float) for part in (1, 2))
    weights = np.array([1 / counts[model] for model, _, _ in figures])

    def error(values: Any) -> float:
        residuals = np.log(shares) + math.exp(values[1]) * np.log1p(tokens / math.exp(values[0]))
        return float((weights * np.abs(residuals)).sum())

    starts = [(math.log(size), math.log(slope)) for size in (1e4, 1e5, 1e6, 1e7) for slope in (0.15, 0.3)]
    best = min((minimize(error, start, method="Nelder-Mead") for start in starts), key=lambda found: found.fun)
    return math.exp(best.x[0]), math.exp(best.x[1])


def residuals(figures: Sequence[Figure]) -> list[float]:
    """Return ln(found / expected) of each figure by a fit without its model."""
    out = []
    for model in sorted({model for model, _, _ in figures}):
        size, slope = fitted([figure for figure in figures if figure[0] != model])
        out += [
            math.log(share) + slope * math.log1p(tokens / size) for other, tokens, share in figures if other == model
        ]
    return out


def main() -> None:
    """Fit, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    figures = [*published(), *own()]
    size, slope = fitted(figures)
    off = sorted(abs(value) for value in residuals(figures))
    width = off[math.ceil(0.9 * len(off)) - 1]
    print(
        f"{len(figures)} figures of {len({figure[0] for figure in figures})} models: n0 {size:.3g}, b {slope:.3f}, width {width:.2f}"
    )
    for model, tokens, share in figures:
        print(f"  {model[:40]:40} {tokens:15,} left {share:.3f} expected {(1 + tokens / size) ** -slope:.3f}")
    source = "benchmarks/fit_recovery.py: data/prune_recovery.jsonl, data/recovery_own.jsonl"
    law = {"tokens": float(f"{size:.4g}"), "slope": round(slope, 4), "width": round(width, 3)}
    methods = {
        "logits": law | {"basis": "calibrated", "source": source},
        # No row trains on a teacher's text alone: taken to be as good, with twice the width.
        "sequences": law | {"width": round(2 * width, 3), "basis": "assumed", "source": "as logits"},
        "blockwise": _blockwise(),
    }
    if not check:
        OUT.write_text(json.dumps({"methods": methods}, indent=1) + "\n", encoding="utf-8")


def _blockwise() -> dict[str, Any]:
    """What tuning blocks leaves of the loss that they are stored with: a law through the own run, whose slope is assumed."""
    *_, row = _own_rows("blockwise")
    slope, share = 0.1, row["kl"] / row["kl_before"]
    return {
        "tokens": float(f"{row['tokens'] / (share ** (-1 / slope) - 1):.4g}"), "slope": slope, "width": 0.4, "basis": "assumed",
        "source": "SmolLM2 at 3 bits (data/recovery_own.jsonl); the slope is assumed",
    }  # fmt: skip


if __name__ == "__main__":
    main()
