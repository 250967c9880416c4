"""Rows of `data/quality_refs.jsonl` that print accuracies of a model stored in about 4 bits, as losses of perplexity that teach how loss goes with
size.

Makers of recent and of large models print averages over tasks, no perplexities. What is lost of one relative to the unrounded model's is
worth some nats, how many differs from suite to suite (and is free in the fit, `suite:`); how it goes from size to size within one suite is
what nothing else tells of models past 30 · 10^9 weights in 4 bits. Averages of thousands of questions still move by half a percent from run to
run, so small losses weigh little. Eight-bit formats lose less than that and are left out.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from passes.formats.format import Rounding

#: Nats a lost share of accuracy, where to start from: 8 B models lose 0.38 of the rise (MMLU of Llama-3-8B in llama.cpp's formats).
_NATS = 1 / 0.38
#: Standard deviation of a relative loss from run to run, the least loss that is told from none, and the spread in ln of what one is worth: four
#: times as much in nats at 70 B as at 8 B in the tables that print both.
_RUNS, _LEAST, _WORTH = 0.005, 0.004, 0.9
_METHODS = (
    (r"W4A16 g128|GPTQ-Int4", Rounding("gptq", 4, 128)),
    (r"AWQ", Rounding("awq", 4, 128)),
    (r"NVFP4( RTN)?", Rounding("nvfp4", 0)),
    (r"MXFP4( RTN| orig-RTN)?", Rounding("mxfp4", 0)),
)


@dataclass(frozen=True)
class LostAccuracy:
    """What a model stored one way loses of its mean accuracy over a suite of tasks, as `rise` in nats a token; `blur` its spread in ln."""

    source: str
    suite: str
    model: str
    rounding: Rounding
    rise: float
    blur: float


def lost_accuracies(rows: Iterable[dict[str, Any]]) -> Iterator[LostAccuracy]:
    """Yield every average over a suite that a table prints beside that of the unrounded model."""
    for row in rows:
        rounding = next((found for pattern, found in _METHODS if re.fullmatch(pattern, row["method"])), None)
        if rounding is None or not row.get("baseline_value") or not _averages(row):
            continue
        if rounding.bits and row.get("group_size") not in (None, rounding.group_size):
            continue
        lost = max(_LEAST, 1 - row["value"] / row["baseline_value"])
        blur = math.hypot(_WORTH, _RUNS / lost)
        yield LostAccuracy(row["source_url"], row["dataset"], row["model"], rounding, _NATS * lost, blur)


def _averages(row: dict[str, Any]) -> bool:
    return row["metric"].startswith(("accuracy", "score")) and re.search(r"average|Avg", row["dataset"]) is not None
