"""The loop of an engine under load: arrivals in, steps on a clock, answers out.

Steps are composed while the last one runs (`Rules.lag`), so that one is composed of what had arrived when its predecessor began.
Runs of equal decode steps are told as one, at the time of the middle one: the time of a step is linear in its contexts.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from targets.simulation.arrivals import Arrivals
from targets.simulation.scheduler import Batch, Request


class Composer(Protocol):
    """An engine's scheduler: composes steps of what was added."""

    @property
    def lag(self) -> int:
        """Steps that are composed before the last one is settled: 1 or 0."""

    @property
    def apart(self) -> bool:
        """Whether each chunk of a prompt is a forward pass of its own, not one with all that a step holds."""

    @property
    def idle(self) -> bool:
        """Whether nothing runs and nothing waits."""

    @property
    def open(self) -> bool:
        """Whether one that arrives now would be looked at."""

    @property
    def full(self) -> bool:
        """Whether a request waits for the cache."""

    def add(self, request: Request) -> None:
        """Put a request at the end of the queue."""

    def compose(self) -> Batch:
        """Compose the next step."""

    def quiet(self) -> int:
        """Return how many steps after the composed one, which held no chunk, hold the same requests again if nobody arrives."""

    def skip(self, steps: int) -> Batch:
        """Go past so many of them. Returns the last."""


@dataclass(frozen=True, slots=True)
class Host:
    """Seconds between a request's being sent and the engine's seeing it: `fixed` and `token` (of its prompt) beside others, `request` of a
    thread that works on all of them in turns.
    """

    fixed: float = 0.0
    request: float = 0.0
    token: float = 0.0


@dataclass(slots=True)
class Run:
    """What became of each request, in seconds: `sent`, `first` token, `done`; tokens of its answer.

    `gaps`: (seconds, how many tokens came so long after the one before). `full_s`: how long a request waited for the cache.
    """

    sent: list[float]
    first: list[float]
    done: list[float]
    outputs: Sequence[int]
    gaps: list[tuple[float, int]] = field(default_factory=list)
    full_s: float = 0.0
    preemptions: int = 0
    steps: int = 0


def simulate(
    step_s: Callable[[Batch], float],
    scheduler: Composer,
    arrivals: Arrivals,
    lengths: Sequence[tuple[int, int]],
    host: Host | None = None,
) -> Run:
    """Serve requests of (prompt, answer) tokens each. `step_s`: seconds of a step. Pure: the same answer every time.

    Raises ValueError where the cache of `scheduler` does not hold one of them.
    """
    count = len(lengths)
    run = Run([0.0] * count, [0.0] * count, [0.0] * count, [output for _, output in lengths])
    door = _Door(arrivals, lengths, host or Host(), run.sent)
    stalled: dict[Request, float] = {}
    began = now = 0.0
    left = count
    while left:
        for request in door.arrived(began if scheduler.lag else now):
            scheduler.add(request)
        if scheduler.idle:
            began = now = max(now, door.next)
            continue
        batch = scheduler.compose()
        for request in batch.preempted:
            stalled[request] = now
            run.preemptions += 1
        if batch.empty:
            began = now
            continue
        seconds = step_s(batch)
        began, now = now, now + seconds
        run.steps += 1
        for request in batch.caught_up:
            if request.written:
                run.gaps.append((now - stalled.pop(request, began), 1))
            else:
                run.first[request.number] = now
        if batch.decode:
            run.gaps.append((seconds, batch.decode))
        full = scheduler.full
        if full:
            run.full_s += seconds
        if not batch.chunks and not batch.ended:
            steps = scheduler.quiet()
            if steps and scheduler.open:
                steps = min(steps, _before(door.next, began, now, seconds, scheduler.lag))
            if steps:
                middle = Batch(batch.decode, batch.context + batch.decode * (steps + 1) // 2)
                seconds = step_s(middle)
                run.full_s += steps * seconds if full else 0.0
                batch = scheduler.skip(steps)
                began, now = now + (steps - 1) * seconds, now + steps * seconds
                run.steps += steps
                run.gaps.append((seconds, steps * batch.decode))
        for request in batch.ended:
            run.done[request.number] = now
            left -= 1
            door.answered(now)
    return run


def _before(arrival: float, began: float, now: float, seconds: float, lag: int) -> int:
    """How many further steps are composed before an arrival is seen: the running one began at `began` and ends `now`."""
    if math.isinf(arrival):
        return 1 << 60
    further = max(0, math.ceil((arrival - now) / seconds))
    if not lag:
        return further
    return 1 + further if arrival > began else 0


class _Door:
    """Clients and the host: from when a request is due to when the engine sees it.

    The host's one thread takes turns between the requests in hand, so that those that come together are through together, in their order.
    """

    def __init__(self, arrivals: Arrivals, lengths: Sequence[tuple[int, int]], host: Host, sent: list[float]) -> None:
        self._due, self._lengths, self._host, self._sent = arrivals.due, lengths, host, sent
        self._number = 0
        self._sending: deque[tuple[float, int]] = deque()
        self._at_work: deque[tuple[float, int]] = deque()
        self._now = self._turned = 0.0
        self._coming: deque[tuple[float, Request]] = deque()
        at_once = len(lengths) if arrivals.at_once is None else arrivals.at_once
        for _ in range(min(at_once, len(lengths))):
            self.answered(0.0)

    @property
    def next(self) -> float:
        """When the engine sees the next request, if no other is sent before; without end where none is on its way."""
        seen = self._coming[0][0] if self._coming else math.inf
        if self._at_work:
            seen = min(seen, self._through() + self._after(self._at_work[0][1]))
        if self._sending:
            sent, number = self._sending[0]
            seen = min(seen, sent + self._host.request + self._after(number))
        return seen

    def answered(self, now: float) -> None:
        """Free a client, by an answer or at the start: the next request is sent, when it is due."""
        number = self._number
        if number == len(self._lengths):
            return
        self._number += 1
        self._sent[number] = at = max(now, self._due[number])
        self._sending.append((at, number))

    def arrived(self, now: float) -> Sequence[Request]:
        """List the requests that the engine sees by now, for the first time."""
        if self._at_work or (self._sending and self._sending[0][0] <= now):
            self._work(now)
        else:
            self._turn(now)
        if not self._coming:
            return ()
        out, coming = [], self._coming
        while coming and coming[0][0] <= now:
            out.append(coming.popleft()[1])
        return out

    def _work(self, to: float) -> None:
        """Let the host go on up to `to`. `_turned`: the seconds that it has spent on each of those at work since the run began."""
        while True:
            sent = self._sending[0][0] if self._sending else math.inf
            if self._at_work and (through := self._through()) <= min(sent, to):
                self._now, self._turned = through, self._at_work[0][0]
                self._hand_over(self._at_work.popleft()[1])
            elif sent <= to:
                self._turn(sent)
                self._at_work.append((self._turned + self._host.request, self._sending.popleft()[1]))
            else:
                self._turn(to)
                return

    def _hand_over(self, number: int) -> None:
        before = self._coming[-1][0] if self._coming else 0.0
        seen = max(before, self._now + self._after(number))
        self._coming.append((seen, Request(number, *self._lengths[number])))

    def _turn(self, to: float) -> None:
        if to > self._now:
            self._turned += (to - self._now) / (len(self._at_work) or 1)
            self._now = to

    def _through(self) -> float:
        """When the host is through with the first one at work."""
        return self._now + (self._at_work[0][0] - self._turned) * len(self._at_work)

    def _after(self, number: int) -> float:
        return self._host.fixed + self._host.token * self._lengths[number][0]
