"""Says how much memory this machine has."""

from __future__ import annotations

import os
from pathlib import Path


def memory_total_bytes() -> int:
    """This machine's memory, or its cgroup's limit where that is lower."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(limit).read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            total = min(total, int(text))
    return total


def memory_available_bytes() -> int:
    """This machine's memory that is free or can be freed at once."""
    import psutil

    return min(int(psutil.virtual_memory().available), memory_total_bytes())
