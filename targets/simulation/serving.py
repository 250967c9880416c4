"""What users of a workload see: an engine's scheduler on its step times, the whole run of the load simulated (docs/load.md)."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from functools import cache, lru_cache, partial
from typing import Any

from passes.ir.model import ModelIR
from passes.record import dataclass
from targets.engines.engine import MOST_CLIENTS, Engine, KVEstimate, MemoryEstimate, Settings, SpeedEstimate
from targets.gpu import Gpu
from targets.quantity import Quantity
from targets.simulation import arrivals as arriving
from targets.simulation import lengths as long
from targets.simulation.course import Course, Recorder, retimed
from targets.simulation.highest import highest_rate, most_clients
from targets.simulation.metrics import PERCENTILES, Distribution, figures, goodput
from targets.simulation.scheduler import Batch, Besides, Cache
from targets.simulation.simulate import Host, Queue, Run, simulate
from targets.simulation.step_times import StepTimes
from targets.speed.estimate import REQUESTS, ROUNDS, Asked, asked, steady
from targets.speed.rates import Width, is_fitted
from targets.workload import Limit, Workload

#: Requests of a closed loop at most, where nobody says how many there are.
MOST_REQUESTS = 2000
#: By how much the cache may be another at least, and the least that is taken of it, as shares.
_CACHE_ERROR, _LEAST_CACHE = 0.1, 0.1
#: By which share lengths vary where nothing is said of them, as in most published closed loops (InferenceX: `--random-range-ratio 0.8`);
#: rounds of those of equal lengths.
_SPREAD, _FEW_ROUNDS = 0.11, 3
#: Requests of a run at a rate that only says whether a load is served, at most.
_SHORT_RUN = MOST_CLIENTS
#: Courses of a load that are kept: clocks that bring requests to other steps make others.
_MOST_COURSES = 4
#: A block that holds any sequence: for caches that do not grow with it.
_ANY_LENGTH = 1 << 40


@dataclass(frozen=True, slots=True)
class Load:
    """One replica's share of a workload: when requests come, and the (prompt, answer) tokens of each."""

    arrivals: arriving.Arrivals
    lengths: Sequence[tuple[int, int]]


