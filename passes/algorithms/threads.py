"""Many small operations side by side: one thread each, instead of all threads on each.

An operation on some ten thousand numbers is over sooner than two threads have met for it: seen on 2 cores with threads that
sleep when idle, the search of EXL2's scales took nine times as long on two threads as on one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TypeVar

_In = TypeVar("_In")
_Out = TypeVar("_Out")


def side_by_side(work: Callable[[_In], _Out], items: Sequence[_In]) -> list[_Out]:
    """Do `work` of every item, in order; each runs on one thread, as many at once as torch has threads."""
    return list(_pool().map(work, items))


@cache
def _pool() -> ThreadPoolExecutor:
    """Workers whose operations stay on their own thread. torch keeps the number by thread, but threads that start later take
    the last one set: so all workers start here, and the number is put back after.
    """
    import torch

    count = torch.get_num_threads()
    met = threading.Barrier(count)

    def start(_: int) -> None:
        torch.set_num_threads(1)
        met.wait()

    pool = ThreadPoolExecutor(count, thread_name_prefix="tightfit")
    list(pool.map(start, range(count)))
    torch.set_num_threads(count)
    return pool
