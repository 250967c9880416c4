"""The cache that a workload needs as it is used, against what a plan leaves for it.

Each running request holds its own input and output, not the longest context; the context must hold for one longest request. Requests
beyond those that run at once wait, which costs them time to the first token and no memory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from passes.errors import Reason, ReasonKind
from planner.choice.odds import at_least
from planner.figures import apart
from targets.engines.accounting import CONCURRENCY_DOES_NOT_FIT
from targets.engines.engine import Memory, MemoryEstimate
from targets.quantity import Quantity
from targets.workload import Workload


@dataclass(frozen=True, slots=True)
class Capacity:
    """Cache bytes on the tightest rank of one replica. `request_bytes`: of one request at its own length; `longest_bytes`: of one at the
    whole context; `room`: what is left beyond `needed_bytes`, negative where they do not fit. Of the whole machine: `clients`, requests
    that arrive at once, and `running`, those of them at work, spread over `replicas`.
    """

    request_bytes: int
    longest_bytes: int
    clients: int
    running: int
    room: Quantity
    replicas: int = 1

    @property
    def at_once(self) -> int:
        """Requests at work on the replica that has most of them."""
        return -(-self.running // self.replicas)

    @property
    def needed_bytes(self) -> int:
        """Cache of all running requests of a replica, and at least of one longest."""
        return max(self.at_once * self.request_bytes, self.longest_bytes)

    @property
    def waiting(self) -> int:
        """Requests that wait for others to end."""
        return self.clients - self.running

    @property
    def odds(self) -> float:
        """The probability that they fit."""
        return at_least(self.room, 0.0)


def capacity(estimate: MemoryEstimate, sequences: int, workload: Workload, replicas: int = 1) -> Capacity:
    """Return how the cache of an estimate serves a workload. `sequences`: requests that one replica runs at once, at most."""
    clients = workload.concurrency or 1
    running = min(clients, sequences * replicas)
    left = estimate.memory.kv_cache
    empty = Capacity(estimate.bytes_per_request, _longest(estimate), clients, running, left, replicas)
    needed = empty.needed_bytes
    return replace(empty, room=Quantity(left.value - needed, left.low - needed, left.high - needed, left.basis))


def running_at_once(estimate: MemoryEstimate) -> int:
    """Return the requests that surely run at once (by the lower end of the cache), whatever is asked; 0 where one longest does not fit."""
    left = estimate.memory.kv_cache.low
    return 0 if left < _longest(estimate) else int(left // max(estimate.bytes_per_request, 1))


#: No engine here runs more requests at once by itself (vLLM's default on its largest cards).
_MOST_AT_ONCE = 1024


def loads(estimate: MemoryEstimate) -> tuple[int, ...]:
    """Return the numbers of requests at once that are weighed where none is asked: powers of two up to what surely fits, and that."""
    most = min(running_at_once(estimate), _MOST_AT_ONCE)
    return (*(1 << n for n in range((most - 1).bit_length())), most) if most else ()


def _longest(estimate: MemoryEstimate) -> int:
    """The cache that the engine wants to have before it starts."""
    return round(estimate.memory.kv_cache.value - estimate.margin.value)


def reasons(estimate: MemoryEstimate, capacity: Capacity, workload: Workload) -> tuple[Reason, ...]:
    """Why a workload does not fit: what the engine says of starting, and what is short of the cache in use."""
    own = tuple(reason for reason in estimate.reasons if reason.code != CONCURRENCY_DOES_NOT_FIT)
    if own or capacity.room.value >= 0:
        return own
    fits = capacity.replicas * max(0, int(estimate.memory.kv_cache.value // max(capacity.request_bytes, 1)))
    each = f" ({capacity.at_once} on each of {capacity.replicas} replicas)" if capacity.replicas > 1 else ""
    needed, left = apart(capacity.needed_bytes, max(estimate.memory.kv_cache.value, 0), "B")
    message = f"{capacity.running} requests of {workload.request_tokens:,} tokens{each} need {needed} of cache, {left} are left"
    data = {"asked": capacity.running, "fits": fits}
    return (Reason(CONCURRENCY_DOES_NOT_FIT, message, f"concurrency {fits} fits", data, ReasonKind.TOO_LARGE),)


def as_used(memory: Memory, kv_needed: int) -> Memory:
    """Return a memory estimate whose total holds the cache that is needed instead of every request at the whole context."""
    parts = memory.weights + memory.activations + memory.non_torch + memory.cuda_graphs
    return replace(memory, total=parts + Quantity.exact(kv_needed))
