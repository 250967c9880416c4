"""Rows of `data/prune_recovery.jsonl` as losses of perplexity: models with experts, channels or blocks removed and not trained afterwards.

The table's metrics are mostly accuracies. They are mapped as −ln of the share that is left of the accuracy above chance, times what that is
worth in log-perplexity: the median over LLM-Pruner's runs of LLaMA-7B, which print both. It is a rough measure (one run is worth 1.5, one 2.6),
and one that saturates, as grade-school arithmetic does for a strong model; so such rows weigh little in the fit (`BLUR`).
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from passes.ir.distortions import Removed

DATA = Path(__file__).parent / "data" / "prune_recovery.jsonl"
#: Standard deviation in ln of a loss that is read from accuracies.
BLUR = 0.7
#: Accuracy of guessing, by the beginning of a task's name; 0 of the others, where an answer is written.
_CHANCE = {
    "boolq": 0.5, "piqa": 0.5, "winogrande": 0.5, "rte": 0.5, "hellaswag": 0.25, "arc": 0.25, "openbookqa": 0.25, "mmlu": 0.25,
}  # fmt: skip
#: What an `axis` says is gone: (pattern of "from -> to", or of what is kept of `sparsity`, what it is).
_AXES = ((r"experts (\d+)->(\d+)", "experts"), (r"layers (\d+)->(\d+)", "blocks"), (r"moe ffn (\d+)->(\d+)", "weights"))
#: The least loss that accuracies see, and the most: who guesses has lost that much or more.
_LEAST_LOST, _NEAR_CHANCE = 0.002, 2.0


@dataclass(frozen=True)
class PrunedModel:
    """A model with a part removed: ln of the rise of its perplexity by its accuracies, as `rise`."""

    source: str
    model: str
    size_b: float
    removed: Removed
    rise: float


def pruned_models() -> Iterator[PrunedModel]:
    """Yield a figure for each model and removal, over all its tasks."""
    tasks: dict[tuple[str, str, float, Removed], list[dict[str, Any]]] = defaultdict(list)
    for row in _rows():
        removed = _removed(row)
        if removed is not None and row["recovery"] == "none" and row["baseline_value"] and row["params_before_b"]:
            tasks[row["source_url"], row["model"], row["params_before_b"], removed].append(row)
    for (source, model, size, removed), rows in tasks.items():
        if (lost := _lost(rows)) < _NEAR_CHANCE:
            yield PrunedModel(source, model, size, removed, nats_a_lost_share() * lost)


@lru_cache(maxsize=1)
def nats_a_lost_share() -> float:
    """Return the rise of log-perplexity for −ln of the accuracy left above chance: the median of runs that print both."""
    runs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in _rows():
        if row["id"].startswith("zlab-llmpruner") and row["recovery"] == "none" and row["baseline_value"]:
            runs[row["method"]].append(row)
    ratios = []
    for rows in runs.values():
        [perplexity] = [row for row in rows if row["metric"] == "perplexity"]
        rise = math.log(perplexity["value"] / perplexity["baseline_value"])
        ratios.append(rise / _lost([row for row in rows if row is not perplexity]))
    return statistics.median(ratios)


def _lost(rows: Sequence[dict[str, Any]]) -> float:
    """−ln of the share that is left of the mean accuracy above chance."""
    whole = 100.0 if rows[0]["metric"].endswith("%") else 1.0
    chance = statistics.mean(_chance(row["dataset"]) for row in rows)
    left, before = (statistics.mean(row[key] for row in rows) / whole - chance for key in ("value", "baseline_value"))
    return max(_LEAST_LOST, -math.log(max(0.01, left / before)))


def _chance(task: str) -> float:
    return next((share for name, share in _CHANCE.items() if task.startswith(name)), 0.0)


def _removed(row: dict[str, Any]) -> Removed | None:
    if row["method"] == "REAP expert pruning":
        return Removed("experts", row["sparsity"])
    for pattern, what in _AXES:
        if match := re.fullmatch(pattern, row["axis"]):
            return Removed(what, round(1 - int(match[2]) / int(match[1]), 4))  # type: ignore[arg-type]
    return None


def _rows() -> Iterator[dict[str, Any]]:
    for line in DATA.read_text(encoding="utf-8").splitlines():
        yield json.loads(line)
