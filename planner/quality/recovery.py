"""What distillation is expected to take back of a loss, and what it takes to reach a goal: before any of it was run.

`recovery_fit.json` (made by `benchmarks/fit_recovery.py`): the share of a loss that is left after `n` tokens is (1 + n / n0)^−b. Nearly all
published runs state accuracies; the share of the gap in accuracy that is left stands for the share of the rise of log-perplexity that is
left. Both are 0 when the teacher is reached and 1 before training; in between accuracies of hard tasks come back later, which the interval
holds.
"""

from __future__ import annotations

import json
import math
from functools import lru_cache
from pathlib import Path
from typing import Any

from targets.quantity import Basis, Quantity, weaker

#: The methods that train a whole model, so that what follows them in a chain is lost anew.
TRAINED = ("logits", "sequences")


@lru_cache(maxsize=1)
def fit() -> dict[str, Any]:
    """Read the fit."""
    values: dict[str, Any] = json.loads(Path(__file__).with_name("recovery_fit.json").read_text(encoding="utf-8"))
    return values


def left(tokens: int, method: str) -> float:
    """Return the share of a loss that is expected to be left after so many tokens."""
    known = fit()["methods"][method]
    return float((1 + tokens / known["tokens"]) ** -known["slope"])


def recovered(rise: Quantity, tokens: int, method: str, *, adapters: bool = False) -> Quantity:
    """Return what is left of a rise of log-perplexity. Both ends of the interval widen by what runs differ.

    With `adapters` it is what training all weights leaves, at the least: what share adapters take back is not published for pruned models,
    so the upper end is that of no training.
    """
    share, width = left(tokens, method), fit()["methods"][method]["width"]
    basis = weaker(rise.basis, Basis(fit()["methods"][method]["basis"]))
    far = math.exp(width)
    if adapters:
        return Quantity(rise.value * share, rise.low * share / far, rise.high, Basis.ASSUMED)
    return Quantity(rise.value * share, rise.low * share / far, min(rise.high, rise.high * share * far), basis)


def tokens_needed(rise: float, goal: float, method: str) -> int | None:
    """Return the tokens after which a rise of log-perplexity is expected to be down to a goal; 0 where it is, None where none do."""
    if rise <= goal:
        return 0
    if goal <= 0:
        return None
    known: dict[str, float] = fit()["methods"][method]
    return math.ceil(known["tokens"] * (math.pow(rise / goal, 1 / known["slope"]) - 1))
