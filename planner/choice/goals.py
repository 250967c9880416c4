"""The goals that a spec may set: what each is called, its unit, and which side of it is good."""

from __future__ import annotations

from enum import StrEnum

from passes.record import dataclass

#: Where no goal is on quality, what loses more than this share of perplexity comes behind whatever else serves: it is another model.
FLOOR = 0.1
#: Odds that are this close are ties, where none reach the confidence.
ODDS_BAND = 0.05


#: What ends the code of the reason that a goal is missed.
MISSED = "_missed"


class Goal(StrEnum):
    """A goal by the name that plans, certificates and reason codes give it."""

    TTFT = "TTFT"
    """Time to the first token."""
    TPOT = "TPOT"
    """Time per output token after the first."""
    DECODE = "decode"
    """Tokens a second of one request."""
    THROUGHPUT = "throughput"
    """Tokens a second of all requests together."""
    RATE = "rate"
    """Requests a second that arrive, and are answered as fast."""
    PERPLEXITY = "perplexity"
    """Share by which perplexity grows."""
    KL = "KL"
    """KL divergence from the source, a token."""

    @property
    def unit(self) -> str:
        """Unit of its figures: `ms`, `tok/s`, `nats`, or `%` for a share that `planner.figures.show` prints in percent."""
        return _UNITS[self]

    @property
    def at_most(self) -> bool:
        """Whether the wanted figure is a maximum."""
        return self not in (Goal.DECODE, Goal.THROUGHPUT, Goal.RATE)

    @property
    def of_speed(self) -> bool:
        """Whether it is a goal on speed, which a running engine shows; else on quality, which the weights show."""
        return self not in (Goal.PERPLEXITY, Goal.KL)

    @property
    def reason_code(self) -> str:
        """Code of the reason that it is missed."""
        return f"{self}{MISSED}"


_UNITS = {
    Goal.TTFT: "ms", Goal.TPOT: "ms", Goal.DECODE: "tok/s", Goal.THROUGHPUT: "tok/s", Goal.RATE: "requests/s", Goal.PERPLEXITY: "%",
    Goal.KL: "nats",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class UsualBands:
    """The bands of a spec that names none."""

    speed: float = 0.05
    quality: float = 0.005
    memory: float = 0.02


@dataclass(frozen=True, slots=True)
class NoQuality:
    """No goal on quality."""

    max_perplexity_increase: None = None
    max_kl: None = None


@dataclass(frozen=True, slots=True)
class NoGoals:
    """What is weighed by where nobody asks for anything: all that the rule reads of a spec's `Goals`, as they stand where they are left
    out (their defaults are these). A check without goals loads nothing that reads specs.
    """

    ttft: None = None
    decode: None = None
    tpot: None = None
    throughput: None = None
    quality: NoQuality = NoQuality()
    prefer: str = "quality"
    confidence: float = 0.8
    fit_confidence: float = 0.95
    bands: UsualBands = UsualBands()
    times: tuple[()] = ()
    batch: bool = False
    asks_quality: bool = False
    asks_speed: bool = False


NO_GOALS = NoGoals()
