"""Soaks a running engine: the longest requests that were promised, as many at once, arriving as the workload's do, and watched meanwhile.

What is sent is what the simulation of the same workload runs on (`targets.simulation.serving.load_of`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from passes.record import dataclass
from targets.engines.engine import ServerMetrics
from targets.serve.client import Prompt, request_body, unseen_prompt
from targets.serve.load import Load, LoadTiming, send
from targets.serve.process import Served
from targets.serve.watch import Watched, watching
from targets.simulation.serving import load_of
from targets.workload import Workload

#: Answers a second that a client gets at most, of prompts as long as a context; so many requests are made ready.
_FASTEST = 20


@dataclass(frozen=True, slots=True)
class SoakRequest:
    """What is asked of a soak: a workload whose requests fill the context (`Workload.filled`), and `seconds` in which they are sent."""

    workload: Workload
    seconds: float


@dataclass(frozen=True, slots=True)
class Soaked:
    """What a soak showed: the timing of its requests, and what was watched meanwhile."""

    timing: LoadTiming
    watched: Watched


def soak(
    served: Served,
    model: str,
    asked: SoakRequest,
    metrics: ServerMetrics | None,
    prompt: Callable[[int], Prompt] = unseen_prompt,
) -> Soaked:
    """Put the load on a server and watch it. `prompt`: as `targets.serve.load.load` takes it. Raises EngineError where none is answered."""
    workload = asked.workload
    clients = workload.concurrency or 1
    simulated = load_of(replace(workload, requests=max(clients, _count(workload, clients, asked.seconds))))
    bodies = (request_body(model, prompt(tokens), answer) for tokens, answer in simulated.lengths)
    with watching(served, metrics) as watch:
        sent = send(served, bodies, simulated.arrivals, asked.seconds)
    told = Load(
        workload.input_tokens, workload.output_tokens, clients, len(sent.answers) + len(sent.errors), workload.rate,
        workload.ramp_s,
    )  # fmt: skip
    return Soaked(LoadTiming.of("tightfit's soak", told, sent.answers, sent.seconds, sent.errors), watch.summary())


def _count(workload: Workload, clients: int, seconds: float) -> int:
    """How many requests are made ready: those that arrive meanwhile, all of a burst, of clients that wait more than can be answered."""
    if workload.rate is None:
        return math.ceil(seconds * _FASTEST) * clients
    return clients if math.isinf(workload.rate) else math.ceil(workload.rate * seconds)
