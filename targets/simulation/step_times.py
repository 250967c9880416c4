"""Seconds of steps from a step model that is asked little: its terms apart, each a curve through a few points.

A step's time is a sum (`targets.speed.step.step_seconds`): what depends on all tokens of the step, on the rows that are sampled, on the
decoding sequences, on their contexts, on pairs of a prompt's tokens. Those that only decode are steps of their own kind. So the model is
asked along these six lines only: these at every length up to where CUDA graphs end, the others at few points an octave. What contexts and
pairs add is straight but for windows, which are powers of two and such points.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

from targets.simulation.scheduler import Batch
from targets.speed.step import Step

#: Tokens of the prompt beside which the rest is asked.
_PROMPT = 512
#: Of a length so many bits are asked: of what bends, and of what is straight.
_BENT, _STRAIGHT = 4, 3
#: Up to here batches that only decode are padded to sizes (`targets.speed.step.padded`), so that every length is asked.
_PADDED = 512


class StepTimes:
    """Seconds of a batch. `step`: the step model, of a card's whole engine; `cache_bytes`: bytes of one cache element; `stages`: pipeline
    stages, over which the requests of a batch are spread; `least_s`: what no forward pass is shorter than.
    """

    def __init__(
        self, step: Callable[[Step], float], cache_bytes: float, stages: int = 1, least_s: float = 0.0
    ) -> None:
        self._step, self._cache_bytes, self._stages, self._least_s = step, cache_bytes, stages, least_s
        self._tokens = _curve(self._ask_tokens, _BENT)
        self._sampled = _curve(self._ask_sampled, _BENT)
        self._alone = _curve(self._ask_alone, _BENT, _PADDED)
        self._decoding = _curve(self._ask_decoding, _STRAIGHT)
        self._context = _slope(self._ask_context)
        self._pairs = _curve(self._ask_pairs, _STRAIGHT)

    def __call__(self, batch: Batch) -> float:
        """Return the seconds of a step."""
        decode = batch.decode
        if batch.chunks or not decode or self._stages > 1:
            return self._of(decode, batch.context, batch.chunks)
        context = batch.context  # most steps
        seconds = self._alone(decode) + context * self._context(round(context / decode))
        return seconds if seconds > self._least_s else self._least_s

    def apart(self, batch: Batch) -> float:
        """Return the seconds of a step whose chunks are forward passes of their own."""
        seconds = 0.0
        for chunk in batch.chunks:
            seconds += self._of(0, 0, (chunk,))
        return seconds + self._of(batch.decode, batch.context, ()) if batch.decode else seconds

    def _of(self, decode: int, context: int, chunks: Sequence[tuple[object, int, int]]) -> float:
        prompts, prefill, whole, pairs, share, sequences = len(chunks), 0, 0, 0, 1.0, decode
        for _, tokens, before in chunks:
            whole += tokens
            pairs += tokens * before + tokens * (tokens + 1) // 2
        prefill = whole
        if self._stages > 1:
            # every stage holds its share of the requests, but a prompt's chunk is in one of them whole
            share = 1 / min(self._stages, max(decode + prompts, 1))
            prefill = round(prefill / min(self._stages, max(prompts, 1)))
            decode, prompts = -(-decode // self._stages), -(-prompts // self._stages)
        if prefill:
            seconds = self._tokens(decode + prefill) + self._sampled(decode + prompts) + self._decoding(decode)
        else:
            seconds = self._alone(decode)
        if decode:
            seconds += context * share * self._context(round(context / sequences))
        if prefill:
            seconds += prefill * self._pairs(round(pairs / whole))
        return max(seconds, self._least_s)

    def _seconds(self, decode: int, context: float, prefill: int = 0, pairs: float = 0.0, prompts: int = 0) -> float:
        return self._step(Step(decode, context, prefill, pairs, prompts, self._cache_bytes))

    def _ask_tokens(self, tokens: int) -> float:
        """A step of a prompt's tokens, of which none is sampled."""
        return self._seconds(0, 0.0, tokens) if tokens else 0.0

    def _ask_sampled(self, rows: int) -> float:
        """What sampling so many rows adds to it."""
        return self._seconds(0, 0.0, _PROMPT, 0.0, rows) - self._tokens(_PROMPT)

    def _ask_alone(self, decode: int) -> float:
        """A step of sequences that only decode, but for their contexts."""
        return self._seconds(decode, 0.0) if decode else 0.0

    def _ask_decoding(self, decode: int) -> float:
        """What so many tokens beside a prompt take more, or less, than a prompt's because each is a sequence of its own."""
        return self._seconds(decode, 0.0, _PROMPT) - self._seconds(0, 0.0, _PROMPT + decode, 0.0, decode)

    def _ask_context(self, context: int) -> float:
        """What so many tokens of the cache add to a decoding sequence."""
        return self._seconds(1, context) - self._alone(1)

    def _ask_pairs(self, seen: int) -> float:
        """What it adds to a prompt's token that it attends to so many."""
        return (self._seconds(0, 0.0, _PROMPT, seen) - self._tokens(_PROMPT)) / _PROMPT


def _curve(ask: Callable[[int], float], bits: int, exact: int = 0) -> Callable[[int], float]:
    """A curve at whole numbers: asked up to `exact` and where no more than `bits` of them are set in a row, else between the two nearest
    points that are; each known from then on.
    """
    asked = lru_cache(maxsize=None)(ask)

    def at(x: int) -> float:
        unit = 1 << max(x.bit_length() - bits, 0)
        rest = x % unit if x > exact else 0
        if not rest:
            return asked(x)
        low = asked(x - rest)
        return low + (asked(x - rest + unit) - low) * rest / unit

    return lru_cache(maxsize=None)(at)


def _slope(ask: Callable[[int], float]) -> Callable[[int], float]:
    """What each of so many tokens adds of what they add together."""
    together = _curve(ask, _STRAIGHT)
    return lru_cache(maxsize=None)(lambda x: together(x) / x if x else 0.0)
