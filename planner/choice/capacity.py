"""The cache that a workload needs as it is used, against what a plan leaves for it.

Each running request holds its own input and output, not the longest context; the context must hold for one longest request. Requests
beyond those that run at once wait, which costs them time to the first token and no memory. Of requests that arrive at a rate, as many
are in flight as Little's law says.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from passes.errors import Reason, ReasonKind
from passes.ir.model import ModelIR
from passes.record import dataclass, replace
from planner.choice.odds import at_least
from planner.figures import apart
from targets.engines.accounting import CONCURRENCY_DOES_NOT_FIT
from targets.engines.engine import Engine, Memory, MemoryEstimate, Settings, SpeedEstimate
from targets.gpu import Gpu
from targets.quantity import Quantity
from targets.speed.estimate import REQUESTS
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
        return _needed_bytes(self.at_once, self.request_bytes, self.longest_bytes)

    @property
    def waiting(self) -> int:
        """Requests that wait for others to end."""
        return self.clients - self.running

    @property
    def odds(self) -> float:
        """The probability that they fit."""
        return at_least(self.room, 0.0)


def _needed_bytes(at_once: int, request_bytes: int, longest_bytes: int) -> int:
    return max(at_once * request_bytes, longest_bytes)


#: Standard deviations from the mean to the 95th percentile.
_Z95 = 1.645
#: How often requests in flight are counted anew: the engine is told of them, which changes how long each takes.
_ROUNDS = 4


def in_flight(workload: Workload, speed: SpeedEstimate) -> int:
    """Return how many requests of a load that arrives are unanswered at once, which 95 of 100 times are no more.

    By Little's law (doi:10.1287/opre.9.3.383) rate × time from sending to the last token in the mean; the number of independent arrivals
    is Poisson's. No more than there are, or than may be unanswered; where they arrive faster than they are answered, all of them.
    """
    assert workload.rate is not None
    most = min(workload.requests or REQUESTS, workload.at_once or math.inf)
    if math.isinf(workload.rate):
        return int(most)
    each = speed.e2e_ms or speed.ttft_ms + speed.tpot_ms.scaled(workload.output_tokens - 1)
    mean = workload.rate * each.value / 1e3
    return int(min(most, max(1, math.ceil(mean + _Z95 * math.sqrt(mean)))))


def loaded(engine: Engine, ir: ModelIR, gpu: Gpu, settings: Settings, workload: Workload) -> Workload:
    """Return the workload with how many requests are at the engine at once, where it says only how often they come."""
    if workload.rate is None or workload.concurrency is not None:
        return workload
    found = replace(workload, concurrency=1)
    for _ in range(_ROUNDS):
        memory = engine.memory(ir, gpu, settings, found)
        told, found = (
            found,
            replace(workload, concurrency=in_flight(workload, engine.speed(ir, gpu, settings, found, memory))),
        )
        if engine.scheduler(gpu, settings, told) == engine.scheduler(gpu, settings, found):
            break
    return found


def capacity(estimate: MemoryEstimate, sequences: int, workload: Workload, replicas: int = 1) -> Capacity:
    """Return how the cache of an estimate serves a workload. `sequences`: requests that one replica runs at once, at most."""
    clients = workload.concurrency or 1
    running = min(clients, sequences * replicas)
    if workload.rate is not None and math.isfinite(workload.rate):
        # What arrives beyond the cache waits its turn, as the load's simulation has it: no memory is short of it.
        running = min(running, max(1, running_at_once(estimate)) * replicas)
    left, longest = estimate.memory.kv_cache, _longest(estimate)
    needed = _needed_bytes(-(-running // replicas), estimate.bytes_per_request, longest)
    room = Quantity(left.value - needed, left.low - needed, left.high - needed, left.basis)
    return Capacity(estimate.bytes_per_request, longest, clients, running, room, replicas)


def in_use(
    engine: Engine, ir: ModelIR, gpu: Gpu, settings: Settings, workload: Workload
) -> tuple[MemoryEstimate, Capacity]:
    """Return the memory that settings give a model, and how its cache serves a workload."""
    memory = engine.memory(ir, gpu, settings, workload)
    sequences = engine.scheduler(gpu, settings, workload).sequences
    return memory, capacity(memory, sequences, workload, settings.parallel.dp)


def running_at_once(estimate: MemoryEstimate) -> int:
    """Return the requests that surely run at once (by the lower end of the cache), whatever is asked; 0 where one longest does not fit."""
    left = estimate.memory.kv_cache.low
    return 0 if left < _longest(estimate) else int(left // max(estimate.bytes_per_request, 1))


def most_at_once(least: int, most: int, there: Callable[[int], int]) -> int:
    """Return the most requests that surely run at once where the engine is told their number: sampler and graphs of fewer leave more of the
    card to the cache than those of the settings by which `least` do. `there`: how many run where so many are told.
    """
    beyond = min(most, there(least)) + 1
    while beyond - least > 1:
        tried = (least + beyond) // 2
        least, beyond = (tried, beyond) if there(tried) >= tried else (least, tried)
    return least


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
    """Say why a workload does not fit: what the engine says of starting, and what is short of the cache in use."""
    own = tuple(reason for reason in estimate.reasons if reason.code != CONCURRENCY_DOES_NOT_FIT)
    if own or capacity.room.value >= 0:
        return own
    fits = capacity.replicas * max(0, int(estimate.memory.kv_cache.value // max(capacity.request_bytes, 1)))
    each = f" ({capacity.at_once} on each of {capacity.replicas} replicas)" if capacity.replicas > 1 else ""
    needed, left = apart(capacity.needed_bytes, max(estimate.memory.kv_cache.value, 0), "B")
    message = f"{capacity.running:,} requests of {workload.request_tokens:,} tokens{each} need {needed} of cache, {left} are left"
    data = {"asked": capacity.running, "fits": fits}
    return (Reason(CONCURRENCY_DOES_NOT_FIT, message, f"concurrency {fits} fits", data, ReasonKind.TOO_LARGE),)


def as_used(memory: Memory, kv_needed: int) -> Memory:
    """Return a memory estimate whose total holds the cache that is needed instead of every request at the whole context."""
    parts = memory.weights + memory.activations + memory.non_torch + memory.cuda_graphs
    return replace(memory, total=parts + Quantity.exact(kv_needed))
