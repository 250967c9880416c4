"""The course of a load: what each step holds, in which order. Seconds are another matter: a card that is slower all through composes the
same steps of the same requests, only later, as long as each request comes while the same step runs and nothing is short of room.

So a course that was composed once is told again on another clock (`retimed`) at a tenth of what composing it takes. Where a clock might
bring a request to another step, or the room might not do, there is no answer, and the load is simulated.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from targets.simulation.arrivals import Arrivals
from targets.simulation.scheduler import Batch, Request, Room
from targets.simulation.simulate import Door, Host, Queue, Run, of_the_middle, steps_before

#: What tells the seconds of a step.
StepSeconds: TypeAlias = Callable[[Batch], float]

#: Seconds by which times must be apart to be told apart whatever way they were summed up.
_APART = 1e-9
#: Steps of a course that is kept, at most.
_LONGEST = 10_000


@dataclass(slots=True)
class Spell:
    """Steps that hold the same requests and were told as one: `most` of them, of which `steps` were taken before one that arrives was to be
    looked at, which it is where the queue is `open`. `whole`, `middle`: what stands for all, and for those taken. `ended`: as of a stage.
    """

    most: int
    open: bool
    whole: Batch
    steps: int = 0
    middle: Batch = field(default_factory=Batch)
    ended: tuple[int, ...] = ()


@dataclass(slots=True)
class Stage:
    """A composed step, and the `spells` that follow it. `arrived`: requests that came before it; `first`, `ended`: those whose first and
    whose last token appear.
    """

    arrived: int
    batch: Batch
    first: tuple[int, ...]
    ended: tuple[int, ...]
    spells: list[Spell] = field(default_factory=list)


@dataclass(slots=True)
class Course:
    """The stages of a load. `room`: that they were composed with; `spare`: what was left of it at least."""

    stages: list[Stage]
    room: Room
    spare: Room

    def fits(self, room: Room) -> bool:
        """Tell whether the stages are the same with so much room: as much as there was, or enough that there is always some left."""
        fewer = self.room.places - room.places, self.room.blocks - room.blocks
        return all(
            not less or 0 <= spare >= less
            for less, spare in zip(fewer, (self.spare.places, self.spare.blocks), strict=True)
        )


@dataclass(slots=True)
class Recorder:
    """A composer that notes the course of what a queue composes."""

    queue: Queue
    _stages: list[Stage] = field(default_factory=list)
    _arrived: int = 0
    _context: int = 0
    _again: bool = True
    """Whether what was noted can be told again: nothing waited for a clock, nothing was lost."""

    @property
    def lag(self) -> int:
        """Steps that are composed before the last one is settled."""
        return self.queue.lag

    @property
    def apart(self) -> bool:
        """As the queue has it."""
        return self.queue.apart

    @property
    def idle(self) -> bool:
        """As the queue has it."""
        idle = self.queue.idle
        self._again = self._again and not (idle and self._stages)
        return idle

    @property
    def open(self) -> bool:
        """As the queue has it."""
        return self.queue.open

    @property
    def full(self) -> bool:
        """As the queue has it."""
        full = self.queue.full
        self._again = self._again and not full
        return full

    def add(self, request: Request) -> None:
        """Count a request, and hand it on."""
        self._arrived += 1
        self.queue.add(request)

    def compose(self) -> Batch:
        """Compose a step and note it."""
        batch = self.queue.compose()
        if batch.empty or batch.preempted or len(self._stages) == _LONGEST:
            self._again = False
        if self._again:
            first, ended = (tuple(each.number for each in some) for some in (batch.caught_up, batch.ended))
            self._stages.append(Stage(self._arrived, batch, first, ended))
        self._arrived = 0
        return batch

    def quiet(self) -> tuple[int, int, int]:
        """Return the number of steps that follow and hold the same, as the queue does, and note it."""
        most, decode, context = self.queue.quiet()
        if most and self._again:
            whole = Batch(decode, of_the_middle(context, decode, most))
            self._stages[-1].spells.append(Spell(most, self.queue.open, whole))
            self._context = context
        return most, decode, context

    def skip(self, steps: int) -> list[Request]:
        """Go past so many, and note that."""
        ended = self.queue.skip(steps)
        if self._again:
            spell = self._stages[-1].spells[-1]
            decode = spell.whole.decode
            spell.steps, spell.ended = steps, tuple(each.number for each in ended)
            all_of_them = steps == spell.most
            spell.middle = spell.whole if all_of_them else Batch(decode, of_the_middle(self._context, decode, steps))
        return ended

    def course(self) -> Course | None:
        """Return what was noted; None where it cannot be told again."""
        return Course(self._stages, self.queue.room, self.queue.spare) if self._again else None


def retimed(
    course: Course,
    lag: int,
    step_s: StepSeconds,
    arrivals: Arrivals,
    lengths: Sequence[tuple[int, int]],
    host: Host,
) -> Run | None:
    """Return the run of a course whose steps take other seconds; None where a request may come at another step."""
    run = Run([0.0] * len(lengths), [0.0] * len(lengths), [0.0] * len(lengths), [output for _, output in lengths])
    clients = _Clients(Door(arrivals, lengths, host, run.sent), lengths, host, run.sent)
    first, done, gaps, answered = run.first, run.done, run.gaps, clients.answered
    began = now = clients.begin()
    for stage in course.stages:
        if not clients.come(stage.arrived, began if lag else now):
            return None
        seconds, decode = step_s(stage.batch), stage.batch.decode
        began, now = now, now + seconds
        run.steps += 1
        for number in stage.first:
            first[number] = now
        if decode:
            gaps.append((seconds, decode))
        for number in stage.ended:
            done[number] = now
            answered(now)
        for spell in stage.spells:
            if spell.open:
                each, last = step_s(spell.whole), (began, now)
                if {steps_before(at, spell.most, last, each, lag) for at in clients.next()} != {spell.steps}:
                    return None
            steps = spell.steps
            if steps:
                seconds = step_s(spell.middle)
                began, now = now + (steps - 1) * seconds, now + steps * seconds
                run.steps += steps
                gaps.append((seconds, steps * spell.middle.decode))
                for number in spell.ended:
                    done[number] = now
                    answered(now)
    return run


class _Clients:
    """Clients of a load without due times, by bounds of when the engine sees their requests: none sooner than a host that works on no
    other would let it, none later than one that works on all that are under way. Those of the start, which come together, are told exactly.
    """

    def __init__(self, door: Door, lengths: Sequence[tuple[int, int]], host: Host, sent: list[float]) -> None:
        self._door: Door | None = door
        self._lengths, self._host, self._sent = lengths, host, sent
        self._number, self._seen, self._latest = 0, 0, 0.0
        self._came: Sequence[Request] = ()
        self._under_way: deque[tuple[float, int]] = deque()
        """Of each the soonest that it is seen, and how many had been when it was sent."""

    def begin(self) -> float:
        """Return the second at which the first of them is seen."""
        now = 0.0
        assert self._door is not None
        while not (came := self._at_door(now)):
            now = max(now, self._door.next)
        self._came = came
        return now

    def _at_door(self, now: float) -> Sequence[Request]:
        """Those of the start that have come, asked as a simulation asks."""
        assert self._door is not None
        return self._door.arrived(now) if self._door.next <= now else ()

    def come(self, arrived: int, at: float) -> bool:
        """Tell whether just so many of those under way are surely seen by a time."""
        if self._door is not None:
            came, self._came = self._came or self._at_door(at), ()
            if math.isinf(self._door.next):
                self._number, self._seen, self._door = self._door.number, self._door.number, None
            return len(came) == arrived
        for _ in range(arrived):
            if not self._under_way or self._last(*self._under_way[0]) > at - _APART:
                return False
            self._under_way.popleft()
            self._seen += 1
        return not self._under_way or self._under_way[0][0] > at + _APART

    def next(self) -> tuple[float, float]:
        """Return the soonest and the latest time at which the next one is seen, if no other is sent before."""
        if self._door is not None:
            return self._door.next, self._door.next
        if not self._under_way:
            return math.inf, math.inf
        return min(self._under_way)[0] - _APART, self._last(*self._under_way[0]) + _APART

    def answered(self, now: float) -> None:
        """Send the next request, if there is one."""
        if self._door is not None:
            self._door.answered(now)
        elif self._number < len(self._lengths):
            self._sent[self._number] = now
            host, (prompt, _) = self._host, self._lengths[self._number]
            self._number += 1
            self._under_way.append((now + host.request + host.fixed + host.token * prompt, self._seen))

    def _last(self, soonest: float, seen: int) -> float:
        """When a request is seen at the latest: it shares the host with all that were sent and not seen meanwhile."""
        self._latest = max(self._latest, soonest + (self._number - seen - 1) * self._host.request)
        return self._latest
