"""What is asked of a served model: how long the conversations are and how many run at once."""

from __future__ import annotations

import math
from dataclasses import replace

from passes.record import dataclass


@dataclass(frozen=True, slots=True)
class Limit:
    """A promise on a latency (`ttft`, `tpot`, `e2e`): its mean, or a percentile of it (`p95`), is at most so many milliseconds."""

    latency: str
    statistic: str
    at_most_ms: float


@dataclass(frozen=True, slots=True)
class RampUp:
    """How a rate grows to the workload's own, from one request to the next: from `start` requests a second, by as many each time (`linear`)
    or by the same share (`exponential`), as `vllm bench serve --ramp-up-strategy` has it.
    """

    strategy: str
    start: float

    def rate(self, progress: float, end: float) -> float:
        """Return the requests a second at which the next is sent when so large a share of them was."""
        if self.strategy == "exponential":
            return self.start * math.exp(progress * math.log(end / self.start))
        return self.start + (end - self.start) * progress


#: What `RampUp.strategy` may be.
STRATEGIES = ("linear", "exponential")


@dataclass(frozen=True, slots=True)
class Workload:
    """A closed loop of `concurrency` requests, of `input_tokens` prompt and `output_tokens` generated tokens in the mean.

    `context`: the longest sequence the engine must accept (prompt and generated tokens together), `max_model_len` in vLLM.
    `concurrency` None: not asked; the engine must start, nothing more is promised. `input_p95`, `output_p95`: what 95 of 100 have no
    more of, where they are not all alike.

    `rate`: requests a second that arrive by chance in place of the closed loop, infinite where all come at once; `burstiness`: shape of
    their gaps (1: Poisson); `at_once`: unanswered ones beyond which the next waits to be sent. `requests`: how many there are in all. None:
    as many as steady figures take; lengths that are told by their mean alone vary then, as they do in use.
    `ramp_up`: how it grows to that, the same from the first request on where it is None. `ramp_s`: seconds over which the clients of a
    closed loop come one after the other, all at once by default.
    `shared_prefix`: tokens that all prompts begin with. `trace`: (second, prompt tokens, answer tokens) of each request, in place of these.
    `limits`: what users are promised; how many are served so is told then. `pictures`: of each request, of `picture_tokens` each, which
    are among its input tokens.
    """

    context: int
    concurrency: int | None = None
    input_tokens: int = 512
    output_tokens: int = 128
    input_p95: int | None = None
    output_p95: int | None = None
    requests: int | None = None
    rate: float | None = None
    burstiness: float = 1.0
    at_once: int | None = None
    ramp_up: RampUp | None = None
    ramp_s: float = 0.0
    shared_prefix: int = 0
    trace: tuple[tuple[float, int, int], ...] | None = None
    limits: tuple[Limit, ...] = ()
    pictures: int = 0
    picture_tokens: int = 0

    @property
    def request_tokens(self) -> int:
        """Tokens of a request that the cache is counted for: its prompt and its answer, at their 95th percentile where that is known."""
        return (self.input_p95 or self.input_tokens) + (self.output_p95 or self.output_tokens)

    @property
    def decodes(self) -> bool:
        """Whether a request ends with more than the one token, vector or score that its prompt gives."""
        return self.output_tokens > 1

    @property
    def as_chats(self) -> bool:
        """Whether lengths are drawn as chats' are: requests arrive, and only the means of their lengths are told."""
        return self.rate is not None and self.trace is None and not (self.input_p95 or self.output_p95)

    @property
    def lasts(self) -> bool:
        """Whether requests arrive at a rate without end, or grow to one, so that one that is not served grows a queue."""
        bounded = any(each is not None for each in (self.requests, self.at_once, self.trace))
        return self.rate is not None and math.isfinite(self.rate) and not bounded

    @property
    def filled(self) -> Workload:
        """The workload with every request as long as the context lets it be: prompts that fill what answers leave, nothing shared."""
        answer = min(self.output_p95 or self.output_tokens, self.context - 1)
        return replace(
            self, input_tokens=self.context - answer, output_tokens=answer, input_p95=None, output_p95=None, requests=None, shared_prefix=0,
            trace=None, pictures=0, picture_tokens=0,
        )  # fmt: skip

    def replaying(self, trace: tuple[tuple[float, int, int], ...]) -> Workload:
        """Return the workload of a trace, with its lengths and its rate."""
        prompts, answers = sorted(prompt for _, prompt, _ in trace), sorted(answer for _, _, answer in trace)
        count, span = len(trace), trace[-1][0] - trace[0][0]
        most = (95 * count - 1) // 100
        return replace(
            self, input_tokens=max(1, sum(prompts) // count), output_tokens=max(1, sum(answers) // count), input_p95=prompts[most],
            output_p95=answers[most], requests=count, rate=count / span if span else math.inf, trace=trace,
        )  # fmt: skip
