"""What users of a workload see: an engine's scheduler on its step times, the whole run of the load simulated (docs/load.md)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from passes.ir.model import ModelIR
from targets.engines.engine import Engine, KVEstimate, MemoryEstimate, Settings, SpeedEstimate
from targets.gpu import Gpu
from targets.quantity import Quantity
from targets.simulation import arrivals as arriving
from targets.simulation import lengths as long
from targets.simulation.metrics import PERCENTILES, Distribution, Figures, figures
from targets.simulation.scheduler import Batch, Cache
from targets.simulation.simulate import Composer, Host, simulate
from targets.simulation.step_times import StepTimes
from targets.speed.estimate import REQUESTS, ROUNDS, Asked, asked, steady
from targets.workload import Workload

#: Requests of a closed loop at most, where nobody says how many there are.
MOST_REQUESTS = 2000
#: By how much the cache may be another, as a share, and by which factor first tokens are unsure beside the time of steps: the host's part.
_CACHE_ERROR, _HOST_ERROR = 0.1, 0.2
#: By which share lengths vary where nothing is said of them.
_SPREAD = 0.2
#: A block that holds any sequence: for caches that do not grow with it.
_ANY_LENGTH = 1 << 40


@dataclass(frozen=True, slots=True)
class Load:
    """One replica's share of a workload: when requests come, and the (prompt, answer) tokens of each."""

    arrivals: arriving.Arrivals
    lengths: Sequence[tuple[int, int]]


def load_of(workload: Workload, replicas: int = 1) -> Load:
    """Return what reaches one of `replicas` that share a workload evenly."""
    if workload.trace is not None:
        own = workload.trace[::replicas]
        return Load(arriving.Arrivals([at for at, _, _ in own], workload.at_once), [(i, o) for _, i, o in own])
    clients = max(1, round((workload.concurrency or 1) / replicas))
    usual = min(ROUNDS * clients, MOST_REQUESTS) if workload.rate is None else REQUESTS // replicas
    count = max(1, usual if workload.requests is None else -(-workload.requests // replicas))
    prompts = _lengths(workload.input_tokens, workload.input_p95, workload, count, 1)
    answers = _lengths(workload.output_tokens, workload.output_p95, workload, count, 2)
    lengths = list(zip(prompts, answers, strict=True))
    at_once = None if workload.at_once is None else max(1, workload.at_once // replicas)
    if workload.rate is None:
        return Load(arriving.closed_loop(clients, count), lengths)
    if math.isinf(workload.rate):
        return Load(arriving.burst(count, at_once), lengths)
    due = arriving.poisson(workload.rate / replicas, count, workload.burstiness, at_once=at_once)
    return Load(due, lengths)


def _lengths(mean: int, p95: int | None, workload: Workload, count: int, seed: int) -> Sequence[int]:
    if p95 is not None and p95 > mean:
        return long.lognormal(mean, p95, count, most=workload.context - 1, seed=seed)
    return long.fixed(mean, count) if workload.requests else long.spread(mean, _SPREAD, count, seed=seed)


def cache_of(kv: KVEstimate, workload: Workload, block: int) -> Cache:
    """Return the pool that requests draw from, of a replica's cache, with blocks of `block` tokens.

    What a sequence takes whatever its length (windows, states) is counted in whole blocks. A cache that is too small for the longest
    request holds one: such a plan is refused for its memory, its speed is asked all the same.
    """
    if not 0 < kv.max_concurrency.value < math.inf:
        return Cache(_ANY_LENGTH, block)
    if not kv.bytes_per_token:
        return Cache(max(1, int(kv.max_concurrency.value)), _ANY_LENGTH)
    block_bytes = kv.bytes_per_token * block
    fixed = round(max(0.0, kv.bytes_per_sequence - kv.bytes_per_token * workload.context) / block_bytes)
    blocks = int(kv.max_concurrency.value * kv.bytes_per_sequence / block_bytes) - 1
    return Cache(max(blocks, -(-workload.context // block) + fixed), block, fixed, workload.shared_prefix)


def served(
    engine: Engine, ir: ModelIR, gpu: Gpu, settings: Settings, workload: Workload, memory: MemoryEstimate
) -> SpeedEstimate:
    """Predict what users of the workload see. `ir`: as the engine computes it. Intervals are the ends of runs with slower steps and a

    smaller cache, and with faster ones and a larger one: near saturation they are wide, to one side.
    """
    if engine.queue(gpu, settings, workload, memory.kv) is None:
        return engine.speed(ir, gpu, settings, workload, memory)
    question = asked(engine, ir, gpu, settings, workload, memory)
    formula, load = steady(question), load_of(workload, question.replicas)
    error = question.fitted.decode_error if question.loop.clients == 1 else question.fitted.tpot_error
    seconds = StepTimes(question.run.step, question.loop.cache_bytes, settings.parallel.pp)
    runs = []
    for slower, share in ((0.0, 1.0), (error, 1 - _CACHE_ERROR), (-error, 1 + _CACHE_ERROR)):
        queue = engine.queue(gpu, settings, workload, _scaled(memory.kv, share))
        assert queue is not None
        runs.append(_run(seconds, math.exp(slower), queue, load, question))
    return _estimate(formula, runs, question, load)


def _scaled(kv: KVEstimate, share: float) -> KVEstimate:
    at_once = kv.max_concurrency
    return replace(kv, max_concurrency=replace(at_once, value=at_once.value * share))


def _run(seconds: StepTimes, factor: float, queue: Composer, load: Load, question: Asked) -> Figures:
    rates = question.fitted.rates
    host = Host(rates.host_s, 0.0, rates.host_token_s)

    def step_s(batch: Batch) -> float:
        return factor * seconds(batch)

    return figures(simulate(step_s, queue, load.arrivals, load.lengths, host))


def _estimate(formula: SpeedEstimate, runs: Sequence[Figures], question: Asked, load: Load) -> SpeedEstimate:
    """The formula's estimate with the figures of three runs: as predicted, and at both ends."""
    mid, basis, n = runs[0], question.fitted.basis, question.replicas

    def of(values: Sequence[float], own: float = 0.0, factor: float = 1.0) -> Quantity:
        low, high = min(values) * math.exp(-own), max(values) * math.exp(own)
        return Quantity(factor * values[0], factor * low, factor * high, basis)

    figures_of: dict[str, Any] = {}
    for name in ("ttft", "tpot", "itl", "e2e"):
        told: list[Distribution | None] = [getattr(run, name) for run in runs]
        known = [each for each in told if each is not None]
        own = _HOST_ERROR if name in ("ttft", "e2e") else 0.0
        for statistic in ("mean", *(f"p{share}" for share in PERCENTILES)) if known else ():
            key = f"{name}_ms" if statistic == "mean" else f"{name}_{statistic}_ms"
            figures_of[key] = of([each.statistic(statistic) for each in known], own, 1e3)
    rate = of([run.throughput for run in runs], factor=n)
    tpot = figures_of.get("tpot_ms")
    if tpot is not None:
        figures_of["decode_tok_s_per_request"] = Quantity(1e3 / tpot.value, 1e3 / tpot.high, 1e3 / tpot.low, basis)
    return replace(
        formula, **figures_of, throughput_tok_s=rate, requests_s=of([run.requests_s for run in runs], factor=n),
        requests=n * len(load.lengths), cache_full=round(mid.full, 4), preemptions=n * mid.preemptions,
    )  # fmt: skip
