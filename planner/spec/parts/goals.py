"""What a spec says must be met, what is preferred among plans that meet it, and what counts as a tie."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from pydantic import Field, field_serializer, field_validator, model_validator

from planner.choice.goals import NO_GOALS
from planner.spec.parts.values import Rate, Seconds, Share, Strict


class PercentileGoal(Strict):
    """A time that so many of a hundred requests keep: one of these."""

    p50: Seconds | None = None
    """Half of the requests keep it."""
    p90: Seconds | None = None
    """90 of 100 requests keep it."""
    p95: Seconds | None = None
    """95 of 100 requests keep it."""
    p99: Seconds | None = None
    """99 of 100 requests keep it."""

    @property
    def statistic(self) -> str:
        """Which of them: `p95`."""
        return next(name for name, value in self if value is not None)

    @property
    def seconds(self) -> float:
        """The time."""
        return float(next(value for _, value in self if value is not None))

    @model_validator(mode="after")
    def _single(self) -> PercentileGoal:
        if sum(value is not None for _, value in self) != 1:
            raise ValueError("name one percentile: p50, p90, p95 or p99")
        return self


class QualityGoal(Strict):
    """How much worse the result may be."""

    max_perplexity_increase: Share | None = None
    """Growth of perplexity over the source's, at most."""
    max_kl: Annotated[float, Field(gt=0)] | None = None
    """KL divergence from the source, in nats a token, at most."""


class Bands(Strict):
    """Gains that are worth neither work nor risk: differences up to so much are ties (docs/choosing.md)."""

    speed: Share = NO_GOALS.bands.speed
    """Of a rate, a time, a KL divergence, or of the longest context."""
    quality: Share = NO_GOALS.bands.quality
    """Growth of perplexity, in points."""
    memory: Share = NO_GOALS.bands.memory
    """Of the size of the weights, and of the card."""


Preference = Literal["quality", "speed", "throughput", "cost", "context", "size"]
#: What may be preferred among plans that meet the goals.
PREFERENCES: tuple[str, ...] = get_args(Preference)
#: Goals on tokens after the first, which only a model that writes has.
DECODED = ("decode", "tpot", "throughput")


class Goals(Strict):
    """What a plan must meet, and what to maximise among those that do."""

    ttft: Seconds | PercentileGoal | None = None
    """Time to the first token, at most: of the mean, or `{ p95: 800 ms }`."""
    decode: Rate | None = None
    """Tokens a second of one request, at least, in the mean."""
    tpot: Seconds | PercentileGoal | None = None
    """Time per output token after the first, at most; likewise."""
    throughput: Rate | None = None
    """Tokens a second of all requests together, at least."""
    quality: QualityGoal = QualityGoal()
    """How much worse the result may be; left out: whatever it loses."""
    prefer: Preference = "quality"
    """`speed`: one client's tokens a second; `throughput`: those of all together; `cost`: the fewest seconds of a card a token."""
    confidence: Annotated[Share, Field(gt=0, lt=1)] = NO_GOALS.confidence
    """How likely each goal must be met for a plan to be chosen before those that are less likely to."""
    fit_confidence: Annotated[Share, Field(gt=0, lt=1)] = NO_GOALS.fit_confidence
    """The same for fitting the card."""
    bands: Bands = Bands()
    """Which gains are worth neither work nor risk."""
    work_hours: Annotated[float, Field(gt=0)] = NO_GOALS.work_hours
    """Hours that making it may take: what takes longer is behind what takes no work, and the plan says so first."""

    @field_validator("decode", "throughput", mode="before")
    @classmethod
    def _of_the_mean(cls, asked: object) -> object:
        if isinstance(asked, dict):
            raise ValueError(
                "a goal on a rate is one figure, such as 20 tok/s; percentiles are of times: tpot: { p95: 50 ms }"
            )
        return asked

    @property
    def times(self) -> tuple[tuple[str, str, float], ...]:
        """The goals on a request's own times: which (`ttft`, `tpot`), of what over requests (`mean`, `p95`), seconds."""
        asked = ((name, goal) for name, goal in (("ttft", self.ttft), ("tpot", self.tpot)) if goal is not None)
        return tuple(
            (name, "mean", goal) if isinstance(goal, float) else (name, goal.statistic, goal.seconds)
            for name, goal in asked
        )

    @field_serializer("ttft", "tpot")
    def _written(self, asked: float | PercentileGoal | None) -> str | dict[str, str] | None:
        """A time as it is typed, or one of a percentile: `{p95: 0.8 s}`."""
        if isinstance(asked, PercentileGoal):
            return {asked.statistic: f"{asked.seconds} s"}
        return None if asked is None else f"{asked} s"

    def asked(self, name: str) -> bool:
        """Tell whether there is a goal on one of `DECODED`."""
        return {"decode": self.decode, "tpot": self.tpot, "throughput": self.throughput}[name] is not None

    @property
    def batch(self) -> bool:
        """Whether all clients' tokens count and not one client's: what does not fit at once may wait."""
        return self.prefer in ("throughput", "cost")

    @property
    def asks_quality(self) -> bool:
        """Whether any goal is on quality."""
        return self.quality != QualityGoal()

    @property
    def asks_speed(self) -> bool:
        """Whether any goal is on speed."""
        return any(goal is not None for goal in (self.ttft, self.decode, self.tpot, self.throughput))
