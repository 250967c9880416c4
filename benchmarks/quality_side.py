"""The smaller parts of the quality fit: KL against perplexity, KV-cache types, sparsity."""

from __future__ import annotations

import math
import re
import statistics
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks.quality_rows import raw_rows, traits_by_name
from planner.quality.features import Traits, model_features
from planner.quality.law import feature_kind

#: KV types of the table that stand for what engines offer. ExLlamaV2's FP8 cache drops e4m3's third mantissa bit (e5m2).
_KV = {
    "fp8": "fp8_e5m2", "q4 (Hadamard)": "q4", "q4 (old, before Hadamard)": "q4_plain", "int4 (4.0 avg bits printed)": "int4_token",
    "KIVI* int4": "int4_grouped", "FlexGen-4bit (4.31 avg bits printed)": "int4_grouped", "KIVI* int2": "int2_grouped",
}  # fmt: skip
_PATTERNS = {"50% unstructured": "50%", "4:8": "4:8", "2:4": "2:4"}


def kl_ratio() -> dict[str, float]:
    """KL divergence over rise of log-perplexity, in tables that print both (llama.cpp's scoreboard, Llama-3-8B)."""
    both: dict[tuple[str, str, str], dict[str, float]] = defaultdict(dict)
    for row in raw_rows():
        key = (row["source_url"], row["model"], row["method"])
        if row["metric"] == "KL divergence vs FP16":
            both[key]["kl"] = row["value"]
        elif row["metric"] == "perplexity" and row.get("baseline_value") and row["dataset"] == "wikitext-2":
            both[key]["rise"] = math.log(row["value"] / row["baseline_value"])
    logs = [math.log(pair["kl"] / pair["rise"]) for pair in both.values() if len(pair) == 2 and pair["rise"] > 0.003]
    median = statistics.median(logs)
    return {
        "ratio": round(math.exp(median), 4),
        "spread": round(float(np.quantile(np.abs(np.array(logs) - median), 0.9)), 3),
        "rows": len(logs),
    }


def mxfp4_over_nvfp4() -> float:
    """How many times more accuracy MXFP4 loses than NVFP4, both rounded to nearest (AutoRound, average of 11 tasks)."""
    lost: dict[str, dict[str, float]] = defaultdict(dict)
    for row in raw_rows():
        match = re.fullmatch(r"(MXFP4|NVFP4) (orig-)?RTN", row["method"])
        if match and row["dataset"] == "average of 11 tasks":
            lost[row["model"]][match[1]] = row["baseline_value"] - row["value"]
    return statistics.mean(pair["MXFP4"] / pair["NVFP4"] for pair in lost.values() if len(pair) == 2)


def _sensitivity(law: Mapping[str, float], priors: Mapping[str, tuple[float, float]], traits: Traits) -> float:
    return sum(value * law.get(name, priors[feature_kind(name)][0]) for name, value in model_features(traits))


def kv_losses(law: Mapping[str, float], priors: Mapping[str, tuple[float, float]]) -> dict[str, Any]:
    """ln of the rise by KV type, the model's own sensitivity (that of its weights) taken off, with its spread."""
    found: dict[str, list[float]] = defaultdict(list)
    for row in raw_rows():
        kind = _KV.get(row.get("kv_dtype") or "")
        if kind is None or row["metric"] != "perplexity" or not row.get("baseline_value"):
            continue
        rise = math.log(row["value"] / row["baseline_value"])
        if rise > 0 and not (kind == "fp8_e5m2" and "exllamav2" not in row["source_url"]):
            found[kind].append(math.log(rise) - _sensitivity(law, priors, traits_by_name(row["model"])))
    return {
        kind: {
            "ln": round(statistics.median(logs), 3),
            "spread": round(1.645 * max(0.3, statistics.pstdev(logs)), 3),
            "rows": len(logs),
        }
        for kind, logs in sorted(found.items())
    }


def sparsity_losses() -> dict[str, Any]:
    """ln rise = constant + pattern + method + tokens · ln T/2 + size · ln N/7, ridge; pruned without retraining."""
    designs: list[dict[str, float]] = []
    target: list[float] = []
    for row in raw_rows():
        match = re.fullmatch(r"(SparseGPT|Wanda)", row["method"])
        pattern = _PATTERNS.get(row.get("sparsity") or "")
        if not match or pattern is None or row["metric"] != "perplexity" or row["dataset"] != "wikitext-2":
            continue
        rise = math.log(row["value"] / row["baseline_value"])
        if rise > 0.005:
            traits = traits_by_name(row["model"])
            designs.append({
                "constant": 1.0, f"pattern:{pattern}": 1.0, f"method:{match[1].lower()}": 1.0,
                "log_tokens": math.log(traits.tokens_t / 2), "log_size": math.log(traits.size_b / 7),
            })  # fmt: skip
            target.append(math.log(rise))
    names = sorted({name for design in designs for name in design})
    X = np.array([[design.get(name, 0.0) for name in names] for design in designs])
    width = np.array([3.0 if name == "constant" else 1.0 if ":" in name else 0.5 for name in names])
    solution = np.linalg.solve(X.T @ X / 0.3**2 + np.diag(width**-2.0), X.T @ np.array(target) / 0.3**2)
    errors = np.abs(X @ solution - np.array(target))
    return {
        "coefficients": {name: round(float(value), 3) for name, value in zip(names, solution, strict=True)},
        "spread": round(float(np.quantile(errors, 0.9)), 3), "rows": len(target),
    }  # fmt: skip
