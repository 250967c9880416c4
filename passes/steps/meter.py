"""Seconds and peak memory of a step."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
import time
from contextlib import suppress
from pathlib import Path


class Meter:
    """Measures from its creation on, and never fails. The peak is this step's own: what earlier ones freed is given back to the system,
    and the high-water marks are reset (the process's on Linux only; a card's where it is at work, else it begins at zero).
    """

    def __init__(self) -> None:
        gc.collect()
        give_back_freed()
        self._children = _largest_child()
        self._began = time.monotonic()
        with suppress(RuntimeError):  # a card that failed in an earlier step
            for card in cards_at_work():
                sys.modules["torch"].cuda.reset_peak_memory_stats(card)
        try:
            # proc(5): writing 5 resets the peak resident set size (VmHWM).
            Path("/proc/self/clear_refs").write_text("5")
            self._resets = True
        except OSError:
            self._resets = False

    @property
    def seconds(self) -> float:
        """Wall-clock seconds so far."""
        return round(time.monotonic() - self._began, 3)

    @property
    def peak_bytes(self) -> int:
        """Peak memory since the start of the step: allocated on the card at work that has most, else resident in the process, or in a
        larger child that ended meanwhile (an outside tool).
        """
        with suppress(RuntimeError):  # a card that failed in this step
            if cards := cards_at_work():
                return max(int(sys.modules["torch"].cuda.max_memory_allocated(card)) for card in cards)
        children = _largest_child()
        return max(self._own_peak, children if children > self._children else 0)

    @property
    def _own_peak(self) -> int:
        """Peak resident bytes of the process."""
        if self._resets:
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _largest_child() -> int:
    """Peak resident bytes of the largest child process that has ended."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024


def give_back_freed() -> None:
    """Give what was freed back to the system, which glibc else keeps for the process, in pieces that may be of no use to it."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def cards_at_work() -> range:
    """Return the indices of the cards that this process computes on, whose counters can be asked: none where torch is not loaded, none
    before CUDA was initialised (`compute_devices` does it). To ask costs nothing and starts nothing.
    """
    torch = sys.modules.get("torch")
    return range(torch.cuda.device_count()) if torch is not None and torch.cuda.is_initialized() else range(0)
