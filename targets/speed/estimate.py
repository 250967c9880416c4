"""How fast an engine prefills and decodes a model on a card: the entry that engines call.

From the description's work (`work`), the card's peaks and fitted efficiencies (`rates`) come the seconds of a step
(`step`), from them the means of a closed loop of requests (`closed_loop`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property

from passes.ir.model import ModelIR
from passes.record import dataclass, replace
from targets.engines.engine import Engine, KVEstimate, MemoryEstimate, Scheduler, Settings, SpeedEstimate
from targets.gpu import Gpu
from targets.machine.profile import Profile, believed_profile, measured_card, measured_values
from targets.quantity import Basis, Quantity
from targets.speed.card import card_of, generation_of
from targets.speed.closed_loop import Loop, Means, closed_loop
from targets.speed.pictures import encoding_s
from targets.speed.rates import Fitted, Regime, Width, eager, engine_values, fitted_rates, rates_from, with_templates
from targets.speed.step import Card, Step, handing_on_seconds, launch_seconds, step_model, unseen_seconds
from targets.speed.work import Work, work_of
from targets.workload import Workload

#: Requests a client sends in a row in the serving benchmarks that the loop was fitted on.
ROUNDS = 10
#: Requests in all where they arrive at a rate and nobody says how many there are (`vllm bench serve --num-prompts`).
REQUESTS = 1000
#: Rounds of a loop that has forgotten its start.
_WITHOUT_END = 1e9
#: Numbers of clients that are this close, as a share, are one; secants that are tried for it at most.
_ALIKE, _SECANTS = 0.02, 10


@dataclass(frozen=True, slots=True)
class Asked:
    """A question about speed made ready: the step model of one replica, its error, and the load as the formula takes it."""

    run: Run
    fitted: Fitted
    loop: Loop
    notes: tuple[str, ...]
    replicas: int
    capacity_s: float | None = None
    """Requests a second that are answered with as many at work as run at once, where they arrive at a rate."""

    def regime(self, workload: Workload) -> Regime:
        """Return how loaded the engine is, as the fit tells errors apart."""
        if workload.rate is not None:
            return Regime.BURST if math.isinf(workload.rate) else Regime.BELOW
        if self.loop.clients == 1:
            return Regime.ALONE
        return Regime.SATURATED if self.loop.clients > self.loop.resident else Regime.BELOW


def estimate(
    engine: Engine, ir: ModelIR, gpu: Gpu, settings: Settings, workload: Workload, memory: MemoryEstimate
) -> SpeedEstimate:
    """Predict the speed of `ir` under `engine` on `gpu`, as steady means under the workload's closed loop, or where it names a rate, of
    as many clients as that keeps waiting.

    `memory`: the engine's accounting of the same question; its cache bounds how many requests run at once.
    """
    return steady(asked(engine, ir, gpu, settings, workload, memory))


def steady(question: Asked) -> SpeedEstimate:
    """Return the means of a question by the formula."""
    loop, run = question.loop, question.run
    means = closed_loop(run.step, loop)
    alone = means if loop.clients == 1 else closed_loop(run.step, replace(loop, clients=1.0))
    told = _speed(means, alone, question)
    if question.capacity_s is None:
        return told
    error = question.fitted.widths[Regime.SATURATED].tpot
    return replace(told, capacity_req_s=_quantity(question.capacity_s, error, question.fitted))


def asked(
    engine: Engine, ir: ModelIR, gpu: Gpu, settings: Settings, workload: Workload, memory: MemoryEstimate
) -> Asked:
    """Make a question ready: what a step reads and computes, how fast the card is, who asks."""
    name, card, work, replicas = engine.name, card_of(engine, gpu), work_of(ir), settings.parallel.dp
    clients = max(1.0, (workload.concurrency or 1) / replicas)
    sharing = replicas if work.experts else 1
    tp, pp = settings.parallel.tp, settings.parallel.pp
    # No row of the data has stages whose matrices are cut too.
    unseen = (gpu.network is not None and tp * pp * sharing > gpu.network.cards) or (tp > 1 and pp > 1)
    fitted = fitted_rates(
        name, generation_of(gpu), settings.version, clients=clients, experts=bool(work.experts), stages=math.inf if unseen else pp
    )  # fmt: skip
    profile, notes = believed_profile(gpu)
    if profile is not None:
        card, fitted = measured_card(card, profile), _measured(fitted, name, gpu, settings.version, profile)
    if settings.enforce_eager:
        fitted = eager(fitted, name)
    fitted = replace(fitted, rates=with_templates(fitted.rates, ir.architecture))
    encoding = encoding_s(ir, card, fitted.rates, workload, settings.parallel.tp)
    if encoding:
        fitted = replace(fitted, rates=replace(fitted.rates, host_s=fitted.rates.host_s + encoding))
    scheduler, rates = engine.scheduler(gpu, settings, workload), fitted.rates
    loop = Loop(
        workload.input_tokens, workload.output_tokens, clients,
        resident_requests(requests_held(memory.kv, workload), scheduler, rates.occupancy), scheduler.tokens, engine.cache_bytes(ir),
        ROUNDS, rates.request_s(settings.parallel.tp), rates.host_token_s,
    )  # fmt: skip
    run = Run(work, card, fitted, settings.parallel.tp, settings.parallel.pp, sharing)
    if sharing > 1 and fitted.basis is not Basis.MEASURED:
        run = replace(run, fitted=(fitted := _of_sharing(run, loop)))
    if workload.rate is None:
        return Asked(run, fitted, loop, notes, replicas)
    capacity_s = _capacity_s(run, loop)
    loop = replace(loop, clients=_waiting_clients(run, loop, workload, replicas, capacity_s))
    return Asked(run, fitted, loop, notes, replicas, replicas * capacity_s if math.isfinite(workload.rate) else None)


def _of_sharing(run: Run, loop: Loop) -> Fitted:
    """The rates of replicas that share experts, of which no row of the data is: what they are unsure of besides all that they have in
    common with those that do not, which was seen.
    """
    fitted = run.fitted
    step = Step(
        min(loop.clients, loop.resident), loop.input_tokens + loop.output_tokens / 2, cache_bytes=loop.cache_bytes
    )
    more = unseen_seconds(run.work, run.card, fitted.rates, step, run.tp, run.sharing)
    own = math.log1p(more / run.stage(step))
    widths = {regime: width.with_own(own) for regime, width in fitted.widths.items()}
    return replace(fitted, widths=widths, basis=Basis.ASSUMED)


def _capacity_s(run: Run, loop: Loop) -> float:
    """Requests a second that one replica answers with as many at work as run at once, one after the other without end."""
    loop = replace(loop, clients=loop.resident, rounds=_WITHOUT_END)
    return loop.resident / _request_s(closed_loop(run.step, loop), loop)


def _request_s(means: Means, loop: Loop) -> float:
    return means.ttft_s + means.tpot_s * max(loop.output_tokens - 1, 0)


def _waiting_clients(run: Run, loop: Loop, workload: Workload, replicas: int, capacity_s: float) -> float:
    """The clients of a closed loop that keep one replica as busy as requests that arrive at a rate do, by Little's law: rate × how long
    each takes among so many; where they arrive faster than they are answered, as many as there are.

    How long each takes is nearly a straight line of how many there are, so a few secants find it.
    """
    assert workload.rate is not None
    most = max(1.0, min(workload.requests or REQUESTS, workload.at_once or math.inf) / replicas)
    rate = workload.rate / replicas
    if rate >= capacity_s:
        return most

    def kept(clients: float) -> float:
        return rate * _request_s(closed_loop(run.step, replace(loop, clients=clients)), loop)

    last, clients = 1.0, min(max(1.0, kept(1.0)), most)
    beyond = clients - 1.0
    for _ in range(_SECANTS):
        if abs(clients - last) <= _ALIKE * clients:
            break
        short = kept(clients) - clients
        slope = (short - beyond) / (clients - last)
        last, beyond = clients, short
        clients = min(max(1.0, clients - short / slope if slope < 0 else 2 * clients), most)
    return clients


def requests_held(kv: KVEstimate, workload: Workload) -> float:
    """Return how many requests of the workload's mean length (prompt and half the answer) the cache of one replica holds.

    Infinite where it holds none at full context: such a plan is refused for its memory, its speed is asked all the same.
    """
    if not 0 < kv.max_concurrency.value < math.inf:
        return math.inf
    tokens = min(workload.input_tokens + workload.output_tokens / 2, workload.context)
    return kv.max_concurrency.value * kv.bytes_per_sequence / max(kv.bytes_of(tokens), kv.bytes_per_token)


def resident_requests(held: float, scheduler: Scheduler, occupancy: float) -> float:
    """Return how many requests run at once where the cache holds `held` of their mean length, whole or not."""
    return max(1.0, min(scheduler.sequences, held / occupancy))


def _measured(fitted: Fitted, engine: str, gpu: Gpu, version: str | None, profile: Profile) -> Fitted:
    """The engine's rates with this machine's measurements in their place."""
    values = measured_values(engine_values(engine), engine, gpu, profile)
    error = profile.error(engine)
    alone = fitted.widths[Regime.ALONE]
    width = Width(min(alone.tpot, error), min(alone.ttft, error))
    return Fitted(rates_from(values, generation_of(gpu), version), dict.fromkeys(Regime, width), Basis.MEASURED)


@dataclass(frozen=True)
class Run:
    """The step model of one replica, which shares its experts with `sharing` of them, itself included."""

    work: Work
    card: Card
    fitted: Fitted
    tp: int
    pp: int
    sharing: int = 1

    def step(self, step: Step) -> float:
        """Return the seconds of a step; pipeline stages each run their share of the sequences, one after another."""
        if self.pp > 1:
            step = replace(step, decode=max(step.decode / self.pp, min(step.decode, 1.0)))
        return max(self.stage(step), self.launches_s)

    def stage(self, step: Step) -> float:
        """Return the seconds of a step of what one stage has in hand, and of handing it on."""
        tokens = step.decode + step.prefill
        return self._model(step) + handing_on_seconds(self.work, self.card, self.fitted.rates, tokens, self.tp, self.pp)

    @cached_property
    def _model(self) -> Callable[[Step], float]:
        return step_model(self.work, self.card, self.fitted.rates, self.tp, self.sharing)

    @property
    def launches_s(self) -> float:
        """Seconds that no step is shorter than: launching its kernels one by one; 0 where CUDA graphs are."""
        return launch_seconds(self.work, self.fitted.rates)


def _speed(means: Means, alone: Means, question: Asked) -> SpeedEstimate:
    loop, fitted = question.loop, question.fitted
    outputs = max(loop.output_tokens, 1)
    request_s = means.ttft_s + means.tpot_s * (outputs - 1)
    waiting = loop.clients > means.resident
    regime = Regime.ALONE if loop.clients == 1 else Regime.SATURATED if waiting else Regime.BELOW
    tpot_error, ttft_error = fitted.widths[regime].tpot, fitted.widths[regime].first(means.ttft_s)
    prefill_s = max(alone.ttft_s - loop.host_s - loop.host_token_s * loop.input_tokens, 1e-9)
    return SpeedEstimate(
        ttft_ms=_quantity(1e3 * means.ttft_s, ttft_error, fitted),
        tpot_ms=_quantity(1e3 * means.tpot_s, tpot_error, fitted),
        prefill_tok_s=_quantity(loop.input_tokens / prefill_s, fitted.widths[Regime.ALONE].first(prefill_s), fitted),
        decode_tok_s_per_request=_quantity(1 / means.tpot_s, tpot_error, fitted),
        throughput_tok_s=_quantity(question.replicas * loop.clients * outputs / request_s, tpot_error, fitted),
        notes=question.notes,
    )


def _quantity(value: float, error: float, fitted: Fitted) -> Quantity:
    return Quantity(value, value * math.exp(-error), value * math.exp(error), fitted.basis)
