"""The soak of `verify`: what a plan promises of requests that fill their context, beside what held.

One description is read on both sides, `Workload.filled`: the simulation predicts its latencies and preemptions, the engine is put under it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from passes.record import dataclass
from planner.certificate import Comparison, SoakReport
from planner.plan.document import PlanDocument
from planner.plan.full_context import FullContext, full_context
from planner.plan.opened import opened
from planner.plan.parts.chosen import ChosenPlan
from planner.verifying.comparing import shown, within
from targets.engines.engine import SpeedEstimate, find_engine
from targets.quantity import Quantity
from targets.serve.soak import Soaked, SoakRequest
from targets.serve.watch import Watched
from targets.workload import Workload

#: How long requests are sent, in seconds, unless another time is asked for.
SOAK_SECONDS = 600.0
#: The share of its memory by which a process may grow while it is soaked before that is said to be growth.
_GROWTH = 0.05
#: What of the cache's share at its fullest two looks a second may miss.
_SAMPLED = 0.1
_GIB, _MIB = 1 << 30, 1 << 20


@dataclass(frozen=True, slots=True)
class Promise:
    """What a plan says of its requests at full context: how many fit, the speed that users see then, and how full the cache is."""

    requests: FullContext
    speed: SpeedEstimate
    cache_share: Quantity
    memory_bytes: Quantity


def filled(plan: PlanDocument) -> Workload:
    """Return the plan's workload with every request as long as its context, of as many clients as it is made for."""
    workload, needs = plan.spec.workload.asked, plan.decision.capacity
    clients = workload.concurrency or (needs.clients if needs else 1)
    return replace(workload.filled, concurrency=clients)


def request_of(plan: PlanDocument, seconds: float) -> SoakRequest:
    """Return what an engine is soaked with."""
    return SoakRequest(filled(plan), seconds)


def promise(out: Path) -> Promise:
    """Return what the plan of a result promises at full context. Raises InputError where its model cannot be read."""
    plan = opened(out)
    chosen, workload, gpu = plan.document.decision, filled(plan.document), plan.gpu
    engine = find_engine(chosen.engine.name)
    settings = replace(chosen.settings.settings, reserve_bytes=plan.spec.target.reserve)
    memory = engine.memory(plan.ir, gpu, settings, workload)
    requests = _requests(chosen)
    at_once = chosen.kv_cache.max_concurrency

    def share(sequences: float) -> float:
        return min(1.0, requests.running / sequences) if sequences > 0 else 1.0

    full = Quantity(share(at_once.value), share(at_once.high), share(at_once.low), at_once.basis)
    parts = chosen.memory
    held = parts.weights + parts.kv_cache + parts.activations + parts.non_torch + parts.cuda_graphs
    return Promise(requests, engine.served(plan.ir, gpu, settings, workload, memory), full, held)


def _requests(chosen: ChosenPlan) -> FullContext:
    if chosen.capacity is None:
        return FullContext(1, 1, 1)
    return full_context(chosen.kv_cache, chosen.capacity)


def soak_report(promised: Promise, soaked: Soaked, version: str | None = None) -> SoakReport:
    """Hold what a soak showed against the plan. `version`: of the engine that ran."""
    checks = (*_kept(promised, soaked), *_latencies(promised.speed, soaked), *_memory(promised, soaked.watched))
    return SoakReport(checks, soaked.timing, soaked.watched, version)


def _kept(promised: Promise, soaked: Soaked) -> Iterator[Comparison]:
    """What must hold: every request answered, and none preempted where all surely fit; what is seen of the cache besides."""
    requests, seen = promised.requests, soaked.watched
    failed = soaked.timing.failed
    yield Comparison("requests without an answer", "0", f"{failed:,}", failed == 0, binding=True)
    expected = 0 if requests.promised else _expected_preemptions(promised.speed, soaked.timing.load.requests)
    lost, wanted = seen.preemptions, "some" if expected is None else f"{expected:,}"
    told = "not told" if lost is None else f"{lost:,}"
    kept = lost is None or lost == 0 or not requests.promised
    yield Comparison("preemptions", wanted, told, kept, binding=requests.promised and lost is not None)
    if seen.running is not None:
        held = seen.running >= requests.fit
        wanted = f"{requests.fit:,} of {requests.running:,}"
        yield Comparison("requests at work at once", wanted, f"{seen.running:,}", held, binding=False)
    if seen.waiting is not None:
        yield shown("requests that waited at once, most", seen.waiting, "{:,.0f}")
    if seen.cache_share is not None:
        yield within(
            "cache in use, most", promised.cache_share, seen.cache_share, "{:.1%}", binding=False, slack=_SAMPLED
        )


def _expected_preemptions(speed: SpeedEstimate, requests: int) -> int | None:
    """How often so many requests lose their blocks, as those of the simulation do; None where the load was not simulated."""
    return (
        None
        if speed.preemptions is None or not speed.requests
        else round(speed.preemptions * requests / speed.requests)
    )


def _latencies(speed: SpeedEstimate, soaked: Soaked) -> Iterator[Comparison]:
    """What users see at full context, in the mean and at the 95th percentile."""
    timing = soaked.timing
    for name, latency, spread, form in (
        ("TTFT, ms", "ttft", timing.ttft_ms, "{:.0f}"), ("TPOT, ms", "tpot", timing.tpot_ms, "{:.2f}"),
    ):  # fmt: skip
        for statistic in ("mean", "p95"):
            value, predicted = spread.statistic(statistic), speed.latency(latency, statistic)
            said = within(f"{name} {statistic}", predicted, value, form, binding=False)
            yield replace(said, better=value < predicted.low)
    said = within("throughput, tok/s", speed.throughput_tok_s, timing.tok_s, "{:.1f}", binding=False)
    yield replace(said, better=timing.tok_s > speed.throughput_tok_s.high)


def _memory(promised: Promise, seen: Watched) -> Iterator[Comparison]:
    """What the engine held at most: on cards what is in use of the fullest, else its processes; and whether that still grew."""
    held = max(seen.card_bytes, default=seen.memory_bytes)
    if held is not None:
        said = within("memory, GiB", promised.memory_bytes.scaled(1 / _GIB), held / _GIB, "{:.2f}", binding=False)
        yield replace(said, better=held < promised.memory_bytes.low)
    if seen.grown_bytes is not None and seen.memory_bytes:
        steady = seen.grown_bytes <= _GROWTH * seen.memory_bytes
        grown = f"{max(0, seen.grown_bytes) / _MIB:,.0f}"
        yield Comparison("growth of its processes, MiB", "0", grown, steady, binding=False)
