"""How fast an engine prefills and decodes a model on a card: the entry that engines call.

From the description's work (`work`), the card's peaks and fitted efficiencies (`rates`) come the seconds of a step
(`step`), from them the means of a closed loop of requests (`closed_loop`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from passes.ir.model import ModelIR
from targets.engines.engine import Settings, SpeedEstimate, find_engine
from targets.gpu import Gpu
from targets.machine.profile import Profile, believed_profile, measured_card, measured_values
from targets.quantity import Basis, Quantity
from targets.speed.card import card_of, generation_of
from targets.speed.closed_loop import Loop, Means, closed_loop
from targets.speed.rates import Fitted, engine_values, fitted_rates, rates_from
from targets.speed.step import Card, Step, step_seconds
from targets.speed.work import Work, work_of
from targets.workload import Workload

#: Bytes of one cache element by cache dtype; grouped scales of ExLlama's formats included (a 16-bit scale for 32 elements).
CACHE_BYTES = {"auto": 2.0, "fp8": 1.0, "fp8_e4m3": 1.0, "fp8_e5m2": 1.0, "q8": 1.0625, "q6": 0.8125, "q4": 0.5625}

#: Requests a client sends in a row in the serving benchmarks that the loop was fitted on.
ROUNDS = 10


def estimate(
    engine: str, ir: ModelIR, gpu: Gpu, settings: Settings, workload: Workload, *, kv_tokens: float | None = None
) -> SpeedEstimate:
    """Speed of `ir` under `engine` on `gpu`, as steady means under the workload's closed loop.

    `kv_tokens`: tokens of cache that one replica holds, where the caller has the engine's accounting; it bounds how many
    requests run at once. None: counted roughly here.
    """
    work, card, fitted = (
        work_of(ir),
        card_of(find_engine(engine), gpu),
        fitted_rates(engine, generation_of(gpu), settings.version),
    )
    profile, notes = believed_profile(gpu)
    if profile is not None:
        card, fitted = measured_card(card, profile), _measured(fitted, engine, gpu, settings.version, profile)
    clients = max(1.0, (workload.concurrency or 1) / settings.parallel.dp)
    if kv_tokens is None:
        kv_tokens = cache_tokens(work, card, gpu.memory_bytes.value, settings, CACHE_BYTES.get(ir.kv_cache.dtype, 2.0))
    resident = _resident(settings, workload, fitted.rates.occupancy, kv_tokens)
    host_s, host_token_s = fitted.rates.host_s, fitted.rates.host_token_s
    budget = settings.max_num_batched_tokens or default_token_budget(engine, gpu)
    loop = Loop(
        workload.input_tokens, workload.output_tokens, clients, resident, budget, CACHE_BYTES.get(ir.kv_cache.dtype, 2.0), ROUNDS, host_s,
        host_token_s,
    )  # fmt: skip
    run = _Run(work, card, fitted, settings.parallel.tp, settings.parallel.pp)
    means = closed_loop(run.step, loop)
    alone = means if clients == 1 else closed_loop(run.step, replace(loop, clients=1.0))
    return replace(_speed(means, alone, loop, fitted, settings.parallel.dp), notes=notes)


def _measured(fitted: Fitted, engine: str, gpu: Gpu, version: str | None, profile: Profile) -> Fitted:
    """The engine's rates with this machine's measurements in their place."""
    values = measured_values(engine_values(engine), engine, gpu, profile)
    error = profile.error(engine)
    decode, prefill = min(fitted.decode_error, error), min(fitted.prefill_error, error)
    return Fitted(rates_from(values, generation_of(gpu), version), decode, prefill, prefill, decode, Basis.MEASURED)


@dataclass(frozen=True, slots=True)
class _Run:
    work: Work
    card: Card
    fitted: Fitted
    tp: int
    pp: int

    def step(self, step: Step) -> float:
        """Seconds of a step; pipeline stages each run their share of the sequences, one after another."""
        if self.pp > 1:
            step = replace(step, decode=max(step.decode / self.pp, min(step.decode, 1.0)))
        seconds = step_seconds(self.work, self.card, self.fitted.rates, step, self.tp)
        return seconds + (self.pp - 1) * self.fitted.rates.link_s


def default_token_budget(engine: str, gpu: Gpu) -> int:
    """Prompt tokens a step takes when nothing is set.

    vLLM: 8192 for its server on cards of 70 GiB and more except the A100, else 2048 (`EngineArgs._set_default_args`, 0.8 to
    0.19); ExLlama: chunks of 2048.
    """
    large = generation_of(gpu) not in ("8.0", "cpu") and gpu.memory_bytes.value >= 70 * 2**30
    return 8192 if engine == "vllm" and large else 2048


#: Bytes a card keeps for activations, graphs and the context beside weights and cache: the middle of vLLM's start-up logs.
_SET_ASIDE = 4e9


def cache_tokens(work: Work, card: Card, memory_bytes: float, settings: Settings, cache_bytes: float) -> float:
    """Tokens of cache that the cards hold beside the weights, roughly; the engine's accounting has the exact figure.

    Infinite where the weights leave no room: such a plan is refused for its memory, its speed is asked all the same.
    """
    tp, pp = settings.parallel.tp, settings.parallel.pp
    weights = sum(m.bytes / (tp if m.sharded else 1) for m in work.matmuls) + sum(e.bytes for e in work.experts) / tp
    share = settings.gpu_memory_utilization or 0.92
    free = share * memory_bytes - (weights + 2 * work.head.bytes / tp) / pp - _SET_ASIDE * (card.capability > 0)
    free = settings.kv_cache_memory_bytes or free
    per_token = sum(
        cache_bytes * kind.layers * kind.elements_per_token / (1 if kind.latent else min(tp, kind.kv_heads))
        for kind in work.attention
        if not kind.window
    )
    return free * pp / per_token if free > 0 and per_token else math.inf


def _resident(settings: Settings, workload: Workload, occupancy: float, kv_tokens: float) -> float:
    """Requests that run at once: what the cache holds at their mean length, at most `max_num_seqs`."""
    mean = workload.input_tokens + workload.output_tokens / 2
    return max(1.0, min(float(settings.max_num_seqs or 1024), kv_tokens / (occupancy * mean)))


def _speed(means: Means, alone: Means, loop: Loop, fitted: Fitted, replicas: int) -> SpeedEstimate:
    outputs = max(loop.output_tokens, 1)
    request_s = means.ttft_s + means.tpot_s * (outputs - 1)
    tpot_error = fitted.decode_error if loop.clients == 1 else fitted.tpot_error
    ttft_error = fitted.prefill_error if loop.clients == 1 else fitted.ttft_error
    prefill_s = max(alone.ttft_s - loop.host_s - loop.host_token_s * loop.input_tokens, 1e-9)
    return SpeedEstimate(
        ttft_ms=_quantity(1e3 * means.ttft_s, ttft_error, fitted),
        tpot_ms=_quantity(1e3 * means.tpot_s, tpot_error, fitted),
        prefill_tok_s=_quantity(loop.input_tokens / prefill_s, fitted.prefill_error, fitted),
        decode_tok_s_per_request=_quantity(1 / means.tpot_s, tpot_error, fitted),
        throughput_tok_s=_quantity(replicas * loop.clients * outputs / request_s, tpot_error, fitted),
    )


def _quantity(value: float, error: float, fitted: Fitted) -> Quantity:
    return Quantity(value, value * math.exp(-error), value * math.exp(error), fitted.basis)
