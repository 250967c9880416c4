"""Latency under load as curves: what half of the requests, and what 95 of 100, see as more of them come at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from passes.record import dataclass
from planner.figures import show
from planner.report.facts import Facts, Loaded
from planner.report.scale import Axis, Tick, linear, logarithmic
from targets.serve.load import Spread

_LEFT, _RIGHT, _BOTTOM, _TOP = 62.0, 630.0, 220.0, 12.0
#: Milliseconds that latencies are told apart in.
_WITHIN = (0.1, 1e7)
#: Percentiles that are drawn.
_PERCENTILES = ("p50", "p95")


@dataclass(frozen=True, slots=True)
class Curve:
    """One percentile: its points as SVG writes them, each point's place, and its figure in words."""

    name: str
    path: str
    dots: tuple[tuple[float, float, str], ...]


@dataclass(frozen=True, slots=True)
class LoadChart:
    """One latency over the load. `ticks`: the loads that were simulated; `asked`: where the plan's own lies; `measured`: what the engine
    showed there, by percentile.
    """

    name: str
    title: str
    x: Axis
    ticks: tuple[Tick, ...]
    y: Axis
    curves: tuple[Curve, ...]
    asked: float
    measured: tuple[tuple[float, float, str], ...] = ()


@dataclass(frozen=True, slots=True)
class LoadTable:
    """The charts, and the same as a table: heads, then rows."""

    charts: tuple[LoadChart, ...]
    heads: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


_TITLES = {"ttft": "Time to the first token", "tpot": "Time per output token"}


def load_table(facts: Facts) -> LoadTable | None:
    """Draw the simulated loads; None where there are none, or one alone."""
    loads = [each for each in facts.loads if each.speed.ttft_p50_ms is not None]
    if len(loads) < 2:
        return None
    workload = facts.plan.spec.workload.asked
    head = "requests a second" if workload.rate is not None else "clients at once"
    asked = float(workload.rate or workload.concurrency or 1)
    names = tuple(f"{name.upper()} {share}" for name in _TITLES for share in _PERCENTILES)
    seen = {"ttft": facts.timing.ttft_ms, "tpot": facts.timing.tpot_ms} if facts.timing else {}
    charts = tuple(_chart((name, head), loads, asked, seen.get(name)) for name in _TITLES)
    return LoadTable(charts, (head, *names, "all clients"), tuple(tuple(_cells(each)) for each in loads))


def _cells(loaded: Loaded) -> Iterator[str]:
    yield f"{loaded.load:g}"
    for name in _TITLES:
        yield from (show(loaded.speed.latency(name, share).value, "ms") for share in _PERCENTILES)
    yield show(loaded.speed.throughput_tok_s.value, "tok/s")


def _chart(named: tuple[str, str], loads: Sequence[Loaded], asked: float, seen: Spread | None) -> LoadChart:
    """A latency by its name, over a load by its name, and what was `seen` of it at the load asked for."""
    (name, head), title = named, _TITLES[named[0]]
    measured = [] if seen is None else [(share, seen.statistic(share)) for share in _PERCENTILES]
    x = logarithmic(head, "", [each.load for each in loads], (_LEFT, _RIGHT), (1e-6, 1e6))
    values = [each.speed.latency(name, share).value for each in loads for share in _PERCENTILES]
    values += [ms for _, ms in measured]
    spread = max(values) > 20 * min(values)
    ends = (_BOTTOM, _TOP)
    y = logarithmic(title, "ms", values, ends, _WITHIN) if spread else linear(title, "ms", values, ends)
    curves = tuple(_curve(name, share, x, y, loads) for share in _PERCENTILES)
    ticks = tuple(Tick(x.at(each.load), f"{each.load:g}") for each in loads)
    dots = tuple((x.at(asked), y.at(ms), f"{share} at {asked:g}, measured: {show(ms, 'ms')}") for share, ms in measured)
    return LoadChart(name, title, x, ticks, y, curves, x.at(asked), dots)


def _curve(name: str, share: str, x: Axis, y: Axis, loads: Sequence[Loaded]) -> Curve:
    figures = [(each.load, each.speed.latency(name, share).value) for each in loads]
    dots = tuple((x.at(load), y.at(ms), f"{share} at {load:g}: {show(ms, 'ms')}") for load, ms in figures)
    return Curve(share, "M" + " L".join(f"{at} {height}" for at, height, _ in dots), dots)
