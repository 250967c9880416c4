"""How long prompts and answers are: all alike, spread evenly, or as chats are, by their mean and 95th percentile."""

from __future__ import annotations

import math
import random
from bisect import bisect_left
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


#: Chats' prompts and answers over their means, by the share that is shorter: first turns of ShareGPT (V3, unfiltered, cleaned, split)
#: as vLLM's benchmark keeps them (4 tokens at least, prompts of 1,024 and 2,048 in all at most), 546 of the first 600 that
#: github.com/IsseiHasegawa/vLLM-experiment lists (`results/dataset_stats.json` at 6dedb59c); the longest answers of the first 2,900.
#: A third of each has a few words, so that they are no log-normal.
_SHARES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.997, 1.0)
_PROMPTS = (0.016, 0.028, 0.039, 0.071, 0.115, 0.245, 0.644, 1.08, 1.46, 1.98, 2.73, 3.04, 3.49, 3.75, 4.0)
_ANSWERS = (0.022, 0.039, 0.061, 0.1, 0.166, 0.282, 0.548, 0.896, 1.32, 1.8, 2.74, 3.32, 4.15, 5.2, 7.0)
#: Their 95th percentiles over the means.
CHAT_PROMPT, CHAT_ANSWER = (table[_SHARES.index(0.95)] for table in (_PROMPTS, _ANSWERS))
#: Each time that lengths are stretched to a mean, more of them reach their room: times at most.
_STRETCHES = 10


def chats(prompt: float, answer: float, count: int, *, context: float = math.inf) -> list[tuple[int, int]]:
    """Return (prompt, answer) lengths of `count` chats of these means, none longer than `context` in all.

    Where the context leaves less room than both need, long answers have short prompts.
    """
    most_asked, most_told = (
        min(table[-1] * mean, context - 1) for table, mean in ((_PROMPTS, prompt), (_ANSWERS, answer))
    )
    answers = _with_mean(_as_shared(_ANSWERS, answer, count, 1), answer, [most_told] * count)
    prompts = _as_shared(_PROMPTS, prompt, count, 0)
    if any(min(asked, most_asked) + told > context for asked, told in zip(prompts, answers, strict=True)):
        shortest = iter(sorted(prompts))
        for number in sorted(range(count), key=lambda number: -answers[number]):
            prompts[number] = next(shortest)
    asked = _with_mean(prompts, prompt, [min(most_asked, context - told) for told in answers])
    return list(zip(asked, answers, strict=True))


def _as_shared(table: Sequence[float], mean: float, count: int, seed: int) -> list[float]:
    """Return `count` lengths that share them out as a table does, one of each share, in an order by chance."""
    shares = [(number + 0.5) / count for number in range(count)]
    random.Random(seed).shuffle(shares)
    return [mean * _between(table, share) for share in shares]


def _between(table: Sequence[float], share: float) -> float:
    """What stands in a table at a share, between two of its own as their logarithms run straight."""
    above = bisect_left(_SHARES, share, 1)
    part = (share - _SHARES[above - 1]) / (_SHARES[above] - _SHARES[above - 1])
    return math.exp((1 - part) * math.log(table[above - 1]) + part * math.log(table[above]))


def _with_mean(lengths: Sequence[float], mean: float, rooms: Sequence[float]) -> list[int]:
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
