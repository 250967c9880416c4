"""How long prompts and answers are: all alike, spread evenly, or as chats are, by their mean and 95th percentile."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

#: The 95th percentile of a standard normal distribution.
_Z95 = 1.6449
#: A log-normal distribution has its 95th percentile at so many times its mean at most.
MOST_APART = math.exp(_Z95**2 / 2)


def spread(mean: float, share: float, count: int, *, seed: int = 0) -> list[int]:
    """Return `count` lengths spread evenly by `share` of `mean` to either side."""
    chance = random.Random(seed)
    return [max(1, round(mean * (1 + share * (2 * chance.random() - 1)))) for _ in range(count)]


def lognormal(mean: float, p95: float, count: int, *, most: float = math.inf, seed: int = 0) -> list[int]:
    """Return `count` lengths of a log-normal distribution with this mean and 95th percentile, cut at `most`.

    A distribution of this kind has its 95th percentile at `MOST_APART` (3.87) times its mean at most: more is taken for that.
    """
    chance = random.Random(seed)
    # ln(p95 / mean) = z s - s² / 2, the smaller root of which is the distribution's spread
    s = _Z95 - math.sqrt(max(0.0, _Z95**2 - 2 * math.log(max(p95 / mean, 1.0))))
    drawn = [mean * math.exp(chance.gauss(-s * s / 2, s)) for _ in range(count)]
    return [max(1, round(min(length, most))) for length in drawn]


#: Chats' 95th percentiles over their means, of prompts and of answers, and the longest: ShareGPT as vLLM's benchmark samples it.
CHAT_PROMPT, CHAT_ANSWER, CHAT_LONGEST = 3.3, 2.9, 5.0


def chats(prompt: float, answer: float, count: int, *, room: float = math.inf) -> list[tuple[int, int]]:
    """Return (prompt, answer) lengths of `count` chats of these means; none of either is longer than `room` times its mean."""
    longest = min(CHAT_LONGEST, room)
    prompts = lognormal(prompt, min(CHAT_PROMPT, room) * prompt, count, most=longest * prompt)
    answers = lognormal(answer, min(CHAT_ANSWER, room) * answer, count, most=longest * answer, seed=1)
    return list(zip(prompts, answers, strict=True))


def fixed(length: int, count: int) -> Sequence[int]:
    """Return the same length `count` times."""
    return (length,) * count
