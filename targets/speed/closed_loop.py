"""Means of a closed loop: how long a token and a first token take when `concurrency` clients each wait for their answer.

A client sends the next request when the last one is answered, all begin at once, prompts are prefilled in chunks beside the
decoding of the others (vLLM's V1 scheduler). In a cycle every resident request is prefilled once and decodes `output_tokens`,
so the mean time between tokens is a decode step plus its share of the others' prefills. A first token waits for the step in
flight, for the prompts ahead and for its own chunks; where the cache holds fewer requests than there are clients, it waits for
a slot as well (Little's law).
"""

from __future__ import annotations

from collections.abc import Callable

from passes.record import dataclass
from targets.speed.step import Step

#: Prompts ahead of an arriving one, as a share of the residents and per round: half of them in the first round, later ones
#: meet by chance and where answers of equal length end together. From a simulation of vLLM's scheduler, lengths spread by 20 %.
CROWDING = 0.7


@dataclass(frozen=True, slots=True)
class Loop:
    """The load: prompt and generated tokens a request, clients, requests whose cache fits at once, the engine's token budget a step.

    `rounds`: requests a client sends in a row; serving benchmarks send ten. The means then hold one start in which all prompts
    arrive together. `host_s`: host seconds a request before its first step and after; `host_token_s`: the same per prompt token
    (tokenising, transport).
    """

    input_tokens: float
    output_tokens: float
    clients: float
    resident: float
    budget: float
    cache_bytes: float
    rounds: float
    host_s: float
    host_token_s: float


@dataclass(frozen=True, slots=True)
class Means:
    """Seconds: time to first token, time per output token after it; requests resident in the mean."""

    ttft_s: float
    tpot_s: float
    resident: float


def closed_loop(step: Callable[[Step], float], loop: Loop) -> Means:
    """Return means of the loop, for an engine whose steps take `step` seconds."""
    resident = max(1.0, min(loop.clients, loop.resident))
    outputs = max(loop.output_tokens - 1, 1.0)
    context = loop.input_tokens + loop.output_tokens / 2
    decode = step(Step(resident, context, cache_bytes=loop.cache_bytes))
    if loop.output_tokens <= 1:
        return _read_alone(step, loop, resident)
    own = _prefill(step, loop, resident - 1, context, loop.input_tokens)
    ttft = loop.host_s + loop.host_token_s * loop.input_tokens + own
    tpot = decode
    if resident > 1:
        # in the steady state every other resident is prefilled once while one decodes; in the first round only half of them
        others = (resident - 1) * (1 - 0.5 / loop.rounds)
        tpot += others * max(own - decode, 0.0) / outputs
        crowd = min(resident * loop.input_tokens, max(loop.budget, loop.input_tokens))
        together = _prefill(step, loop, resident / 2, context, crowd) * loop.input_tokens / crowd
        ttft += decode / 2 + (resident - 1) * together * CROWDING / loop.rounds
    if loop.clients > resident:
        ttft += (loop.clients / resident - 1) * (ttft + outputs * tpot)
    return Means(ttft, tpot, resident)


def _read_alone(step: Callable[[Step], float], loop: Loop, resident: float) -> Means:
    """Means of a loop that decodes nothing: prompts are read one after the other without a gap, and each client waits for those of all."""
    crowd = min(resident * loop.input_tokens, max(loop.budget, loop.input_tokens))
    each = _prefill(step, loop, 0.0, loop.input_tokens, crowd) * loop.input_tokens / crowd
    seconds = max(loop.host_s + loop.host_token_s * loop.input_tokens + each, loop.clients * each)
    return Means(seconds, seconds, resident)


def _prefill(step: Callable[[Step], float], loop: Loop, decode: float, context: float, tokens: float) -> float:
    """Seconds to prefill `tokens` prompt tokens in chunks of the budget, beside `decode` running sequences."""
    chunk = min(tokens, max(loop.budget - decode, loop.budget / 4))
    prompts = tokens / loop.input_tokens
    chunks = max(tokens / chunk, 1.0)
    seen = (loop.input_tokens + 1) / 2
    return chunks * step(Step(decode, context, chunk, seen, prompts / chunks, loop.cache_bytes))
