"""Tables of what the stored fits say of themselves, and of what benchmarks measured once: nothing is fitted or measured here.

python -m benchmarks.stored_tables && python -m benchmarks.results
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import fit_quality, measured
from benchmarks.measured_tables import TABLES
from benchmarks.quality_rows import DATA
from benchmarks.results import keep
from benchmarks.tables import percent, table
from targets.speed.rates import FIT, Regime

_BY = "python -m benchmarks.stored_tables"
_QUALITY_SAYS = {
    "nothing": "nothing (in sample)", "source": "each source whole", "model": "each model whole, in every source",
    "family": "each model family whole",
}  # fmt: skip
KINDS_SAY = {
    "integers": "3 bits and more (GPTQ, AWQ, EXL2, EXL3)", "integers to nearest": "3 bits and more, rounded to nearest",
    "few bits": "fewer than 3 bits", "fp4": "NVFP4, MXFP4", "fp8": "FP8, MXFP8", "int8": "W8A8", "cache": "KV cache",
    "experts": "experts dropped", "depth": "blocks dropped", "width": "width cut", "zeros": "zeros",
}  # fmt: skip
_TIERS_SAY = {
    "pair": "this model's rounding by this method is in a table", "model": "this model is, by other methods",
    "family": "its family is", "unseen": "nothing of it is",
}  # fmt: skip
SPEED_SAYS = {
    Regime.ALONE: "one request at a time", Regime.BELOW: "below saturation", Regime.SATURATED: "saturated",
    Regime.BURST: "all requests at once",
}  # fmt: skip


def quality_errors(stored: Mapping[str, Any]) -> str:
    """Return errors of the kind of rows that users ask for, and how many of all rows lie inside, by what the fit did not see."""
    told = stored["provenance"]
    rows = [
        (
            said, errors["rows"], percent(errors["median"]), percent(errors["p90"]), f"{errors['spearman']:.2f}",
            f"{percent(inside['coverage'])} of {inside['rows']}",
        )
        for name, said in _QUALITY_SAYS.items()
        for errors, inside in [(told["errors"][name], told["coverage"][name])]
    ]  # fmt: skip
    heads = ("what is held out", "rows", "median error", "90th percentile", "rank correlation within a model",
             "of all rows inside their intervals")  # fmt: skip
    return table(heads, rows)


def quality_widths(stored: Mapping[str, Any]) -> str:
    """Return the half widths of the 90 % intervals, and the factors on them."""
    widths = stored["widths"]
    kinds = sorted(widths["kind"].items(), key=lambda entry: entry[1])
    factors = (
        *((said, widths["tier"][tier]) for tier, said in _TIERS_SAY.items()),
        *sorted(widths["family"].items()),
        *((f"{name}: {size} B", value) for name in ("size", "size of zeros") for size, value in widths[name].items()),
    )
    return "\n\n".join(
        (
            table(("kind of loss", "half width in ln"), [(KINDS_SAY[name], f"{value:.2f}") for name, value in kinds]),
            table(("of the model", "times"), [(name, f"{value:.2f}") for name, value in factors]),
        )
    )


def quality_unseen(found: Mapping[str, Sequence[tuple[float, bool]]]) -> str:
    """Return how the law does on figures that were never fitted."""
    rows = [
        (method, len(pairs), sum(inside for _, inside in pairs), percent(statistics.median(error for error, _ in pairs)))
        for method, pairs in sorted(found.items())
    ]  # fmt: skip
    return table(("method", "figures", "inside their intervals", "median error"), rows)


def speed_widths(stored: Mapping[str, Any]) -> str:
    """Return the half widths of the 90 % intervals by engine and regime of load, as factors."""
    rows = [
        (engine, said, *(_times(entry["widths"][part][regime][figure]) for part in ("dense", "experts") for figure in ("tpot", "ttft")))
        for engine, entry in sorted(stored["engines"].items())
        for regime, said in SPEED_SAYS.items()
    ]  # fmt: skip
    heads = ("engine", "load", "TPOT", "TTFT", "TPOT of experts", "TTFT of experts")
    return table(heads, rows)


def tables() -> dict[str, tuple[str, tuple[Any, ...]]]:
    """Return each table by the name that it is kept under, with the files that it is made of."""
    quality, speed = json.loads(fit_quality.OUT.read_text()), json.loads(FIT.read_text())
    unseen = DATA / "quality_check.jsonl"
    return {
        "quality-errors": (quality_errors(quality), (fit_quality.OUT,)),
        "quality-widths": (quality_widths(quality), (fit_quality.OUT,)),
        "quality-unseen": (quality_unseen(fit_quality.check_figures()), (fit_quality.OUT, unseen)),
        "speed-widths": (speed_widths(speed), (FIT,)),
        **{name: (made.text(), (*made.files, measured.file_of(name))) for name, made in TABLES.items()},
    }


def _times(width: float) -> str:
    return f"×/÷ {math.exp(width):.2f}"


def main() -> None:
    """Keep the tables."""
    for name, (text, files) in tables().items():
        keep(name, _BY, files, text)
        print(f"{name}\n\n{text}\n")


if __name__ == "__main__":
    main()
