"""When requests are sent: so many clients, a rate, a burst, a trace. One description for all: when each is due, how many may be out."""

from __future__ import annotations

import random
from collections.abc import Sequence

from passes.record import dataclass
from targets.workload import RampUp


@dataclass(frozen=True, slots=True)
class Arrivals:
    """`due`: the second that each request is sent at, in order, or as soon after as fewer than `at_once` are unanswered, if any. `starts`:
    the second from which each of so many may be, in order; from the beginning where none is told.
    """

    due: Sequence[float]
    at_once: int | None = None
    starts: Sequence[float] = ()

    @property
    def timed(self) -> bool:
        """Whether anything but answers decides when a request is sent."""
        return any(self.due) or any(self.starts)


def closed_loop(clients: int, requests: int, ramp_s: float = 0.0) -> Arrivals:
    """Let all `clients` start at once; each sends the next of `requests` when it is answered (`vllm bench serve --max-concurrency`).

    With `ramp_s` they come one after the other, the last after so many seconds (AIPerf's `--concurrency-ramp-duration`).
    """
    starts = [ramp_s * number / (clients - 1) for number in range(clients)] if ramp_s and clients > 1 else ()
    return Arrivals((0.0,) * requests, clients, starts)


def burst(requests: int, at_once: int | None = None) -> Arrivals:
    """Send all requests at once (`--request-rate inf`)."""
    return Arrivals((0.0,) * requests, at_once)


def poisson(
    rate: float,
    requests: int,
    burstiness: float = 1.0,
    *,
    seed: int = 0,
    at_once: int | None = None,
    ramp_up: RampUp | None = None,
) -> Arrivals:
    """Draw `rate` requests a second by chance: gaps of a gamma distribution of shape `burstiness`, 1 for a Poisson process, less for more
    clustered ones. With `ramp_up` the rate grows to that.

    As `vllm bench serve` has it (`benchmarks/serve.py:get_request`): gaps of a rate that stays are scaled so that the last is sent at
    requests / rate.
    """
    chance = random.Random(seed)
    at, due = 0.0, []
    for number in range(requests):
        pace = 1.0 if ramp_up is None else ramp_up.rate(number / max(requests - 1, 1), rate)
        at += chance.gammavariate(burstiness, 1 / burstiness) / pace
        due.append(at)
    scale = 1.0 if ramp_up is not None else requests / rate / at if at else 0.0
    return Arrivals([scale * each for each in due], at_once)
