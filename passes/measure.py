"""Seconds and peak memory of a step."""

from __future__ import annotations

import resource
import time
from pathlib import Path


class Meter:
    """Measures from its creation on. On Linux the peak is this step's own: the kernel's high-water mark is reset."""

    def __init__(self) -> None:
        self._began = time.monotonic()
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
        """Peak resident memory since the start of the step (of the process, where the mark cannot be reset)."""
        if self._resets:
            for line in Path("/proc/self/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
