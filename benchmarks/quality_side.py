"""Ratios that the quality fit takes from tables directly: KL against perplexity, MXFP4 against NVFP4."""

from __future__ import annotations

import math
import re
import statistics
from collections import defaultdict

import numpy as np

from benchmarks.quality_rows import raw_rows


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