@lru_cache(maxsize=16)
def load_of(workload: Workload, replicas: int = 1) -> Load:
    """Return what reaches one of `replicas` that share a workload evenly."""
    if workload.trace is not None:
        own = workload.trace[::replicas]
        return Load(arriving.Arrivals([at for at, _, _ in own], workload.at_once), [(i, o) for _, i, o in own])
    clients = max(1, round((workload.concurrency or 1) / replicas))
    usual = min(ROUNDS * clients, MOST_REQUESTS) if workload.rate is None else REQUESTS // replicas
    count = max(1, usual if workload.requests is None else -(-workload.requests // replicas))
    prompts, answers = _lengths_of(workload, count)
    kept = [min(answer, workload.context - 1) for answer in answers]
    lengths = [(min(prompt, workload.context - answer), answer) for prompt, answer in zip(prompts, kept, strict=True)]
    at_once = None if workload.at_once is None else max(1, workload.at_once // replicas)
    if workload.rate is None:
        return Load(arriving.closed_loop(clients, count, workload.ramp_s), lengths)
    if math.isinf(workload.rate):
        return Load(arriving.burst(count, at_once), lengths)
    ramp_up = workload.ramp_up and replace(workload.ramp_up, start=workload.ramp_up.start / replicas)
    due = arriving.poisson(workload.rate / replicas, count, workload.burstiness, at_once=at_once, ramp_up=ramp_up)
    return Load(due, lengths)


def _lengths_of(workload: Workload, count: int) -> tuple[Sequence[int], Sequence[int]]:
    """Lengths of prompts and of answers. Where their means alone are told: of what arrives by chance, as chats are, as far as the context
    leaves room; of a closed loop, equal in a run of so many requests, which is a benchmark's, else spread.
    """
    prompt, answer = workload.input_tokens, workload.output_tokens
    if workload.as_chats:
        told = long.chats(prompt, answer, count, context=workload.context)
        answers = [length for _, length in told] if workload.decodes else long.fixed(answer, count)
        return [length for length, _ in told], answers
    return (
        _lengths(prompt, workload.input_p95, workload, count, 1), _lengths(answer, workload.output_p95, workload, count, 2)
    )  # fmt: skip


def lengths_told(workload: Workload) -> str | None:
    """Say that lengths are drawn of which nobody said how they differ, and how to say it; None where none are."""
    if not workload.as_chats:
        return None
    prompt, answer = workload.input_tokens, workload.output_tokens
    drawn = f"prompts {long.CHAT_PROMPT:g}" + (f" and answers {long.CHAT_ANSWER:g}" if workload.decodes else "")
    name, mean = ("output_tokens", answer) if workload.decodes else ("input_tokens", prompt)
    return (
        f"lengths vary as chats' do where requests arrive and only means are told (p95 of {drawn} times the mean, as far as the context "
        f"leaves room): say otherwise in a spec by `{name}: {{mean: {mean}, p95: {mean}}}`, which makes them nearly alike"
    )


def ramp_told(workload: Workload) -> str | None:
    """Say how a rate grows, or over which time clients come; None where all is as it is from the beginning."""
    if workload.ramp_up is not None and workload.rate is not None:
        growth = {"linear": "linearly", "exponential": "exponentially"}[workload.ramp_up.strategy]
        return f"the rate grows {growth} from {workload.ramp_up.start:g} to {workload.rate:g} requests a second"
    return f"clients come one after the other, the last after {workload.ramp_s:g} s" if workload.ramp_s else None


def _lengths(mean: int, p95: int | None, workload: Workload, count: int, seed: int) -> Sequence[int]:
    if p95 is not None and p95 > mean:
        return long.lognormal(mean, p95, count, most=workload.context - 1, seed=seed)
    return long.fixed(mean, count) if workload.requests else long.spread(mean, _SPREAD, count, seed=seed)


def cache_of(kv: KVEstimate, workload: Workload, block: int, remembers: bool = True) -> Cache:
    """Return the pool that requests draw from, of a replica's cache, with blocks of `block` tokens. `remembers`: what they begin with is
    found again (prefix caching), and what a request lost, where blocks hold nothing but tokens.

    What a sequence takes besides (windows, states) is counted in such blocks. A cache that is too small for the longest
    request holds one: such a plan is refused for its memory, its speed is asked all the same.
    """
    if not 0 < kv.max_concurrency.value < math.inf:
        return Cache(_ANY_LENGTH, block)
    if not kv.bytes_per_token:
        return Cache(max(1, int(kv.max_concurrency.value)), _ANY_LENGTH)
    block_bytes = kv.bytes_per_token * block
    besides = Besides(round(kv.state_bytes / block_bytes), kv.window_bytes_per_token / block_bytes, kv.window_tokens)
    blocks = int(kv.max_concurrency.value * kv.bytes_per_sequence / block_bytes) - 1
    longest = -(-workload.context // block) + besides.blocks(workload.context)
    prefix = workload.shared_prefix if remembers else 0
    return Cache(max(blocks, longest), block, besides, prefix, remembers and not besides.states and not besides.each)


def served(
    engine: Engine, ir: ModelIR, gpu: Gpu, settings: Settings, workload: Workload, memory: MemoryEstimate
) -> SpeedEstimate:
    """Predict what users of the workload see. `ir`: as the engine computes it. Intervals are the ends of runs with slower steps and the
    least cache, and with faster ones and the most: near saturation they are wide, to one side. Where nothing is said of a closed
    loop's requests, the run of a benchmark is among them: few rounds of equal lengths, in which clients stay in step. Where their number
    is said, which makes it a benchmark's run, the slower one may begin with the compilation of kernels.
    """
    if not _is_simulated(engine, gpu, settings, workload, memory):
        return engine.speed(ir, gpu, settings, workload, memory)
    question = asked(engine, ir, gpu, settings, workload, memory)
    return _served(_Simulated(engine, gpu, settings, workload, memory.kv, question))


@dataclass(frozen=True, slots=True)
class _Simulated:
    """All that a simulation depends on. Of a model no more than its step model: methods that store the same format run alike, and most
    of what is tried one after the other, by a search or at a page's sliders, is such a one again.
    """

    engine: Engine
    gpu: Gpu
    settings: Settings
    workload: Workload
    kv: KVEstimate
    question: Asked

    def __hash__(self) -> int:
        """Hash what can be: rates are mappings."""
        return hash((self.settings, self.workload, self.kv, self.question.run.work))


@lru_cache(maxsize=256)
def _served(of: _Simulated) -> SpeedEstimate:
    question, workload = of.question, of.workload
    run = _runs(of.engine, of.gpu, of.settings, of.kv, question)
    load = load_of(workload, question.replicas)
    width = question.fitted.widths[question.regime(workload)]
    short, roomy = _cache_shares(of.kv)
    first_s = question.fitted.rates.first_use_s if workload.requests and question.run.work.recurrent_layers else 0.0
    slower, faster = run(workload, load, width.tpot, short, first_s), run(workload, load, -width.tpot, roomy)
    runs = [run(workload, load), slower, faster]
    if _unsaid(workload):
        few = min(_FEW_ROUNDS * round(question.loop.clients), MOST_REQUESTS) * question.replicas
        in_step = replace(workload, requests=few)
        runs.append(run(workload, load_of(in_step, question.replicas), width.tpot))
    told = _estimate(steady(question), runs, question, load, width)
    if not workload.limits:
        return told
    limits = [(limit.latency, limit.at_most_ms) for limit in workload.limits]
    good = [question.replicas * goodput(each, limits) for each in runs]
    return replace(told, goodput_req_s=Quantity(good[0], min(good), max(good), question.fitted.basis))


def with_highest(
    engine: Engine, ir: ModelIR, gpu: Gpu, settings: Settings, workload: Workload, memory: MemoryEstimate
) -> SpeedEstimate:
    """Return what `served` does, and how many users are served so that the run as predicted keeps the workload's limits, whatever
    the odds.
    """
    told = served(engine, ir, gpu, settings, workload, memory)
    if not workload.limits or not _is_simulated(engine, gpu, settings, workload, memory):
        return told
    question = asked(engine, ir, gpu, settings, workload, memory)
    run = _runs(engine, gpu, settings, memory.kv, question)

    def keeps(load: Workload) -> float:
        return 1.0 if _keeps(run(load, load_of(load, question.replicas)), workload.limits) else -1.0

    def clients(count: int) -> float:
        requests = workload.requests and min(
            max(ROUNDS * count, 40), MOST_REQUESTS
        )  # equal lengths only where they were
        return keeps(replace(workload, concurrency=count, requests=requests))

    def rate(count: float) -> float:
        requests = min(max(round(20 * count), 40), _SHORT_RUN)
        return keeps(replace(workload, rate=count, requests=requests, trace=None, ramp_up=None))

    if workload.rate is None:
        return replace(told, most_clients=most_clients(workload.concurrency or 1, clients))
    return replace(told, highest_rate=highest_rate(workload.rate if math.isfinite(workload.rate) else 1.0, rate))


def _is_simulated(engine: Engine, gpu: Gpu, settings: Settings, workload: Workload, memory: MemoryEstimate) -> bool:
    """Whether a load is simulated: the engine's scheduler is known, and its speed was fitted."""
    return engine.queue(gpu, settings, workload, memory.kv) is not None and is_fitted(engine.name)


def _runs(engine: Engine, gpu: Gpu, settings: Settings, kv: KVEstimate, question: Asked) -> Callable[..., Run]:
    """Return what simulates a load of a workload, slower (in log space), with a share of the cache, seconds before the first prompts."""
    own, rates = question.run, question.fitted.rates
    times = StepTimes(own.stage, question.loop.cache_bytes, settings.parallel.pp, own.launches_s)
    seconds: tuple[Callable[[Batch], float], ...] = (times, times.apart)
    known = [cache(each) for each in seconds]  # by batch, which runs of one course have in common
    host = Host(rates.request_s(own.tp), rates.serial_s, rates.host_token_s)

    def run(workload: Workload, load: Load, slower: float = 0.0, share: float = 1.0, first_s: float = 0.0) -> Run:
        queue = engine.queue(gpu, settings, workload, _scaled(kv, share))
        assert queue is not None
        anew, again = (partial(_Paced, each[queue.apart], math.exp(slower), first_s) for each in (seconds, known))
        if load.arrivals.timed:
            return simulate(anew(), queue, load.arrivals, load.lengths, host)
        return _on_a_clock(anew, again, queue, load, host)

    return run


def _unsaid(workload: Workload) -> bool:
    """Whether nobody said how many requests a closed loop has, nor how their lengths differ: clients may as well stay in step."""
    told = workload.requests or workload.input_p95 or workload.output_p95 or workload.trace
    return (workload.concurrency or 1) > 1 and workload.rate is None and not told


def _keeps(run: Run, limits: Sequence[Limit]) -> bool:
    """Whether a run as a whole keeps the limits, and no queue grows as it goes on."""
    if _grows(run):
        return False
    seen = figures(run)
    told = ((seen.latency(limit.latency), limit) for limit in limits)
    return all(each is None or 1e3 * each.statistic(limit.statistic) <= limit.at_most_ms for each, limit in told)


def _grows(run: Run) -> bool:
    """Whether more requests are unanswered when the last one is sent than when half of them were, beyond chance."""

    def unanswered(at: float) -> int:
        return bisect_right(sent, at) - bisect_right(done, at)

    sent, done = sorted(run.sent), sorted(run.done)
    half, end = unanswered(sent[len(sent) // 2]), unanswered(sent[-1])
    return end > 1.2 * half + 3 * math.sqrt(half + 1)


def _cache_shares(kv: KVEstimate) -> tuple[float, float]:
    """The least and the most that the cache may be, as shares of what is expected, by the memory estimate's own interval."""
    held = kv.max_concurrency
    if not 0 < held.value < math.inf:
        return 1 - _CACHE_ERROR, 1 + _CACHE_ERROR
    return min(1 - _CACHE_ERROR, max(held.low / held.value, _LEAST_CACHE)), max(
        1 + _CACHE_ERROR, held.high / held.value
    )


def _scaled(kv: KVEstimate, share: float) -> KVEstimate:
    at_once = kv.max_concurrency
    return replace(kv, max_concurrency=replace(at_once, value=at_once.value * share))


class _Paced:
    """Seconds of a step by a step model, times a factor; the first one that reads a prompt takes `first_s` more."""

    def __init__(self, seconds: Callable[[Batch], float], factor: float, first_s: float) -> None:
        self._seconds, self._factor, self._first_s = seconds, factor, first_s

    def __call__(self, batch: Batch) -> float:
        once = 0.0
        if batch.chunks:
            once, self._first_s = self._first_s, 0.0
        return once + self._factor * self._seconds(batch)


def _on_a_clock(anew: Callable[[], _Paced], again: Callable[[], _Paced], queue: Queue, load: Load, host: Host) -> Run:
    """Return the run of a load without due times: the course of another run, told `again`, where there is one; else simulated `anew`."""
    known = _courses(queue.decides_by, tuple(load.lengths), load.arrivals.at_once)
    for course in known:
        if course.fits(queue.room) and (run := retimed(course, queue.lag, again(), load.arrivals, load.lengths, host)):
            return run
    recorder = Recorder(queue)
    run = simulate(anew(), recorder, load.arrivals, load.lengths, host)
    if (made := recorder.course()) is not None:
        known[:] = [made, *known][:_MOST_COURSES]
    return run


@lru_cache(maxsize=16)
def _courses(decides_by: Hashable, lengths: tuple[tuple[int, int], ...], at_once: int | None) -> list[Course]:
    """The courses that are known of a load without due times, the newest first."""
    return []


def _estimate(
    formula: SpeedEstimate, simulated: Sequence[Run], question: Asked, load: Load, width: Width
) -> SpeedEstimate:
    """The formula's estimate with the figures of three runs: as predicted, and at both ends; times to the first token are no nearer than
    their `width`.
    """
    runs = [figures(each) for each in simulated]
    mid, basis, n = runs[0], question.fitted.basis, question.replicas

    def of(values: Sequence[float], factor: float = 1.0, *, first: bool = False) -> Quantity:
        own = width.first(values[0]) if first else 0.0
        low, high = min(*values, values[0] * math.exp(-own)), max(*values, values[0] * math.exp(own))
        return Quantity(factor * values[0], factor * low, factor * high, basis)

    figures_of: dict[str, Any] = {}
    for name in ("ttft", "tpot", "itl", "e2e"):
        told: list[Distribution | None] = [run.latency(name) for run in runs]
        known = [each for each in told if each is not None]
        for statistic in ("mean", *(f"p{share}" for share in PERCENTILES)) if known else ():
            key = f"{name}_ms" if statistic == "mean" else f"{name}_{statistic}_ms"
            figures_of[key] = of([each.statistic(statistic) for each in known], 1e3, first=name == "ttft")
    rate = of([run.throughput for run in runs], factor=n)
    tpot = figures_of.get("tpot_ms")
    if tpot is not None:
        figures_of["decode_tok_s_per_request"] = Quantity(1e3 / tpot.value, 1e3 / tpot.high, 1e3 / tpot.low, basis)
    return replace(
        formula, **figures_of, throughput_tok_s=rate, requests_s=of([run.requests_s for run in runs], factor=n),
        requests=n * len(load.lengths), cache_full=round(mid.full, 4), preemptions=n * mid.preemptions,
    )  # fmt: skip
