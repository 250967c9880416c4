"""What candidates are told that lost by a criterion, and what is said of the chosen one, in words."""

from __future__ import annotations

import math
from collections.abc import Callable

from planner.choice.rule.standing import BEHIND, tier
from planner.figures import apart

#: What is to be made of a candidate, by how much work and risk that is.
MAKING = (
    "nothing to make", "rounding, no calibration text", "calibrated on text", "pruned or distilled"
)  # fmt: skip
#: The same, as what is to be done with it.
MUST = ("takes no work", "must be rounded", "must be calibrated on text", "must be pruned or distilled")

TOO_LONG = "takes longer to make than {:g} h (goals: work_hours)"
ARCHIVED = "its engine is archived: planned when asked for, or when nothing else serves"
#: What is said of the chosen one where a criterion told it from others.
TOLD = {
    "fewest cards": "the fewest cards that do",
    "maintained": "its engine is maintained",
    "each start": "stored, not rounded at each start",
    "queue": "of those whose clients wait, it answers them soonest for what it loses",
    "too long to make": "made in time", "waiting": "no client waits", "fit": "surely fits",
    "odds": "with the best odds of what is asked", "making": "no other is less to make",
    "checked": "how it is stored is checked",
    "changes of the model": "with the fewest changes of the model", "regime": "its engine was measured in this regime",
    "refused": "its engine does not refuse it", "missed": "with the least that is missed",
    "stages": "in the fewest stages", "cards": "on all cards", "tensor parallel": "with the fewest cards under one matrix",
    "native": "the card multiplies its format itself", "settings": "with the fewest changed settings",
    "margin": "with the most room left", "work": "with the least work", "quality": "then the best in quality",
    "speed": "then the fastest", "size": "then the smallest",
}  # fmt: skip
#: What the Pareto set is over (`Rule._figures`), in words.
FIGURES = (
    "quality", "one client's speed", "throughput", "memory", "work", "cards", "waiting clients", "changed settings", "odds",
    "odds of fitting", "refusals", "what is missed", "who maintains the engine", "what is preferred", "time to make it",
)  # fmt: skip
#: Sizes that differ by no larger share are told without figures.
_ALIKE = 1e-4


def always(text: str) -> Callable[[float, float], str]:
    """Return what says the same words whatever the figures."""
    return lambda theirs, mine: text


def standing_words(theirs: float, mine: float) -> str:
    """Say why a candidate that stands behind lost, given the places of both."""
    if theirs >= BEHIND > mine:
        return ARCHIVED
    return _TIERS[tier(theirs)]


def standing_told(standing: float) -> str:
    """Say how the chosen one stands."""
    told = (
        "meets every goal with the odds asked for",
        "meets every goal by its predicted values",
        "comes nearest to the goals",
    )
    return told[tier(standing)] + (", which no maintained engine does" if standing >= BEHIND else "")


#: What is said of a candidate that stands behind, by its tier.
MISSES = "misses a goal by less than the band"

_TIERS = ("stands behind", "less likely than is asked", MISSES)


def fit_words(confidence: float, theirs: float, mine: float) -> str:
    """Say how likely a candidate fits, of which less than what is asked is short (probabilities)."""
    return "fits with {} only, {} are asked".format(*apart(confidence - theirs, confidence, "odds"))


def missed_words(theirs: float, mine: float) -> str:
    """Say by how much both miss what is asked (e-folds)."""
    return f"misses what is asked by {math.expm1(theirs):.0%} in all, against {math.expm1(mine):.0%}"


def odds_words(theirs: float, mine: float) -> str:
    """Say by how much odds fall short (probabilities)."""
    return "its odds are {} below the confidence asked for, against {}".format(*apart(theirs, mine, "odds"))


def grown_words(theirs: float, mine: float) -> str:
    """Say what both add to perplexity (shares)."""
    return "perplexity {} against {}".format(*apart(theirs, mine, "%"))


def cards_of(count: float) -> str:
    """Write a number of cards."""
    return "1 card" if count == 1 else f"{count:.0f} cards"


def rate_words(theirs: float, mine: float, decodes: bool = True) -> str:
    """Say how fast both decode (tokens a second, negated), or answer where a request ends with its prompt."""
    if not decodes:
        return "answers {} against {}".format(*apart(-theirs, -mine, "requests/s"))
    return "decodes {} against {}".format(*apart(-theirs, -mine, "tok/s"))


def log_rate_words(theirs: float, mine: float, decodes: bool = True) -> str:
    """Say the same of logarithms."""
    return rate_words(-math.exp(-theirs), -math.exp(-mine), decodes)


def cost_words(theirs: float, mine: float, decodes: bool = True) -> str:
    """Say how fast both decode a card (logarithms, negated)."""
    unit = "tok/s" if decodes else "requests/s"
    return "{} a card against {}".format(*apart(math.exp(-theirs), math.exp(-mine), unit))


def size_words(theirs: float, mine: float) -> str:
    """Say how large both are (bytes)."""
    if abs(theirs - mine) <= _ALIKE * mine:
        return "its weights take a little more"
    return "its weights take {} against {}".format(*apart(theirs, mine, "B"))


def log_size_words(theirs: float, mine: float) -> str:
    """Say the same of logarithms."""
    return size_words(math.exp(theirs), math.exp(mine))
