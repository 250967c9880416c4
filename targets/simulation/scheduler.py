"""vLLM's V1 scheduler as arithmetic: what each step holds, with runs of equal decode steps told in one.

After `v1/core/sched/scheduler.py`, `async_scheduler.py` and `kv_cache_manager.py` of 0.32.0; what differs in other versions is in `Rules`.
There is no prefill phase: a step has a budget of tokens, those that run come first, in the order they were admitted, then those that wait.
The oracle (`tests/engine/test_scheduler_oracle.py`) holds every step against the engine's own.

Nothing is kept a step and request. At step `s` a decoding request has `offset + s` tokens in the cache, so the sum of contexts is one
product, the blocks that a step needs are those of one of `block` phases, and ends lie in a heap.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass, replace
from heapq import heappop, heappush

from targets.simulation.free_blocks import FreeBlocks, Left


@dataclass(frozen=True, slots=True)
class Rules:
    """What a step takes at most, and what must fit. `tokens`, `sequences`: a step's budget and its requests (max_num_batched_tokens,
    max_num_seqs). `lag`: steps that are composed before the last one is settled: 1 with async scheduling, else 0. `whole_prompt`: a request
    is admitted where all that is known of it fits the cache (`scheduler_reserve_full_isl`, 0.19), else where its first chunk does.
    """

    tokens: int
    sequences: int
    lag: int = 1
    whole_prompt: bool = True


@dataclass(frozen=True, slots=True)
class Besides:
    """Blocks that a request takes besides those of its tokens: `states`, and `each` for each of its last `window` tokens."""

    states: int = 0
    each: float = 0.0
    window: int = 0

    def blocks(self, tokens: int) -> int:
        """Count the blocks of a request that comes to so many tokens; it has them from its first token on."""
        return self.states + math.ceil(self.each * min(tokens, self.window)) if self.each else self.states


@dataclass(frozen=True, slots=True)
class Cache:
    """The pool that requests draw from: `blocks` of `block` tokens. `besides`: what a request takes of them whatever its tokens take.

    `prefix`: tokens that all prompts begin with; whole blocks of them are computed and kept once. `remembers`: a request that lost its
    blocks finds those again that nobody has taken (prefix caching).
    """

    blocks: int
    block: int = 16
    besides: Besides = Besides()
    prefix: int = 0
    remembers: bool = False

    def needed(self, tokens: int, besides: int = 0) -> int:
        """Count the blocks that hold so many tokens of one request, which takes `besides` more."""
        return -(-tokens // self.block) + besides if tokens else 0


@dataclass(frozen=True, slots=True)
class Room:
    """Room for requests: how many at work at once, and blocks of the cache."""

    places: int
    blocks: int


@dataclass(slots=True, eq=False)
class Request:
    """One request: tokens of its prompt and of its answer, and how far it has come."""

    number: int
    prompt: int
    output: int
    written: int = 0
    """Tokens of the answer that were written before it was last admitted."""
    computed: int = 0
    """Tokens in the cache, while it is prefilled."""
    offset: int = 0
    """While it decodes: tokens in the cache at the start of step s, less s."""
    end: int = 0
    """The step that writes its last token; 0: not known yet."""
    shared: int = 0
    """Blocks that it holds together with others."""
    besides: int = 0
    """Blocks that it holds besides those of its tokens."""
    left: Left | None = None
    """Blocks that it wrote and lost, as far as nobody has taken them."""

    @property
    def known(self) -> int:
        """Tokens that are known of it when it is admitted: its prompt and what it has written."""
        return self.prompt + self.written


class Batch:
    """What one step holds: `decode` sequences with `context` cached tokens in all, and chunks of prompts.

    `chunks`: (request, tokens, tokens cached before) each; `caught_up`: those whose prompt is whole with it: a token of theirs appears at
    the end of the step. `ended`: those whose last token does. `preempted`: those that lost their blocks to others.
    """

    __slots__ = ("caught_up", "chunks", "context", "decode", "ended", "preempted")

    def __init__(self, decode: int = 0, context: int = 0) -> None:
        """Hold sequences that decode; by hand, for a run makes one a step."""
        self.decode, self.context = decode, context
        self.chunks: list[tuple[Request, int, int]] = []
        self.caught_up: list[Request] = []
        self.ended: list[Request] = []
        self.preempted: list[Request] = []

    @property
    def empty(self) -> bool:
        """Whether nothing is computed."""
        return not self.decode and not self.chunks


class Scheduler:
    """Composes steps. `add` requests, then `compose` the next step; `quiet` says how many then hold the same, `skip` goes past them."""

    def __init__(self, rules: Rules, cache: Cache) -> None:
        self.rules, self.cache = rules, cache
        self.step = 0
        self._free = FreeBlocks(cache.blocks, cache.remembers)
        self.waiting: deque[Request] = deque()
        self.running: dict[Request, None] = {}
        """In the order of admission; the last loses its blocks first."""
        self._decoding = 0
        self._offsets = 0
        self._phases: dict[int, int] = {}
        """Decoding requests by the step, modulo the block, in which they need a new block."""
        self._ends: list[tuple[int, int, Request]] = []
        self._leaving: deque[Request] = deque()
        """Those that have written their last token but are not settled: they hold blocks and a place."""
        self._partial: Request | None = None
        self._prefix_holders = 0
        self._prefix_known = False
        self._most = 0
        self._spare = cache.blocks

    apart = False

    @property
    def decides_by(self) -> Hashable:
        """All that its steps depend on but the requests and how much room there is for them."""
        return Scheduler, replace(self.rules, sequences=0), replace(self.cache, blocks=0)

    @property
    def room(self) -> Room:
        """What it has for requests."""
        return Room(self.rules.sequences, self.cache.blocks)

    @property
    def spare(self) -> Room:
        """What was left of that at least, whenever it mattered; negative where it did not do."""
        return Room(self.rules.sequences - self._most - 1, self._spare)

    @property
    def free(self) -> int:
        """Blocks that nobody holds."""
        return self._free.count

    @property
    def lag(self) -> int:
        """Steps that are composed before the last one is settled."""
        return self.rules.lag

    @property
    def idle(self) -> bool:
        """Whether nothing runs and nothing waits."""
        return not self.running and not self.waiting

    @property
    def open(self) -> bool:
        """Whether one that arrives now would be looked at: nobody waits, and there is a place."""
        return not self.waiting and len(self.running) < self.rules.sequences

    @property
    def full(self) -> bool:
        """Whether a request waits for blocks of the cache, not for a place."""
        return bool(self.waiting) and len(self.running) < self.rules.sequences and not self._fits(self.waiting[0])

    def add(self, request: Request) -> None:
        """Put a request at the end of the queue. Raises ValueError where the whole cache does not hold it."""
        request.besides = self.cache.besides.blocks(request.prompt + request.output - 1)
        if self.cache.needed(request.prompt + request.output - 1, request.besides) > self.cache.blocks:
            raise ValueError(f"a request of {request.prompt} + {request.output} tokens never fits the cache")
        self.waiting.append(request)

    def compose(self) -> Batch:
        """Compose the next step."""
        self.step += 1
        if self._leaving:
            self._settle()
        batch = Batch()
        budget = self._run(batch)
        if self.waiting and not batch.preempted:
            self._admit(batch, budget)
        self._finish(batch.ended)
        return batch

    def quiet(self) -> tuple[int, int, int]:
        """Return how many steps after the last one hold the same requests, which all decode, if nobody arrives, and of the first of them
        the sequences and their cached tokens in all. 0 steps: the next is to be composed.

        Those that left before they are settled change nothing for those that decode, only for one that waits for their blocks or place.
        """
        decoding = self._decoding
        if self._partial is not None or not decoding:
            return 0, 0, 0
        if self.waiting or self._leaving:
            places = len(self.running) < self.rules.sequences
            if self._leaving and (self.waiting or not places):
                return 0, 0, 0
            if self.waiting and places and self._fits(self.waiting[0]):
                return 0, 0, 0
        most, context = self._next_end() - self.step, self._offsets + decoding * (self.step + 1)
        left = self._free.count - decoding * (most // self.cache.block + 1)
        if left < 0:
            most = self._held(most)
        elif left < self._spare:
            self._spare = left
        return most, decoding, context

    def _held(self, most: int) -> int:
        """Return for how many of so many steps the blocks that are free are enough."""
        block, free = self.cache.block, self._free.count
        cycles = free // self._decoding
        steps, free = cycles * block, free - cycles * self._decoding
        while steps < most:
            free -= self._phases.get((self.step + steps + 1) % block, 0)
            if free < 0:
                break
            steps += 1
        self._spare = min(self._spare, free)
        return min(steps, most)

    def skip(self, steps: int) -> list[Request]:
        """Go past so many quiet steps, at least one. Returns those that the last of them ends."""
        block, decoding, first = self.cache.block, self._decoding, self.step + 1
        cycles, rest = divmod(steps, block)
        taken = cycles * decoding
        if rest:
            for phase, requests in self._phases.items():
                if (phase - first) % block < rest:
                    taken += requests
        if taken:
            self._free.take(taken)
        self.step += steps
        if self._leaving:
            self._settle()
        ended: list[Request] = []
        if self._ends[0][0] <= self.step:
            self._finish(ended)
        return ended

    def _next_end(self) -> int:
        """The step that ends the first of those that decode, which there must be."""
        ends = self._ends
        while ends[0][2].end != ends[0][0]:
            heappop(ends)  # it lost its blocks since
        return ends[0][0]

    def _settle(self) -> None:
        """Take back blocks and places of those whose last token is known by now."""
        known = self.step - 1 - self.rules.lag
        while self._leaving and self._leaving[0].end <= known:
            request = self._leaving.popleft()
            if request in self.running:
                self._release(request, request.prompt + request.output - 1)

    def _release(self, request: Request, tokens: int, known: int | None = None) -> Left:
        """Take back the place and the blocks of a request with so many tokens in the cache, of which the first `known` (by default all) may
        be found again.
        """
        del self.running[request]
        own, shared = self.cache.needed(tokens, request.besides) - request.shared, request.shared
        whole = (tokens if known is None else known) // self.cache.block - shared if self.cache.remembers else 0
        left = self._free.give(own, whole, shared)
        if shared:
            self._prefix_holders -= 1
            if not self._prefix_holders:
                self._free.give(shared)
            request.shared = 0
        return left

    def _run(self, batch: Batch) -> int:
        """Give those that run their tokens. Returns the budget that is left.

        Where blocks are short, the last of those that run loses its own, until what the others need is there.
        """
        needed = self._phases.get(self.step % self.cache.block, 0)
        if self._partial is not None or needed > self._free.count:
            self._spare = min(self._spare, self._free.count - self._needed())
            while self._needed() > self._free.count:
                self._preempt(batch, next(reversed(self.running)))
            needed = self._phases.get(self.step % self.cache.block, 0)
        self._free.take(needed)
        if self._free.count < self._spare:
            self._spare = self._free.count
        batch.decode, batch.context = self._decoding, self._offsets + self._decoding * self.step
        budget = self.rules.tokens - self._decoding
        if self._partial is not None and budget > 0:
            budget -= self._chunk(batch, self._partial, budget)
        return budget

    def _needed(self) -> int:
        """Blocks that this step takes for those that run."""
        needed, partial = self._phases.get(self.step % self.cache.block, 0), self._partial
        if partial is None:
            return needed
        return needed + self._more(partial, max(0, self.rules.tokens - self._decoding))

    def _more(self, request: Request, budget: int) -> int:
        """Blocks for a prompt's next chunk."""
        before = request.computed
        after = self.cache.needed(min(request.known, before + budget), request.besides)
        return after - self.cache.needed(before, request.besides)

    def _preempt(self, batch: Batch, request: Request) -> None:
        """Take a request's blocks; it goes to the front of the queue, with what it has written."""
        batch.preempted.append(request)
        if request.end and request.end < self.step:  # it only waited to be settled
            self._release(request, request.prompt + request.output - 1)
            return
        if request is self._partial:
            self._partial = None
            request.left = self._release(request, request.computed)
        else:
            cached = request.offset + self.step
            self._decodes(request, -1)
            # a token whose step is not settled is not known, nor the block that it completes
            request.left = self._release(request, cached, max(request.known, cached - self.rules.lag))
            request.written = cached - request.prompt + 1
        request.computed = request.end = 0
        self.waiting.appendleft(request)

    def _admit(self, batch: Batch, budget: int) -> None:
        """Let those in that wait, in their order, until one does not fit."""
        while budget > 0 and self.waiting and len(self.running) < self.rules.sequences:
            request = self.waiting[0]
            if not self._fits(request, budget):
                return
            self.waiting.popleft()
            self.running[request] = None
            self._most = max(self._most, len(self.running))
            self._share(request)
            budget -= self._chunk(batch, request, budget)

    def _hit(self, request: Request) -> int:
        """Blocks of the shared prefix that it need not compute; its last token is always computed."""
        blocks = self.cache.prefix // self.cache.block
        return blocks if self._prefix_known and blocks * self.cache.block < request.known else 0

    def _fits(self, request: Request, budget: int | None = None) -> bool:
        """Whether the cache has room for what must fit when a request is admitted."""
        hit, tokens = self._hit(request), request.known
        if not self.rules.whole_prompt:
            there = hit + (request.left.blocks if request.left else 0)
            tokens = min(tokens, there * self.cache.block + (budget or self.rules.tokens))
        left = self.free - self.cache.needed(tokens, request.besides) + (hit if self._prefix_holders else 0)
        self._spare = min(self._spare, left)
        return left >= 0

    def _share(self, request: Request) -> None:
        """Give a request the blocks of the prefix that are there, and what is left of its own."""
        hit = self._hit(request)
        if hit:
            request.computed, request.shared = hit * self.cache.block, hit
            self._free.take(request.besides + (0 if self._prefix_holders else hit))
            self._prefix_holders += 1
        if request.left is not None and request.left.others == hit:
            request.computed += self._free.find(request.left) * self.cache.block
        request.left = None

    def _chunk(self, batch: Batch, request: Request, budget: int) -> int:
        """Give a prompt as much of the budget as it takes. Returns its tokens."""
        before, known = request.computed, request.known
        tokens = min(known - before, budget)
        self._free.take(self._more(request, tokens))
        request.computed = before + tokens
        batch.chunks.append((request, tokens, before))
        self._partial = request if request.computed < known else None
        if self._partial is None:
            self._catch_up(batch, request)
        return tokens

    def _catch_up(self, batch: Batch, request: Request) -> None:
        """Its prompt is whole: a token appears at the end of this step, and it decodes from the next one on."""
        batch.caught_up.append(request)
        prefix = self.cache.prefix // self.cache.block
        if prefix and not self._prefix_holders and prefix * self.cache.block < request.known:
            # what it has computed is there for the others from now on
            self._prefix_known, self._prefix_holders, request.shared = True, 1, prefix
        request.end = self.step + request.output - request.written - 1
        request.offset = request.known - self.step - 1
        heappush(self._ends, (request.end, request.number, request))
        if request.end > self.step:
            self._decodes(request, 1)

    def _decodes(self, request: Request, sign: int) -> None:
        """Count a request among those that decode (1), or no longer (-1)."""
        self._decoding += sign
        self._offsets += sign * request.offset
        phase = -request.offset % self.cache.block
        requests = self._phases.get(phase, 0) + sign
        if requests:
            self._phases[phase] = requests
        else:
            del self._phases[phase]

    def _finish(self, ended: list[Request]) -> None:
        """Those that write their last token in this step decode no further: they are added to those that have `ended`."""
        ends, step = self._ends, self.step
        while ends and ends[0][0] <= step:
            end, _, request = heappop(ends)
            if request.end != end:
                continue  # it lost its blocks since
            if request.offset + step + 1 > request.known:
                self._decodes(request, -1)
            ended.append(request)
            self._leaving.append(request)
