"""Seconds and memory of a stage's work."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

GIB = 1 << 30


def synchronize() -> None:
    """Wait for the card, where there is one."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peaks() -> dict[str, float | None]:
    """Peak GiB of this process so far: allocated on the card (None without one), resident on the host."""
    import torch

    card = torch.cuda.max_memory_allocated() / GIB if torch.cuda.is_available() else None
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB
    return {"card_peak_gib": None if card is None else round(card, 2), "host_peak_gib": round(host, 2)}


def seconds_each(call: Callable[[], Any], at_least_s: float = 0.3) -> float:
    """Seconds of one call in a row of so many that they take about `at_least_s`, after as long a row that does not count."""
    _row(call, 1)
    calls = max(3, int(at_least_s / max(_row(call, 3), 1e-7)))
    _row(call, calls)
    return _row(call, calls)


def _row(call: Callable[[], Any], count: int) -> float:
    """Mean seconds of a call in a row of `count`."""
    synchronize()
    began = time.perf_counter()
    for _ in range(count):
        call()
    synchronize()
    return (time.perf_counter() - began) / count


def lapses(stamps: Sequence[float]) -> list[float]:
    """The seconds between moments."""
    return [after - before for before, after in pairwise(stamps)]


def by_block(seconds: Sequence[float]) -> dict[str, Any]:
    """Seconds of blocks: all, the first, and the median of the others."""
    return {
        "seconds": [round(each, 3) for each in seconds],
        "first_s": round(seconds[0], 3),
        "block_s": round(statistics.median(seconds[1:] or seconds), 3),
    }
