"""The loop of an engine under load: arrivals in, steps on a clock, answers out.

Steps are composed while the last one runs (`Rules.lag`), so that one is composed of what had arrived when its predecessor began.
Runs of decode steps that hold the same requests are told as one, at the time of the middle one: the time of a step is linear in its
contexts. One run follows the other, without a step being composed, until somebody arrives or something is to be decided.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from targets.simulation.arrivals import Arrivals
from targets.simulation.scheduler import Batch, Request, Room


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

    def quiet(self) -> tuple[int, int, int]:
        """Return how many steps from here on hold the same requests, which all decode, if nobody arrives, and of the first of them the
        sequences and their cached tokens in all. 0 steps: the next must be composed.
        """

    def skip(self, steps: int) -> list[Request]:
        """Go past so many of them. Returns those that the last one ends."""


class Queue(Composer, Protocol):
    """An engine's own scheduler, which says what its steps depend on."""

    @property
    def decides_by(self) -> Hashable:
        """All that its steps depend on but the requests and how much room there is for them."""

    @property
    def room(self) -> Room:
        """What it has for requests."""

    @property
    def spare(self) -> Room:
        """What was left of that at least, whenever it mattered; negative where it did not do."""


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
    serving = _Serving(step_s, scheduler, arrivals, lengths, host or Host())
    while serving.left:
        serving.compose()
        while serving.go_on():
            pass
    return serving.run


class _Serving:
    """A run on its clock: the last step that was composed runs from `began` to `now`."""

    __slots__ = ("_asked", "_door", "_lag", "_scheduler", "_stalled", "_step_s", "began", "left", "now", "run")

    def __init__(
        self,
        step_s: Callable[[Batch], float],
        scheduler: Composer,
        arrivals: Arrivals,
        lengths: Sequence[tuple[int, int]],
        host: Host,
    ) -> None:
        count = len(lengths)
        self.run = Run([0.0] * count, [0.0] * count, [0.0] * count, [output for _, output in lengths])
        self.began = self.now = 0.0
        self.left = count
        self._step_s, self._scheduler, self._lag = step_s, scheduler, scheduler.lag
        self._door = Door(arrivals, lengths, host, self.run.sent)
        self._stalled: dict[Request, float] = {}
        self._asked = Batch()

    def compose(self) -> None:
        """Let the next step be composed of those that have arrived, and run it; wait for one where there is nothing to do."""
        scheduler, run, door = self._scheduler, self.run, self._door
        seen = self.began if self._lag else self.now
        if door.next <= seen:
            for request in door.arrived(seen):
                scheduler.add(request)
        if scheduler.idle:
            self.began = self.now = max(self.now, door.next)
            return
        batch = scheduler.compose()
        for request in batch.preempted:
            self._stalled[request] = self.now
            run.preemptions += 1
        self.began = self.now
        if batch.empty:
            return
        seconds = self._step_s(batch)
        self.now += seconds
        run.steps += 1
        for request in batch.caught_up:
            if request.written:
                run.gaps.append((self.now - self._stalled.pop(request, self.began), 1))
            else:
                run.first[request.number] = self.now
        if batch.decode:
            run.gaps.append((seconds, batch.decode))
        if scheduler.full:
            run.full_s += seconds
        if batch.ended:
            self._answer(batch.ended)

    def go_on(self) -> bool:
        """Tell the steps that follow and hold the same requests as one. Returns whether there were any."""
        scheduler, asked, step_s, now = self._scheduler, self._asked, self._step_s, self.now
        steps, decode, context = scheduler.quiet()
        if not steps:
            return False
        asked.decode, asked.context = decode, of_the_middle(context, decode, steps)
        seconds, arrival = step_s(asked), self._door.next
        if arrival <= now + (steps - 1) * seconds and scheduler.open:
            steps = steps_before(arrival, steps, (self.began, now), seconds, self._lag)
            if not steps:
                return False
            asked.context = of_the_middle(context, decode, steps)
            seconds = step_s(asked)
        run = self.run
        if scheduler.full:
            run.full_s += steps * seconds
        ended = scheduler.skip(steps)
        self.began, self.now = now + (steps - 1) * seconds, now + steps * seconds
        run.steps += steps
        run.gaps.append((seconds, steps * decode))
        if ended:
            self._answer(ended)
        return True

    def _answer(self, ended: Sequence[Request]) -> None:
        now, done, answered = self.now, self.run.done, self._door.answered
        self.left -= len(ended)
        for request in ended:
            done[request.number] = now
            answered(now)


