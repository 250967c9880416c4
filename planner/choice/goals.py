"""The goals that a spec may set: what each is called, its unit, and which side of it is good."""

from __future__ import annotations

from enum import StrEnum

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
