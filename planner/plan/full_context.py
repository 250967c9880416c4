"""What a plan promises of requests that fill their context: those that run at once without one losing its cache to another.

A plan counts the cache for requests as long as the workload's are. A conversation may grow to the whole context; when enough do, a server
that started and serves has its requests wait, or takes blocks from some that it computes anew later (vLLM's preemption).
"""

from __future__ import annotations

import math

from passes.record import dataclass
from planner.choice.capacity import Capacity
from targets.engines.engine import KVEstimate


@dataclass(frozen=True, slots=True)
class FullContext:
    """Requests of the whole machine: `running` at once by the engine's limits, of which `fit` at full context by what is expected of the
    cache, and `surely` by the least of it.
    """

    running: int
    fit: int
    surely: int

    @property
    def promised(self) -> bool:
        """Whether all of them fit, whatever the cache turns out to be."""
        return self.surely == self.running

    def caution(self, context: int) -> str | None:
        """Return what a person must know where the plan only starts; None where all fit."""
        if self.fit == self.running:
            return None
        return (
            f"starts, but at the full context of {context:,} tokens {self.fit} of {self.running} requests fit at once: the others wait "
            "or are preempted (`optimize verify --soak` shows it)"
        )


def full_context(kv: KVEstimate, needs: Capacity) -> FullContext:
    """Return how many of a plan's requests fit at full context. A model whose cache does not grow holds them all."""
    if not needs.request_bytes:
        return FullContext(needs.running, needs.running, needs.running)

    def held(sequences: float) -> int:
        return min(needs.running, needs.replicas * math.floor(min(sequences, needs.running)))

    return FullContext(needs.running, held(kv.max_concurrency.value), held(kv.max_concurrency.low))