def of_the_middle(context: int, decode: int, steps: int) -> int:
    """Return the cached tokens in the middle one of so many steps in which `decode` sequences each gain a token, `context` in the first."""
    return context + decode * (steps - 1) // 2


def steps_before(arrival: float, most: int, last: tuple[float, float], seconds: float, lag: int) -> int:
    """Return how many of `most` steps that hold the same run until an arrival is looked at. `last`: when the step before them began and
    ended; `seconds`: of the middle one. A step takes the longer the later it is, so they are no more than there are: the rest is told by
    itself.
    """
    began, now = last
    if arrival <= now:
        return 1 if lag and arrival > began else 0
    if most > 1 and arrival <= now + (most - 1) * seconds:
        return min(most, math.ceil((arrival - now) / seconds) + lag)
    return most


class Door:
    """Clients and the host: from when a request is due to when the engine sees it.

    The host's one thread takes turns between the requests in hand, so that those that come together are through together, in their order.
    """

    def __init__(self, arrivals: Arrivals, lengths: Sequence[tuple[int, int]], host: Host, sent: list[float]) -> None:
        self._due, self._lengths, self._host, self._sent = arrivals.due, lengths, host, sent
        self.number = 0
        """Of the request that is sent next."""
        self._sending: deque[tuple[float, int]] = deque()
        self._at_work: deque[tuple[float, int]] = deque()
        self._now = self._turned = 0.0
        self._coming: deque[tuple[float, Request]] = deque()
        self.next = math.inf
        """When the engine sees the next request, if no other is sent before, and never sooner; without end where none is on its way."""
        at_once = len(lengths) if arrivals.at_once is None else arrivals.at_once
        self._starting = deque((arrivals.starts or (0.0,) * at_once)[: len(lengths)])
        self._start(0.0)
        self.next = self._next()

    def _start(self, now: float) -> None:
        """Let the clients that are there by now send their first requests, as far as there are any left."""
        starting = self._starting
        while starting and starting[0] <= now and self.number < len(self._lengths):
            self._send(starting.popleft())

    def _next(self) -> float:
        seen = self._coming[0][0] if self._coming else math.inf
        if self._at_work:
            seen = min(seen, self._through() + self._after(self._at_work[0][1]))
        if self._sending:
            sent, number = self._sending[0]
            seen = min(seen, sent + self._host.request + self._after(number))
        if self._starting and self.number < len(self._lengths):
            sent = max(self._starting[0], self._due[self.number])
            seen = min(seen, sent + self._host.request + self._after(self.number))
        return seen

    def answered(self, now: float) -> None:
        """Free a client by an answer: the next request is sent, when it is due."""
        if self._starting:
            self._start(now)
        if self.number < len(self._lengths):
            self._send(now)
            self.next = self._next()

    def _send(self, now: float) -> None:
        number = self.number
        self.number += 1
        self._sent[number] = at = max(now, self._due[number])
        self._sending.append((at, number))

    def arrived(self, now: float) -> Sequence[Request]:
        """List the requests that the engine sees by now, for the first time."""
        if self._starting:
            self._start(now)
        if self._at_work or (self._sending and self._sending[0][0] <= now):
            self._work(now)
        else:
            self._turn(now)
        out, coming = [], self._coming
        while coming and coming[0][0] <= now:
            out.append(coming.popleft()[1])
        self.next = self._next()
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
