"""Runs stages side by side, each in a process of its own with one thread: two such get more done on two cores than one with two threads."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence

#: Seconds between two looks at what has ended.
_LOOKED_EVERY = 0.5


def side_by_side(
    needs: Mapping[str, Sequence[str]], command: Callable[[str], Sequence[str]], at_once: int
) -> dict[str, int]:
    """Return the exit code of each stage, begun in the order of `needs`, when those that it goes on from have ended, `at_once` at a time.

    `command`: the words that carry one out. A stage whose need ended with more than a missed goal (1) is not begun.
    """
    ended: dict[str, int] = {}
    running: dict[str, subprocess.Popen[bytes]] = {}
    waiting = list(needs)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    try:
        while running or waiting:
            for stage in [each for each, process in running.items() if process.poll() is not None]:
                ended[stage] = running.pop(stage).returncode
            for stage in list(waiting):
                if any(ended.get(need, 0) > 1 for need in needs[stage]):
                    waiting.remove(stage)
                    ended[stage] = 2
            ready = [stage for stage in waiting if all(need in ended for need in needs[stage])]
            for stage in ready[: at_once - len(running)]:
                waiting.remove(stage)
                running[stage] = subprocess.Popen(command(stage), env=environment)
            time.sleep(_LOOKED_EVERY)
    finally:
        for process in running.values():
            process.terminate()
    return ended
