"""What several documents print alike."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from planner.figures import show
from targets.engines.engine import MOST_CLIENTS

if TYPE_CHECKING:
    from targets.engines.engine import SpeedEstimate


def size(count: float) -> str:
    """Write bytes as people read them."""
    return show(count, "B")


def tick(holds: bool) -> str:
    """Return the mark, as markup, of what holds or does not."""
    return "[green]✓[/]" if holds else "[red]✗[/]"


def load_lines(speed: SpeedEstimate, odds: float | None, embeds: bool = False) -> Iterator[str]:
    """Say what the simulated load showed: percentiles, waiting, how many users are served, with which odds (None: by the predicted values).
    Of requests that arrive no rate of the run is told: that holds its slow end, and is none that could be served. `embeds`: nothing is
    decoded.
    """
    if speed.ttft_p95_ms is None or speed.requests_s is None:
        return
    how = "as predicted, whatever the odds" if odds is None else f"with the odds asked for ({show(odds, 'odds')})"
    nobody = "" if odds is None else "; the marks of the goals are by their predicted values"
    told = []
    for name, digits in (("ttft", 0), *(() if embeds else (("tpot", 1), ("e2e", 0)))):
        usual, most = (speed.latency(name, share).value for share in ("p50", "p95"))
        told.append(f"{name.upper()} p50 {usual:,.{digits}f}, p95 {most:,.{digits}f} ms")
    rate = "" if speed.highest_rate is not None else f"; {speed.requests_s.value:.3g} requests/s"
    yield f"{'; '.join(told)}{rate}"
    if speed.cache_full or speed.preemptions:
        waited, lost = speed.cache_full or 0.0, speed.preemptions or 0
        yield f"requests wait for cache {waited:.0%} of the time; {lost:,} preemptions in {speed.requests:,} requests"
    if speed.most_clients is not None:
        clients = "1 client" if speed.most_clients == 1 else f"{speed.most_clients:,} clients"
        if speed.most_clients == 0:
            yield f"not even one client is served within the goals on a request {how}{nobody}"
        elif speed.most_clients < MOST_CLIENTS:
            yield f"serves {clients} at once within the goals on a request {how}"
        else:
            yield f"even {clients} at once break no goal on a request: those beyond what runs at once wait, and no goal bounds that"
    if speed.highest_rate == 0:
        yield f"no rate of requests is served within the goals on a request {how}{nobody}"
    elif speed.highest_rate is not None:
        yield f"serves {speed.highest_rate:.3g} requests a second within the goals on a request {how}{_grows(speed)}"


def _grows(speed: SpeedEstimate) -> str:
    """From which rate on the queue grows, whatever is asked of a request."""
    return "" if speed.capacity_req_s is None else f"; beyond {speed.capacity_req_s.value:.3g} the queue grows"
