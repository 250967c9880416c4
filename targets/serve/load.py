"""Puts a load on a served model: so many clients that each wait for their answer, or requests that arrive by chance.

One thread a request in flight, of the standard library alone. Threads wait nearly all of their time: at 128 clients of a server that
gives each a token every 20 ms, the client adds less than a millisecond to a token (`tests/targets/test_load.py`).
"""

from __future__ import annotations

import http.client
import math
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Sequence

from passes.record import dataclass
from targets.serve.client import Answer, Prompt, ask, request_body, unseen_prompt
from targets.serve.process import EngineError, Served
from targets.simulation.arrivals import Arrivals, closed_loop, poisson


@dataclass(frozen=True, slots=True)
class Load:
    """Tokens of each prompt and answer, and how requests come: `concurrency` clients send the next when the last is answered;
    with a `rate`, requests a second arrive by chance (Poisson), however many are being answered. `requests`: in all. `ramp_s`: seconds over
    which the clients come one after the other.
    """

    input_tokens: int
    output_tokens: int
    concurrency: int
    requests: int
    rate: float | None = None
    ramp_s: float = 0.0

    @property
    def arrival(self) -> str:
        """How requests come, for people."""
        if self.rate is not None:
            return f"{self.rate:g} a second"
        return f"{self.concurrency} at a time" + (f", who come over {self.ramp_s:g} s" if self.ramp_s else "")

    @property
    def arrivals(self) -> Arrivals:
        """When each request is sent: at the same seconds as in the simulation, so that chance does not stand between the two."""
        if self.rate is None:
            return closed_loop(self.concurrency, self.requests, self.ramp_s)
        return poisson(self.rate, self.requests)


@dataclass(frozen=True, slots=True)
class Spread:
    """Of one figure over all requests: mean, median, and what 90, 95 and 99 of a hundred stay below."""

    mean: float
    median: float
    p95: float
    p90: float = math.nan
    p99: float = math.nan

    def statistic(self, name: str) -> float:
        """Return `mean` or a percentile (`p95`)."""
        told = {"mean": self.mean, "p50": self.median, "p90": self.p90, "p95": self.p95, "p99": self.p99}
        return told[name]

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Describe values; at least one."""
        ordered = sorted(values)

        def below(share: float) -> float:
            return ordered[math.ceil(share * len(ordered)) - 1]

        return cls(statistics.fmean(values), statistics.median(values), below(0.95), below(0.9), below(0.99))


@dataclass(frozen=True, slots=True)
class LoadTiming:
    """What a load showed. `tool`: what put it on. Milliseconds to the first token and a further one; tokens a second that all requests
    together were answered, from the first request sent to the last token; `failed`: requests without an answer, `error`: what the
    first of them was told.
    """

    tool: str
    load: Load
    ttft_ms: Spread
    tpot_ms: Spread
    tok_s: float
    seconds: float
    failed: int
    error: str | None = None

    @classmethod
    def of(cls, tool: str, load: Load, answers: Sequence[Answer], seconds: float, errors: Sequence[str]) -> LoadTiming:
        """Sum up answers; those with fewer tokens than were asked for are failed ones. Raises EngineError where none is left."""
        short = [
            f"answered {answer.tokens} of {load.output_tokens} tokens"
            for answer in answers
            if answer.tokens < load.output_tokens
        ]
        answers = [answer for answer in answers if answer.tokens >= load.output_tokens]
        errors = [*errors, *short]
        if not answers:
            raise EngineError(
                f"none of {load.requests} requests was answered: {errors[0] if errors else 'none was sent'}",
                remedy="see the engine's message",
            )
        return cls(
            tool, load,
            Spread.of([1000 * answer.ttft_s for answer in answers]), Spread.of([1000 * answer.tpot_s for answer in answers]),
            sum(answer.tokens for answer in answers) / seconds, seconds, len(errors), errors[0] if errors else None,
        )  # fmt: skip

    @property
    def decode_tok_s(self) -> float:
        """Tokens a second of one request after its first token, by the mean."""
        return 1000 / self.tpot_ms.mean if self.tpot_ms.mean > 0 else 0.0

    @property
    def described(self) -> str:
        """What was asked, for people."""
        asked = self.load
        return f"{asked.requests} requests of {asked.input_tokens} + {asked.output_tokens} tokens, {asked.arrival}, by {self.tool}"


def load(
    served: Served, model: str, asked: Load, prompt: Callable[[int], Prompt] = unseen_prompt, tool: str = "tightfit"
) -> LoadTiming:
    """Put a load on a server and time every answer.

    `prompt` makes one of so many tokens that the server has not seen. Raises EngineError where no request is answered.
    """
    bodies = [request_body(model, prompt(asked.input_tokens), asked.output_tokens) for _ in range(asked.requests)]
    sent = send(served, bodies, asked.arrivals)
    return LoadTiming.of(tool, asked, sent.answers, sent.seconds, sent.errors)


def send(served: Served, bodies: Iterable[bytes], arrivals: Arrivals, seconds: float = math.inf) -> Sent:
    """Send each request when it is due and a client is free for it, as the simulation of the same arrivals does, and wait for the answers.

    None is sent after `seconds`, but for the first one of every client.
    """
    sent, began = Sent(), time.perf_counter()
    free = _clients(arrivals)
    threads = []

    def ask_one(body: bytes) -> None:
        try:
            sent.ask(served, body, began)
        finally:
            if free is not None:
                free.release()

    for number, (body, due) in enumerate(zip(bodies, arrivals.due, strict=False)):
        if free is not None:
            free.acquire()
        now = time.perf_counter() - began
        if max(now, due) > seconds and number >= (arrivals.at_once or 1):
            break
        time.sleep(max(0.0, due - now))
        threads.append(_started(ask_one, body))
    for thread in threads:
        thread.join()
    return sent


class Sent:
    """What was sent: the answers, what those that failed were told, and `seconds` from the first request to the last answer."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.answers: list[Answer] = []
        self.errors: list[str] = []
        self.seconds = 1e-9

    def ask(self, served: Served, body: bytes, began: float) -> None:
        """Send one request and keep what came of it."""
        try:
            answer, error = ask(served, body), None
        except (
            OSError,
            ValueError,
            http.client.HTTPException,
            EngineError,
        ) as failure:  # what is no JSON is a ValueError
            answer, error = None, str(failure) or type(failure).__name__
        with self._lock:
            self.seconds = max(self.seconds, time.perf_counter() - began)
            if answer is not None:
                self.answers.append(answer)
            else:
                self.errors.append(error or "")


def _clients(arrivals: Arrivals) -> threading.Semaphore | None:
    """The clients that are free, who come when they start; None where as many send as there are requests."""
    if arrivals.at_once is None:
        return None
    starts = arrivals.starts or (0.0,) * arrivals.at_once
    free = threading.Semaphore(sum(not start for start in starts))

    def come() -> None:
        began = time.perf_counter()
        for start in starts:
            if start:
                time.sleep(max(0.0, start - (time.perf_counter() - began)))
                free.release()

    if any(starts):
        _started(come)
    return free


def _started(work: Callable[..., None], *arguments: bytes) -> threading.Thread:
    thread = threading.Thread(target=work, args=arguments, daemon=True)
    thread.start()
    return thread
