"""What a spec says of the load: contexts, lengths, clients that wait or requests that arrive."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import AliasChoices, Field, model_validator

from passes.ir.fields import LARGEST
from planner.spec.parts.values import Arrivals, Count, Positive, Seconds, Share, Strict, Tokens
from planner.spec.trace import read_trace
from targets.workload import RampUp, Workload


class Length(Strict):
    """Tokens of prompts, or of answers, that are not all alike."""

    mean: Tokens
    """Speed follows from it."""
    p95: Tokens | None = None
    """Of a hundred, 95 have no more: the cache is counted for it. Left out: the mean."""
    max: Tokens | None = None
    """The longest one, which the context must hold. Left out: `p95`, of which nothing longer is known."""

    @property
    def usual(self) -> int:
        """What the cache is counted for."""
        return self.p95 or self.mean

    @property
    def longest(self) -> int:
        """What the context must hold."""
        return self.max or self.usual

    @model_validator(mode="after")
    def _ordered(self) -> Length:
        if not self.mean <= self.usual <= self.longest:
            raise ValueError("mean, p95 and max of a length must rise in this order")
        if self.usual > 20 * self.mean:
            raise ValueError(
                f"a p95 of {self.usual:,} cannot be with a mean of {self.mean:,}: the five longest of a hundred alone bring more"
            )
        return self


#: A context that holds no request of the usual lengths.
_SHORT = 512 + 128


class Images(Strict):
    """Pictures that come with each request, beside its text."""

    count: Count = 1
    """Of a request, at most; the server refuses more."""
    tokens: Count
    """Of one, as the model counts them: Qwen2.5-VL width × height / 784, Gemma 3 256, Pixtral width × height / 256. They are input, and
    cached as the text is."""


class RateRamp(Strict):
    """How a rate grows, from one request to the next."""

    strategy: Literal["linear", "exponential"] = "linear"
    """By as many requests a second each time, or by the same share."""
    start: Arrivals
    """The rate at the first request; `rate` is that at the last."""


class WorkloadSpec(Strict):
    """What is asked of the served model."""

    context: Tokens = 4096
    """The longest sequence that the server accepts, prompt and answer together, in tokens."""
    concurrency: Count | Literal["auto"] | None = None
    """Clients that each wait for their answer. `auto`: as many as serve the goals best. Left out: one, or `auto` where the goals are on the
    throughput of all together; of requests that arrive as many as the rate keeps in flight."""
    input_tokens: Annotated[Tokens | Length, Field(validation_alias=AliasChoices("input_tokens", "input"))] = 512
    """Of a prompt: a number, or `{ mean: 800, p95: 3000, max: 8000 }`. `input` is read too."""
    output_tokens: Annotated[Tokens | Length, Field(validation_alias=AliasChoices("output_tokens", "output"))] = 128
    """Of an answer, likewise. `output` is read too."""
    images: Images | None = None
    """Pictures of each request, beside its text: `{ count: 2, tokens: 1200 }`."""
    requests: Count | None = None
    """How many in all, of lengths that are all alike where only their mean is told: a benchmark's run. Left out: as many as steady figures
    take, of lengths that vary."""
    rate: Arrivals | None = None
    """Requests that arrive by chance in place of clients that wait: `4/s`, or `inf` for all at once."""
    burstiness: Positive = 1.0
    """Of a rate: 1 is Poisson, less comes in clusters (as `vllm bench serve` has it)."""
    max_concurrency: Count | None = None
    """With a rate: how many may be unanswered before the next is sent."""
    ramp_up: RateRamp | None = None
    """Of a rate that grows (`vllm bench serve --ramp-up-strategy`): `{ strategy: linear, start: 1/s }`."""
    concurrency_ramp: Seconds | None = None
    """Of clients that come one after the other: how long until the last one is there (AIPerf's `--concurrency-ramp-duration`). Left out:
    all start at once."""
    shared_prefix: Annotated[int, Field(ge=0, le=LARGEST, strict=True)] | Share = 0
    """Tokens that all prompts begin with, or their share of the mean prompt (`40%`): computed and cached once."""
    trace: str | None = None
    """A file of requests to replay in their place: JSON lines of `{"time": 0.5, "input": 812, "output": 95}`, seconds and tokens."""

    @property
    def arrives(self) -> bool:
        """Whether requests come when they are due, in place of clients that wait for answers."""
        return self.rate is not None or self.trace is not None

    @property
    def input(self) -> Length:
        """Tokens of a prompt, those of its pictures among them."""
        text = self.input_tokens if isinstance(self.input_tokens, Length) else Length(mean=self.input_tokens)
        if self.images is None:
            return text
        seen = self.images.count * self.images.tokens
        more = {key: value + seen for key, value in text if value is not None}
        return Length(**more)

    @property
    def output(self) -> Length:
        """Tokens of an answer."""
        return self.output_tokens if isinstance(self.output_tokens, Length) else Length(mean=self.output_tokens)

    @property
    def asked(self) -> Workload:
        """What engines are asked."""
        prompt, answer = self.input, self.output
        left_open = None if self.arrives or self.concurrency == "auto" else 1
        clients = self.concurrency if isinstance(self.concurrency, int) else left_open
        shared = self.shared_prefix
        workload = Workload(
            self.context, clients, prompt.mean, answer.mean, prompt.p95, answer.p95, self.requests, self.rate, self.burstiness,
            self.max_concurrency, RampUp(self.ramp_up.strategy, self.ramp_up.start) if self.ramp_up else None, self.concurrency_ramp or 0.0,
            round(shared * prompt.mean) if isinstance(shared, float) else shared,
            pictures=self.images.count if self.images else 0, picture_tokens=self.images.tokens if self.images else 0,
        )  # fmt: skip
        return workload if self.trace is None else workload.replaying(read_trace(self.trace))

    @model_validator(mode="before")
    @classmethod
    def _lengths(cls, said: object) -> object:
        """Each is spelled once; where none is told they are no longer than a short context holds."""
        if not isinstance(said, dict):
            return said
        for short in ("input", "output"):
            if {short, f"{short}_tokens"} <= said.keys():
                raise ValueError(f"{short} and {short}_tokens are one length: keep one of them")
        context = said.get("context")
        told = {"input", "output", "input_tokens", "output_tokens", "images", "trace"} & said.keys()
        if told or not isinstance(context, int) or not 2 <= context < _SHORT:
            return said
        answer = max(1, context // 5)
        return {**said, "input_tokens": context - answer, "output_tokens": answer}

    @model_validator(mode="after")
    def _fits(self) -> WorkloadSpec:
        longest = self.input.longest + self.output.longest
        if longest > self.context:
            seen = self.images.count * self.images.tokens if self.images else 0
            parts = f"input_tokens + output_tokens{' + images' if seen else ''}"
            said = f" ({seen} of them images)" if seen else ""
            raise ValueError(f"{parts} = {longest}{said} exceed the context of {self.context}")
        if self.rate is None and (self.max_concurrency or self.burstiness != 1.0):
            raise ValueError("max_concurrency and burstiness are of a rate: name one (rate: 4/s), or use concurrency")
        if self.ramp_up is not None and not (self.rate is not None and self.ramp_up.start <= self.rate < math.inf):
            raise ValueError(
                "ramp_up says how a rate grows: name the one that it ends at (rate: 10/s), no less than its start"
            )
        if self.concurrency_ramp is not None and self.arrives:
            raise ValueError(
                "concurrency_ramp is of clients that wait for answers, and these requests arrive: keep one"
            )
        if self.rate is not None and self.trace is not None:
            raise ValueError("a trace says itself when its requests come: name it or a rate, not both")
        if isinstance(self.shared_prefix, float) and self.shared_prefix > 1:
            raise ValueError(f"a prefix is a share of the prompts, at most 100 %: {100 * self.shared_prefix:g} %")
        if self.trace is None and not isinstance(self.shared_prefix, float) and self.shared_prefix > self.input.longest:
            raise ValueError(
                f"a prefix of {self.shared_prefix} tokens is longer than the prompts ({self.input.longest})"
            )
        return self
