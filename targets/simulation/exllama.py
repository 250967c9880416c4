"""ExLlama's dynamic generator as arithmetic: what one of its iterations holds.

After `exllamav2/generator/dynamic.py` (0.3; ExLlamaV3's generator has the same loop): a job starts where pages for its whole prompt and
longest answer are free and the batch has a place, so none ever loses its pages; smaller ones may start before one that does not fit, a
few times. Each iteration runs one chunk of every prompt in progress, in a forward pass of its own each, then one token of all whose
prompt is whole.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from dataclasses import replace
from heapq import heappop, heappush

from targets.simulation.scheduler import Batch, Cache, Request, Room

#: How often a job may be overtaken by smaller ones (`max_skips`).
MAX_SKIPS = 4


class Generator:
    """Composes iterations, as `targets.simulation.scheduler.Scheduler` composes steps. `chunk`: tokens of a prompt's forward pass at most;
    `sequences`: jobs at once (`max_batch_size`); `cache`: pages.
    """

    lag = 0
    apart = True

    def __init__(self, chunk: int, sequences: int, cache: Cache) -> None:
        self._chunk, self._sequences, self._cache = chunk, sequences, cache
        self.step = 0
        self.free = cache.blocks
        self.waiting: deque[Request] = deque()
        self._skipped: dict[Request, int] = {}
        self._prefilling: list[Request] = []
        self._ends: list[tuple[int, int, Request]] = []
        self._offsets = 0
        self._left = False
        """Whether somebody left since those that wait were looked at."""
        self._most = 0
        self._spare = cache.blocks - 1

    @property
    def decides_by(self) -> Hashable:
        """All that its iterations depend on but the jobs and how much room there is for them."""
        return Generator, self._chunk, replace(self._cache, blocks=0)

    @property
    def room(self) -> Room:
        """What it has for jobs."""
        return Room(self._sequences, self._cache.blocks)

    @property
    def spare(self) -> Room:
        """What was left of that at least, whenever it mattered; negative where it did not do."""
        return Room(self._sequences - self._most - 1, self._spare)

    @property
    def idle(self) -> bool:
        """Whether nothing runs and nothing waits."""
        return not self._running and not self.waiting

    @property
    def open(self) -> bool:
        """Whether one that arrives now would be looked at: there are a place and a page."""
        return self._running < self._sequences and self.free > 0

    @property
    def full(self) -> bool:
        """Whether a request waits for pages, not for a place."""
        return bool(self.waiting) and self._running < self._sequences

    @property
    def _running(self) -> int:
        return len(self._prefilling) + len(self._ends)

    def add(self, request: Request) -> None:
        """Put a request at the end of the queue. Raises ValueError where the whole cache does not hold it."""
        if self._pages(request) > self._cache.blocks:
            raise ValueError(f"a request of {request.prompt} + {request.output} tokens never fits the cache")
        self.waiting.append(request)

    def compose(self) -> Batch:
        """Compose the next iteration."""
        self.step += 1
        self._left = False
        if self.waiting:
            self._start()
        batch = Batch()
        for request in list(self._prefilling) if self._prefilling else ():
            before, whole = request.computed, request.prompt - 1  # the last token is read with those that decode
            tokens = min(whole - before, self._chunk)
            request.computed += tokens
            if tokens:
                batch.chunks.append((request, tokens, before))
            if request.computed == whole:
                self._prefilling.remove(request)
                batch.caught_up.append(request)
                request.offset, request.end = whole - self.step, self.step + request.output - 1
                heappush(self._ends, (request.end, request.number, request))
                self._offsets += request.offset
        return self._generated(batch)

    def quiet(self) -> tuple[int, int, int]:
        """Return how many iterations after the last one hold the same requests if nobody arrives, and of the first of them the sequences
        and their cached tokens in all. 0 iterations: the next is to be composed.
        """
        if self._prefilling or not self._ends or (self._left and self.waiting):
            return 0, 0, 0
        decoding = len(self._ends)
        return self._ends[0][0] - self.step, decoding, self._offsets + decoding * (self.step + 1)

    def skip(self, steps: int) -> list[Request]:
        """Go past so many of them. Returns those that the last one ends."""
        self.step += steps
        return self._generated(Batch()).ended

    def _start(self) -> None:
        overtaken: list[Request] = []
        for request in list(self.waiting) if self.open else ():
            if self._running >= self._sequences or self._pages(request) > self.free:
                self._spare = -1
                overtaken.append(request)
                continue
            if any(self._skipped.get(each, 0) >= MAX_SKIPS for each in overtaken):
                return
            for each in overtaken:
                self._skipped[each] = self._skipped.get(each, 0) + 1
            self.waiting.remove(request)
            self._prefilling.append(request)
            self.free -= self._pages(request)
            self._most, self._spare = max(self._most, self._running), min(self._spare, self.free - 1)

    def _pages(self, request: Request) -> int:
        return self._cache.needed(request.prompt + request.output)

    def _generated(self, batch: Batch) -> Batch:
        """One token of all whose prompt is whole; those that are done leave."""
        batch.decode = len(self._ends)
        batch.context = self._offsets + batch.decode * self.step
        while self._ends and self._ends[0][0] == self.step:
            _, _, request = heappop(self._ends)
            self._offsets -= request.offset
            self.free += self._pages(request)
            batch.ended.append(request)
            self._left = True
        return batch
