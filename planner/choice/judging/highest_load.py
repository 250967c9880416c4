"""How many users a candidate serves as the decision rule asks, or which rate of requests."""

from __future__ import annotations

import math
from dataclasses import replace

from planner.choice.demand import limits_of, workload_of
from planner.choice.goals import Goal
from planner.choice.judging.candidate import complete, fitted
from planner.choice.judging.simulated import under
from planner.choice.verdict import Verdict
from planner.spec.patch import patched
from planner.spec.spec import Spec
from targets.gpu import Gpu
from targets.simulation.highest import highest_rate, most_clients


def with_highest_load(spec: Spec, gpu: Gpu, verdict: Verdict) -> Verdict:
    """Return the verdict with how many users it serves within the goals on a request's own speed, where there are some."""
    if not limits_of(spec.goals) or verdict.served is None or verdict.served.ttft_p95_ms is None:
        return verdict
    if workload_of(spec).rate is None:
        return replace(verdict, served=replace(verdict.served, most_clients=most_clients_of(spec, gpu, verdict)))
    return replace(verdict, served=replace(verdict.served, highest_rate=highest_rate_of(spec, gpu, verdict)))


def most_clients_of(spec: Spec, gpu: Gpu, verdict: Verdict) -> int:
    """Return how many clients that wait for answers a candidate serves as `margin` has it, whatever load the spec names; 0: not one."""
    own = None if workload_of(spec).rate is not None else verdict.capacity.clients

    def fits(count: int) -> float:
        load = workload_of(with_clients(spec, count))
        fitting = fitted(verdict.candidate, verdict.ir, gpu, load, verdict.quality)
        return -1.0 if fitting.reasons else _short(fitting.capacity.odds, spec.goals.fit_confidence)

    def served_well(count: int) -> float:
        if count == own:
            return margin(spec, verdict)
        return margin(spec, under(with_clients(spec, count), gpu, verdict))

    def by_formula(count: int) -> float:
        load = with_clients(spec, count)
        fitting = fitted(verdict.candidate, verdict.ir, gpu, workload_of(load), verdict.quality)
        return margin(spec, complete(load, gpu, fitting))

    most = most_clients(own or 1, fits)
    near = most and most_clients(min(own or 1, most), by_formula, most)
    begin = near if 0 < near < most else min(own or 1, most)
    return most and most_clients(begin, served_well, most)


def highest_rate_of(spec: Spec, gpu: Gpu, verdict: Verdict, near: float = 1.0) -> float:
    """Return the requests a second that arrive and are served so, whatever load the spec names. `near`: where it is looked for first
    where the spec names no rate.
    """
    due = workload_of(spec).rate
    own = due if due is not None and math.isfinite(due) else None

    def served_well(rate: float) -> float:
        if rate == own:
            return margin(spec, verdict)
        load = {"rate": f"{rate}/s", "concurrency": None, "trace": None}
        return margin(spec, under(patched(spec, {"workload": load}), gpu, verdict))

    return highest_rate(own or near, served_well)


def with_clients(spec: Spec, clients: int | str) -> Spec:
    """Return the spec with so many clients that wait for answers in place of its load."""
    return patched(spec, {"workload": {"rate": None, "max_concurrency": None, "trace": None, "concurrency": clients}})


def margin(spec: Spec, verdict: Verdict) -> float:
    """Return by how much a load is served as the decision rule asks, negative where it is not: it fits, and a request's own speed and the
    rate meet their goals, with the odds that are asked of either (the least difference of their logits).
    """
    if verdict.capacity.room.value < 0 or verdict.speed is None:
        return -math.inf
    goals = [result for result in verdict.goals if result.goal.of_speed and result.goal is not Goal.THROUGHPUT]
    if not all(result.met for result in goals):
        return min(-_LEAST, *(_short(result.odds, spec.goals.confidence) for result in goals))
    fit = _short(verdict.capacity.odds, spec.goals.fit_confidence)
    return min((fit, *(_short(result.odds, spec.goals.confidence) for result in goals)))


#: The least that odds are apart from none and from certainty.
_LEAST = 1e-6


def _short(odds: float, asked: float) -> float:
    """By how much odds exceed those that are asked, in logits."""
    first, second = (min(max(each, _LEAST), 1 - _LEAST) for each in (odds, asked))
    return 0.0 if odds == asked else math.log(first / (1 - first)) - math.log(second / (1 - second))
