"""The table of how far off the speed model is, by load and by who measured: with every row, and by constants that saw no row of that source.

    python -m benchmarks.speed_errors && python -m benchmarks.results

Nothing is fitted anew: what the other rows would have given is read off the stored fit's slopes.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from benchmarks.fit_speed import (
    CPU,
    DATA,
    EXLLAMA,
    VLLM,
    Case,
    cpu_cases,
    fit,
    left_out,
    log_errors,
    serving_cases,
    stream_cases,
)  # fmt: skip
from benchmarks.results import keep
from benchmarks.stored_tables import SPEED_SAYS
from benchmarks.tables import percent, table
from targets.speed.rates import FIT, Regime

#: Figures as pages call them; `waited`: a first token that waited for a place, a proxy or a busy host.
_FIGURES = {
    "tpot": "time per output token",
    "ttft": "first token",
    "waited": "first token that waited",
    "request": "whole request",
}
_PRIORS = {"vllm": VLLM, "exllamav2": EXLLAMA, "vllm-cpu": CPU}
_ONE_TABLE = "silicon"
Errors = Sequence[Mapping[str, float]]


def rows(engine: str, cases: Sequence[Case], fitted: Errors, outside: Errors | None) -> Iterator[tuple[object, ...]]:
    """Give a line for each kind of load, kind of source and figure of an engine."""
    found: dict[tuple[Regime, bool, str], tuple[list[float], list[float]]] = defaultdict(lambda: ([], []))
    for number, case in enumerate(cases):
        for figure, error in fitted[number].items():
            with_all, without = found[case.regime, not case.source.startswith(_ONE_TABLE), figure]
            with_all.append(error)
            without += [outside[number][figure]] if outside else []
    order = sorted(found, key=lambda key: (list(Regime).index(key[0]), key[1], list(_FIGURES).index(key[2])))
    for regime, others, figure in order:
        with_all, without = found[regime, others, figure]
        by = ("published" if others else "the package's table") if engine == "vllm" else ""
        yield engine, SPEED_SAYS[regime], by, _FIGURES[figure], len(with_all), _median(with_all), _median(without)


def _median(errors: Sequence[float]) -> str:
    return percent(statistics.median(abs(math.expm1(error)) for error in errors)) if errors else ""


def _engine(engine: str, cases: list[Case], values: Mapping[str, float]) -> Iterator[tuple[object, ...]]:
    priors = _PRIORS[engine]
    held = {name: value for name, value in values.items() if name not in priors}
    best = fit(cases, priors, held, np.log([values[name] for name in priors]), steps=0)
    several = len({case.source for case in cases}) > 1
    yield from rows(
        engine, cases, [log_errors(best.values(), case) for case in cases], left_out(cases, best) if several else None
    )


def main() -> None:
    """Keep the table."""
    streams, stored = stream_cases(), json.loads(FIT.read_text())["engines"]
    cases = {
        "vllm": [case for case in streams if case.engine == "vllm"] + serving_cases(),
        "exllamav2": [case for case in streams if case.engine == "exllamav2"],
        "vllm-cpu": cpu_cases(),
    }
    lines = [line for engine, each in cases.items() for line in _engine(engine, each, stored[engine]["values"])]
    text = table(("engine", "load", "measured by", "figure", "n", "fitted", "left out"), lines)
    files = (FIT, *(DATA / f"{name}.jsonl" for name in ("speed_refs", "serving_refs", "cpu_timings")))
    keep("speed-errors", "python -m benchmarks.speed_errors", files, text)
    print(text)


if __name__ == "__main__":
    main()
