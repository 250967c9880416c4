"""When requests are sent: so many clients, a rate, a burst, a trace. One description for all: when each is due, how many may be out."""

from __future__ import annotations

import random
from collections.abc import Sequence

from passes.record import dataclass


@dataclass(frozen=True, slots=True)
class Arrivals:
    """`due`: the second that each request is sent at, in order, or as soon after as fewer than `at_once` are unanswered, if any."""

    due: Sequence[float]
    at_once: int | None = None


def closed_loop(clients: int, requests: int) -> Arrivals:
    """Let all `clients` start at once; each sends the next of `requests` when it is answered (`vllm bench serve --max-concurrency`)."""
    return Arrivals((0.0,) * requests, clients)


def burst(requests: int, at_once: int | None = None) -> Arrivals:
    """Send all requests at once (`--request-rate inf`)."""
    return Arrivals((0.0,) * requests, at_once)


def poisson(
    rate: float, requests: int, burstiness: float = 1.0, *, seed: int = 0, at_once: int | None = None
) -> Arrivals:
    """Draw `rate` requests a second by chance: gaps of a gamma distribution of shape `burstiness`, 1 for a Poisson process, less for more
    clustered ones.

    As `vllm bench serve` has it (`benchmarks/serve.py:get_request`): gaps are scaled so that the last is sent at requests / rate.
    """
    chance = random.Random(seed)
    at, due = 0.0, []
    for _ in range(requests):
        at += chance.gammavariate(burstiness, 1 / burstiness)
        due.append(at)
    scale = requests / rate / at if at else 0.0
    return Arrivals([scale * each for each in due], at_once)
