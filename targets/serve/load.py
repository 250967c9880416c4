"""Puts a load on a served model: so many clients that each wait for their answer, or requests that arrive by chance.

One thread a request in flight, of the standard library alone. Threads wait nearly all of their time: at 128 clients of a server that
gives each a token every 20 ms, the client adds less than a millisecond to a token (`tests/targets/test_load.py`).
"""

from __future__ import annotations

import http.client
import math
import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from targets.serve.client import Answer, Prompt, ask, request_body, unseen_prompt
from targets.serve.process import EngineError, Served


@dataclass(frozen=True, slots=True)
class Load:
    """Tokens of each prompt and answer, and how requests come: `concurrency` clients send the next when the last is answered;
    with a `rate`, requests a second arrive by chance (Poisson), however many are being answered. `requests`: in all.
    """

    input_tokens: int
    output_tokens: int
    concurrency: int
    requests: int
    rate: float | None = None

    @property
    def arrival(self) -> str:
        """How requests come, for people."""
        return f"{self.concurrency} at a time" if self.rate is None else f"{self.rate:g} a second"


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
    run = _Run(served, bodies)
    began = time.perf_counter()
    threads = list(run.clients(asked.concurrency) if asked.rate is None else run.arrivals(asked.rate))
    for thread in threads:
        thread.join()
    return LoadTiming.of(tool, asked, run.answers, max(run.ended - began, 1e-9), run.errors)


class _Run:
    """One load: what is still to be sent, what was answered."""

    def __init__(self, served: Served, bodies: Sequence[bytes]) -> None:
        self._served, self._left = served, iter(bodies)
        self._lock = threading.Lock()
        self.answers: list[Answer] = []
        self.errors: list[str] = []
        self.ended = 0.0

    def clients(self, count: int) -> Iterator[threading.Thread]:
        """Start so many threads, which send until nothing is left."""
        for _ in range(count):
            yield _started(self._send_all)

    def arrivals(self, rate: float) -> Iterator[threading.Thread]:
        """Start a thread a request, exponentially distributed times apart."""
        due = time.perf_counter()
        for body in self._left:
            time.sleep(max(0.0, due - time.perf_counter()))
            yield _started(self._send, body)
            due += random.expovariate(rate)

    def _send_all(self) -> None:
        while (body := self._next()) is not None:
            self._send(body)

    def _next(self) -> bytes | None:
        with self._lock:
            return next(self._left, None)

    def _send(self, body: bytes) -> None:
        try:
            answer, error = ask(self._served, body), None
        except (OSError, http.client.HTTPException, EngineError) as failure:
            answer, error = None, str(failure) or type(failure).__name__
        with self._lock:
            self.ended = time.perf_counter()
            if answer is not None:
                self.answers.append(answer)
            else:
                self.errors.append(error or "")


def _started(work: Callable[..., None], *arguments: bytes) -> threading.Thread:
    thread = threading.Thread(target=work, args=arguments, daemon=True)
    thread.start()
    return thread
