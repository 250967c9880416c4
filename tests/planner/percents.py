"""Finds the percents that are printed, and says which of them no number of the JSON explains."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from planner.choice.goals import FLOOR

_PERCENT = re.compile(r"([-+]?[\d,]+(?:\.\d+)?) ?%")


def percents(text: str) -> list[str]:
    """Every figure before a percent sign, as printed."""
    return _PERCENT.findall(text)


def unexplained(text: str, document: Any) -> list[str]:
    """The percents of a text that are no rounding of a number in the JSON."""
    known = [*explained(document), 100 * FLOOR]  # the notes tell what is another model
    return [shown for shown in percents(text) if not any(_rounds_to(value, shown) for value in known)]


def _rounds_to(value: float, shown: str) -> bool:
    places = len(shown.partition(".")[2])
    return abs(float(shown.replace(",", "")) - value) <= 0.5001 * 10**-places


def explained(document: Any) -> Iterator[float]:
    """Every number of a document that may be printed as percent, in percent: log-perplexity as the growth of perplexity."""
    if isinstance(document, list):
        for each in document:
            yield from explained(each)
    if isinstance(document, str):
        # A spec's own words, such as `10%`.
        yield from (float(shown) for shown in re.findall(r"^([\d.]+)%$", document))
    if not isinstance(document, Mapping):
        return
    yield from _own(document)
    for key, value in document.items():
        if key == "remedy" and isinstance(
            value, str
        ):  # a part of the spec, in which a goal is loosened to its next round figure
            yield from (float(shown) for shown in re.findall(r": ([\d.]+)%[,}]", value))
        if key in ("message", "remedy", "text", "checks"):
            continue  # what is printed cannot explain itself
        if key in ("candidate", "label", "answer", "by", "old", "new") and isinstance(value, str):
            yield from (float(shown.replace(",", "")) for shown in percents(value))  # shares that a pass is called by
        elif key == "log_ppl_increase" and isinstance(value, Mapping):
            yield from (100 * math.expm1(value[end]) for end in ("value", "low", "high"))
        else:
            yield from explained(value)


def _own(document: Mapping[str, Any]) -> Iterator[float]:
    """Percents of one JSON object."""
    if document.get("criterion") == "quality":
        yield from (100 * document[end] for end in ("value", "against"))
    if document.get("criterion") == "odds":
        yield from (100 * (1 - document[end]) for end in ("value", "against"))
    for key in ("odds", "fit_odds"):
        if (odds := document.get(key)) is not None:
            yield from (100 * odds, math.floor(1000 * odds) / 10)  # no odds below certainty are said to be it
    if document.get("unit") == "%" and "what" in document:
        yield from (100 * document[plan][end] for plan in ("chosen", "other") for end in ("value", "low", "high"))
    if document.get("what") == "log_ppl_increase":
        yield from (100 * math.expm1(document[end]) for end in ("old", "new") if document[end] is not None)
    if document.get("code") == "perplexity_missed":
        yield from (100 * document["data"][end] for end in ("wanted", "predicted"))
    if document.get("name") == "perplexity" and "wanted" in document:
        yield 100 * document["wanted"]
        if "predicted" in document:
            yield from (100 * document["predicted"][end] for end in ("value", "low", "high"))
        if "measured" in document:
            yield 100 * document["measured"]
    for key in ("confidence", "fit_confidence", "sparsity"):
        if isinstance(document.get(key), (int, float)):
            yield 100 * document[key]
