"""Watches a running engine under load: what its processes and the cards hold, how full its cache is, who waits, who was preempted."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from targets.engines.engine import ServerMetrics
from targets.machine.live import look
from targets.serve.process import Served

#: Seconds between two looks.
_EVERY = 0.5
_PROCESSES = Path("/proc")


@dataclass(frozen=True, slots=True)
class Look:
    """One look at an engine: bytes that its processes hold (shared ones once), bytes in use on each card, and what its metrics say; None
    where nothing tells.
    """

    memory_bytes: int | None = None
    card_bytes: tuple[int, ...] = ()
    cache_share: float | None = None
    running: int | None = None
    waiting: int | None = None
    preemptions: int | None = None


@dataclass(frozen=True, slots=True)
class Watched:
    """What many looks saw: the most of each figure, and preemptions in all. `grown_bytes`: by how much the processes' most of the second
    half exceeds that of the first, as where memory is not given back.
    """

    looks: int
    memory_bytes: int | None = None
    grown_bytes: int | None = None
    card_bytes: tuple[int, ...] = ()
    cache_share: float | None = None
    running: int | None = None
    waiting: int | None = None
    preemptions: int | None = None


@dataclass
class Watch:
    """The looks so far, the first before the load."""

    looks: list[Look] = field(default_factory=list)

    def summary(self) -> Watched:
        """Return what all looks saw together."""
        held = [each.memory_bytes for each in self.looks if each.memory_bytes is not None]
        half = len(held) // 2
        counts = [each.preemptions for each in self.looks if each.preemptions is not None]
        cards = zip(*(each.card_bytes for each in self.looks if each.card_bytes), strict=False)
        return Watched(
            len(self.looks), max(held, default=None), max(held[half:]) - max(held[:half]) if half else None,
            tuple(max(card) for card in cards),
            max((each.cache_share for each in self.looks if each.cache_share is not None), default=None),
            max((each.running for each in self.looks if each.running is not None), default=None),
            max((each.waiting for each in self.looks if each.waiting is not None), default=None),
            counts[-1] - counts[0] if counts else None,
        )  # fmt: skip


@contextmanager
def watching(served: Served, metrics: ServerMetrics | None) -> Iterator[Watch]:
    """Look at an engine twice a second until the end of the block, once before it and once after."""
    watch, ended = Watch([look_at(served, metrics)]), threading.Event()

    def go_on() -> None:
        while not ended.wait(_EVERY):
            watch.looks.append(look_at(served, metrics))

    thread = threading.Thread(target=go_on, daemon=True)
    thread.start()
    try:
        yield watch
    finally:
        ended.set()
        thread.join()
        watch.looks.append(look_at(served, metrics))


def look_at(served: Served, metrics: ServerMetrics | None) -> Look:
    """Look once. What does not answer is None; a server that is busy is not waited for long."""
    held = None if served.session is None else session_bytes(served.session)
    cards = tuple(card.used_bytes for card in look().cards)
    if metrics is None:
        return Look(held, cards)
    told = values(scraped(served))

    def count(names: Sequence[str]) -> int | None:
        found = _first(told, names)
        return None if found is None else round(sum(found))

    shares = _first(told, metrics.cache_share)
    return Look(
        held, cards, None if shares is None else max(shares), count(metrics.running), count(metrics.waiting), count(metrics.preemptions)
    )  # fmt: skip


def _first(told: Mapping[str, Sequence[float]], names: Sequence[str]) -> Sequence[float] | None:
    """What is told under the first name that there is; one value for each of the server's engines."""
    return next((told[name] for name in names if name in told), None)


def scraped(served: Served) -> str:
    """Return what `/metrics` says; nothing where it does not answer."""
    connection = http.client.HTTPConnection(served.host, served.port, timeout=5)
    try:
        connection.request("GET", "/metrics")
        reply = connection.getresponse()
        return reply.read().decode(errors="replace") if reply.status == 200 else ""
    except (OSError, http.client.HTTPException):
        return ""
    finally:
        connection.close()


def values(text: str) -> dict[str, list[float]]:
    """Read Prometheus' text: the values of every name, whatever their labels."""
    found: dict[str, list[float]] = {}
    for line in text.splitlines():
        if not line.startswith("#") and " " in line:
            name, _, value = line.rpartition(" ")
            found.setdefault(name.partition("{")[0], []).append(float(value))
    return found


def session_bytes(session: int) -> int | None:
    """Return the bytes that the processes of a session hold together, pages that several share counted once (PSS); None without /proc."""
    held = [_process_bytes(path) for path in _PROCESSES.glob("[0-9]*") if _session_of(path) == session]
    return sum(held) or None


def _session_of(process: Path) -> int | None:
    """The session of a process (proc(5): the fourth field behind the name, which may hold spaces)."""
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[3])
    except (OSError, IndexError, ValueError):
        return None


def _process_bytes(process: Path) -> int:
    try:
        lines = (process / "smaps_rollup").read_text().splitlines()
    except OSError:  # it ended meanwhile
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)
