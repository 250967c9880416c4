"""The live machine: its processor and memory, its cards by their names. Everything here looks; nothing changes anything."""

from __future__ import annotations

import os
import re
from pathlib import Path

from passes.host_memory import card_names


def cpu_model() -> str:
    """Return the processor's name as the kernel prints it."""
    try:
        match = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        match = None
    return match[1].strip() if match else "unknown processor"


def cpu_instructions() -> frozenset[str]:
    """Return the instruction sets that engines ask for and this processor has, by the kernel's names; empty where it says nothing."""
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return frozenset()
    return frozenset({"avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile", "bf16"}.intersection(flags))


def cores() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def installed_gpus() -> tuple[str, ...]:
    """Return the names that NVML prints for this machine's cards, or its driver's files without NVML; empty where neither says any."""
    return card_names()
