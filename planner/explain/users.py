"""How many users a plan serves within its goals, and which rate of requests; what breaks first beyond, and which plan serves more."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

from passes.errors import InputError
from planner.choice.capacity import as_used, capacity, running_at_once
from planner.choice.search import judged, most_served, served
from planner.choice.space import limits_of
from planner.choice.verdict import Verdict
from planner.explain.asked import Answer, Asked, Row
from planner.explain.compare import Judged, differences, side
from planner.figures import show
from planner.spec.patch import patched, written
from planner.spec.spec import Spec
from targets.engines.accounting import CONCURRENCY_DOES_NOT_FIT
from targets.engines.engine import MOST_CLIENTS

#: By how much more than the most is asked, to see what breaks.
_BEYOND = 1.25


def how_many(asked: Asked) -> Answer:
    """Say how many clients, and requests a second, the plan serves within the goals; both loads side by side."""
    now = asked.leading
    most = most_served(asked.spec, asked.result.gpu, now.verdict)
    fit = max(1, running_at_once(now.verdict.memory)) * now.verdict.candidate.settings.parallel.dp
    bounded = most.clients is not None and most.clients < MOST_CLIENTS
    clients = most.clients if bounded and most.clients is not None else min(fit, MOST_CLIENTS)
    head = f"{now.label}: {_said(asked.spec, clients if bounded else None, most.rate, fit)}"
    if clients < 1:
        return Answer(head, tuple(_with_more(asked, 0)))
    then = _under(asked, clients)
    breaks = (
        _first_broken(asked, math.ceil(_BEYOND * clients) + 1) if bounded else "more of them wait, which no goal bounds"
    )
    role = "1 client" if clients == 1 else f"{clients:,} clients"
    changed, others = written({"workload": {"concurrency": clients}}), tuple(_with_more(asked, clients))
    return Answer(head, others, side(now, "now"), side(then, role), differences(now, then), breaks, changed)


def _first_broken(asked: Asked, clients: int) -> str:
    beyond = _under(asked, clients)
    reasons = "; ".join(reason.message for reason in beyond.missed)
    return f"with {clients:,} clients: {reasons or 'the goals are kept by the predicted values, but not surely'}"


def _said(spec: Spec, clients: int | None, rate: float, fit: int) -> str:
    limits = limits_of(spec.goals)
    if clients == 0:
        return "not even one client is served within the goals on a request"
    if not limits:
        return (
            f"no goal is on a request's own speed, so none bounds how many are served: {fit:,} run at once in the cache, the others wait; "
            f"requests that arrive are answered as fast as they come up to {rate:.3g} a second (goals: {{ttft: 2 s}} says how many are "
            "served well)"
        )
    arriving = f"of requests that arrive, {rate:.3g} a second"
    if clients is None:
        return f"no goal bounds how long a client waits: {fit:,} run at once in the cache, the others wait; within the goals, {arriving}"
    waiting = f" ({fit:,} at work, the others wait)" if clients > fit else ""
    return f"{clients:,} clients at once are served within the goals on a request{waiting}; {arriving}"


def _under(asked: Asked, clients: int) -> Judged:
    """The plan's own candidate, its load simulated, with so many clients in place of the spec's load."""
    spec = _with_clients(asked.spec, clients)
    verdict = judged(spec, asked.source.ir, asked.leading.verdict.candidate)
    return Judged(spec, asked.source.ir, asked.result, _waiting(spec, served(spec, asked.result.gpu, verdict)))


def _waiting(spec: Spec, verdict: Verdict) -> Verdict:
    """The verdict with clients beyond what the cache holds waiting, as the simulation has it."""
    replicas, memory = verdict.candidate.settings.parallel.dp, verdict.memory
    needs = capacity(memory, max(1, running_at_once(memory)), spec.workload.asked, replicas)
    reasons = tuple(reason for reason in verdict.reasons if reason.code != CONCURRENCY_DOES_NOT_FIT)
    if reasons == verdict.reasons:
        return verdict
    memory = replace(memory, memory=as_used(memory.memory, needs.needed_bytes))
    return replace(verdict, memory=memory, capacity=needs, reasons=reasons)


def _with_clients(spec: Spec, clients: int | str) -> Spec:
    return patched(spec, {"workload": {"rate": None, "max_concurrency": None, "trace": None, "concurrency": clients}})


def _with_more(asked: Asked, clients: int) -> Iterator[Row]:
    """The plan that serves most, where it serves more."""
    spec = patched(_with_clients(asked.spec, "auto"), {"goals": {"prefer": "throughput"}})
    try:
        other: Verdict | None = asked.changed(spec).result.chosen
    except InputError:
        return
    if other is None or other.shown is None or other.capacity.clients <= 1.05 * clients:
        return
    rate = show(other.shown.throughput_tok_s.value, "tok/s")
    told = f"serves {other.capacity.clients:,} clients within the goals, {rate} in all"
    yield Row(other.candidate.label, f"{told} (workload: {{concurrency: auto}}, goals: {{prefer: throughput}})")
