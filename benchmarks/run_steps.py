"""What steps a benchmark's run was made of, as the simulated scheduler composes them.

Time between tokens, time to the first one and the whole run are sums over steps, with weights that depend on who waited and who decoded:
a fit can change what a step takes a thousand times without simulating again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from targets.simulation.arrivals import Arrivals
from targets.simulation.scheduler import Batch, Request
from targets.simulation.simulate import Composer, Host, Run, simulate
from targets.simulation.step_times import StepTimes
from targets.speed.step import Step

#: Kinds of steps that are told apart among those with chunks of prompts and those without, each a like share of the run's time.
KINDS = 3


@dataclass(frozen=True, slots=True)
class RunStep:
    """A kind of step, and what its seconds count in the means over requests: of the time between tokens, of waiting for the first."""

    step: Step
    tpot: float
    wait: float


class _Recorder:
    """A scheduler that keeps what it composed: (step, how many in a row, weight for tokens, weight for first tokens)."""

    def __init__(self, scheduler: Composer, outputs: Sequence[int], cache_bytes: float) -> None:
        self._scheduler, self._cache_bytes = scheduler, cache_bytes
        self._share = [1 / max(output - 1, 1) for output in outputs]
        self._decoding = 0.0
        self._waiting = 0
        self.steps: list[tuple[Step, int, float, float]] = []

    apart = property(lambda self: self._scheduler.apart)
    lag = property(lambda self: self._scheduler.lag)
    idle = property(lambda self: self._scheduler.idle)
    open = property(lambda self: self._scheduler.open)
    full = property(lambda self: self._scheduler.full)

    def add(self, request: Request) -> None:
        self._waiting += 1
        self._scheduler.add(request)

    def quiet(self) -> tuple[int, int, int]:
        return self._scheduler.quiet()

    def compose(self) -> Batch:
        batch = self._scheduler.compose()
        if not batch.empty:
            self._keep(batch, batch.context, 1)
        for request in batch.caught_up:
            if not request.written:
                self._waiting -= 1
                self._decoding += self._share[request.number]
        self._settle(batch.ended)
        return batch

    def skip(self, steps: int) -> list[Request]:
        _, decode, context = self._scheduler.quiet()
        self._keep(Batch(decode), context + decode * (steps - 1) / 2, steps)
        ended = self._scheduler.skip(steps)
        self._settle(ended)
        return ended

    def _settle(self, ended: Sequence[Request]) -> None:
        self._decoding -= sum(self._share[request.number] for request in ended)

    def _keep(self, batch: Batch, context: float, count: int) -> None:
        prefill = sum(tokens for _, tokens, _ in batch.chunks)
        pairs = sum(tokens * (before + (tokens + 1) / 2) for _, tokens, before in batch.chunks)
        step = Step(
            batch.decode, context / max(batch.decode, 1), prefill, pairs / max(prefill, 1), len(batch.chunks), self._cache_bytes
        )  # fmt: skip
        self.steps.append((step, count, count * self._decoding, count * self._waiting))


def run_steps(
    step: Callable[[Step], float], cache_bytes: float, scheduler: Composer, arrivals: Arrivals, lengths: Sequence[tuple[int, int]],
    host: Host | None = None, stages: int = 1,
) -> tuple[tuple[RunStep, ...], Run]:  # fmt: skip
    """Return the kinds of steps of a run with their weights, and the run. `step`: seconds of a step of one of `stages` pipeline stages."""
    recorder = _Recorder(scheduler, [output for _, output in lengths], cache_bytes)
    run = simulate(StepTimes(step, cache_bytes, stages), recorder, arrivals, lengths, host)
    with_chunks = [kept for kept in recorder.steps if kept[0].prefill]
    without = [kept for kept in recorder.steps if not kept[0].prefill]
    kinds = tuple(kind for kept in (with_chunks, without) for kind in _kinds(kept, step, len(lengths)))
    return kinds, run


def _kinds(kept: list[tuple[Step, int, float, float]], step: Callable[[Step], float], requests: int) -> list[RunStep]:
    """Sum steps up to `KINDS` kinds, of like shares of the time."""
    kept = sorted(kept, key=lambda each: (each[0].prefill, each[0].decode, each[0].context))
    seconds = [count * step(each) for each, count, _, _ in kept]
    total, before, kinds = sum(seconds), 0.0, [[] for _ in range(KINDS)]  # type: list[list[tuple[Step, int, float, float]]]
    for each, taken in zip(kept, seconds, strict=True):
        kinds[min(int(KINDS * (before + taken / 2) / total), KINDS - 1)].append(each)
        before += taken
    return [_mean(kind, requests) for kind in kinds if kind]


def _mean(kind: list[tuple[Step, int, float, float]], requests: int) -> RunStep:
    count = sum(number for _, number, _, _ in kind)
    decode = sum(number * step.decode for step, number, _, _ in kind)
    prefill = sum(number * step.prefill for step, number, _, _ in kind)
    step = Step(
        decode / count,
        sum(number * step.decode * step.context for step, number, _, _ in kind) / max(decode, 1),
        prefill / count,
        sum(number * step.prefill * step.prefill_context for step, number, _, _ in kind) / max(prefill, 1),
        sum(number * step.prompts for step, number, _, _ in kind) / count,
        kind[0][0].cache_bytes,
    )
    return RunStep(step, math.fsum(t for _, _, t, _ in kind) / requests, math.fsum(w for _, _, _, w in kind) / requests)
