"""What a run shows its users: latencies with their percentiles, rates, how full the cache was. Defined as `vllm bench serve` defines them.

TTFT   from sending to the first token
TPOT   (last token - first token) / (tokens - 1), a request each; requests of one token have none
ITL    time from each token to the next, those of all requests together: long answers count for more
E2E    from sending to the last token
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from operator import sub, truediv

from passes.record import dataclass
from targets.simulation.simulate import Run

#: The percentiles that are told.
PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True, slots=True)
class Distribution:
    """A latency over all requests, in seconds: its mean and its percentiles."""

    mean: float
    percentiles: Mapping[int, float]

    @classmethod
    def of(cls, values: Sequence[float]) -> Distribution:
        """Describe values, at least one; percentiles between two of them are interpolated."""
        ordered = sorted(values)
        return cls(math.fsum(ordered) / len(ordered), {share: _percentile(ordered, share) for share in PERCENTILES})

    @classmethod
    def weighted(cls, values: Iterable[tuple[float, int]]) -> Distribution:
        """Describe values that each came so many times."""
        ordered = sorted(values)
        count = sum(times for _, times in ordered)
        found, seen, percentiles = iter(PERCENTILES), 0, {}
        wanted = next(found, None)
        for value, times in ordered:
            seen += times
            while wanted is not None and seen >= count * wanted / 100:
                percentiles[wanted], wanted = value, next(found, None)
        return cls(math.fsum(value * times for value, times in ordered) / count, percentiles)

    def statistic(self, name: str) -> float:
        """Return `mean` or a percentile (`p95`)."""
        return self.mean if name == "mean" else self.percentiles[int(name[1:])]


def _percentile(ordered: Sequence[float], share: int) -> float:
    at = (len(ordered) - 1) * share / 100
    low = math.floor(at)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (at - low)


@dataclass(frozen=True, slots=True)
class Figures:
    """Of one run: latencies; `tpot`, `itl` None where every answer has one token. `throughput`: tokens of answers a second, from the first
    request sent to the last answered. `full`: share of that time in which a request waited for the cache.
    """

    ttft: Distribution
    tpot: Distribution | None
    itl: Distribution | None
    e2e: Distribution
    throughput: float
    requests_s: float
    full: float
    preemptions: int

    def latency(self, name: str) -> Distribution | None:
        """Return a latency by its name in reports: `ttft`, `tpot`, `itl`, `e2e`."""
        return {"ttft": self.ttft, "tpot": self.tpot, "itl": self.itl, "e2e": self.e2e}[name]


def figures(run: Run) -> Figures:
    """Sum up a run of at least one request."""
    told = zip(run.first, run.done, run.outputs, strict=True)
    tpot = [(done - first) / (output - 1) for first, done, output in told if output > 1]
    seconds = max(max(run.done) - min(run.sent), 1e-12)
    return Figures(
        Distribution.of(list(map(sub, run.first, run.sent))),
        Distribution.of(tpot) if tpot else None,
        Distribution.weighted(run.gaps) if tpot else None,
        Distribution.of(list(map(sub, run.done, run.sent))),
        sum(run.outputs) / seconds, len(run.sent) / seconds, run.full_s / seconds, run.preemptions,
    )  # fmt: skip


def goodput(run: Run, limits: Iterable[tuple[str, float]]) -> float:
    """Count the requests a second that keep every limit: a latency's name and its most milliseconds (`vllm bench serve --goodput`)."""
    waits = {
        "ttft": lambda: map(sub, run.first, run.sent), "e2e": lambda: map(sub, run.done, run.sent),
        "tpot": lambda: map(truediv, map(sub, run.done, run.first), (max(output - 1, 1) for output in run.outputs)),
    }  # fmt: skip
    kept = ([1e3 * seconds <= most for seconds in waits[name]()] for name, most in limits)
    return sum(map(all, zip(*kept, strict=True))) / max(max(run.done) - min(run.sent), 1e-12)
