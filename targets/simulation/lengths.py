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
#: Each time that lengths are stretched to a mean, more of them reach their room: times at most.
_STRETCHES = 10


def chats(prompt: float, answer: float, count: int, *, context: float = math.inf) -> list[tuple[int, int]]:
    """Return (prompt, answer) lengths of `count` chats of these means, none longer than `context` in all.

    Where the context leaves less room than both need, long answers have short prompts.
    """
    most_asked, most_told = (min(CHAT_LONGEST * mean, context - 1) for mean in (prompt, answer))
    prompts = lognormal(prompt, min(CHAT_PROMPT * prompt, most_asked), count, most=most_asked)
    answers = lognormal(answer, min(CHAT_ANSWER * answer, most_told), count, most=most_told, seed=1)
    answers = _with_mean(answers, answer, [most_told] * count)
    if any(asked + told > context for asked, told in zip(prompts, answers, strict=True)):
        shortest = iter(sorted(prompts))
        for number in sorted(range(count), key=lambda number: -answers[number]):
            prompts[number] = next(shortest)
    prompts = _with_mean(prompts, prompt, [min(most_asked, context - told) for told in answers])
    return list(zip(prompts, answers, strict=True))


def _with_mean(lengths: Sequence[int], mean: float, rooms: Sequence[float]) -> list[int]:
    """Stretch lengths to this mean, or as near to it as leaves none longer than its room."""
    kept = [float(min(length, room)) for length, room in zip(lengths, rooms, strict=True)]
    for _ in range(_STRETCHES):
        free = sum(length for length, room in zip(kept, rooms, strict=True) if length < room)
        missing = mean * len(kept) - math.fsum(kept)
        if not free or abs(missing) < 1:
            break
        stretch = 1 + missing / free
        kept = [
            min(stretch * length, room) if length < room else length for length, room in zip(kept, rooms, strict=True)
        ]
    return [max(1, round(length)) for length in kept]


def fixed(length: int, count: int) -> Sequence[int]:
    """Return the same length `count` times."""
    return (length,) * count
