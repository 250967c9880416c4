"""Which candidates have something of a name."""

from __future__ import annotations

import re
from collections.abc import Iterator

from passes.base import Stage
from planner.asked import spoken
from planner.choice.verdict import Verdict
from planner.explain.asked import Asked


def has(verdict: Verdict, name: str) -> bool:
    """Tell whether a candidate has something of a name: every word of it is one of the candidate's, or a part of one."""
    candidate = verdict.candidate
    return _named(" ".join((candidate.label, *(pass_.title() for pass_ in candidate.passes))), name)


def weights_have(verdict: Verdict, name: str) -> bool:
    """Tell the same of its engine and its weights alone, not of the cache's type."""
    candidate = verdict.candidate
    made = (f"{spoken(each)} {each.title()}" for each in candidate.passes if each.stage is not Stage.KV_CACHE)
    served = candidate.published and f"{candidate.published.id} {candidate.published.weights}"
    return _named(" ".join((candidate.engine, served or "", *made)), name)


def _named(said: str, name: str) -> bool:
    words = re.findall(r"[a-z0-9.]+", said.lower())
    asked = re.findall(r"[a-z0-9.]+", name.lower())
    return all(any(word == part or (len(part) > 1 and _part(part, word)) for word in words) for part in asked)


def _part(part: str, word: str) -> bool:
    """Whether a word holds another, numbers as a whole: `g12` is no part of `g128`."""
    return (
        re.search(rf"(?<!\d){re.escape(part)}(?!\d)" if part[0].isdigit() else rf"{re.escape(part)}(?!\d)", word)
        is not None
    )


def may_have(asked: Asked, name: str) -> bool:
    """Tell, without a search, whether a candidate can have something of a name: each word of it, but numbers that a search solves for, is
    somewhere in what the space is named by.
    """
    said = re.findall(r"[a-z0-9.]+", name.lower())
    words = (word for word in said if not re.fullmatch(r"[\d.]+", word))
    return any(map(str.isalnum, "".join(said))) and _named(asked.vocabulary, " ".join(words))


def words_of(asked: Asked) -> Iterator[str]:
    """Yield the words that candidates are named by."""
    yield from re.findall(r"[a-z0-9.-]+", asked.vocabulary)
