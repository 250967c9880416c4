"""The live machine: its processor and memory, its cards through NVML. Everything here looks; nothing changes anything."""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path


def cpu_model() -> str:
    """The processor's name as the kernel prints it."""
    try:
        match = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    except OSError:
        match = None
    return match[1].strip() if match else "unknown processor"


def cpu_instructions() -> frozenset[str]:
    """The instruction sets that engines ask for and this processor has, by the kernel's names; empty where it says nothing."""
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return frozenset()
    return frozenset({"avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile", "bf16"}.intersection(flags))


def cores() -> int:
    """Processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


#: NVML's library; it comes with the driver, so that no binding has to be installed.
_NVML = "libnvidia-ml.so.1"
_NAME_BYTES = 96


def installed_gpus() -> tuple[str, ...]:
    """The names NVML prints for this machine's cards; empty where there is no driver."""
    try:
        nvml = ctypes.CDLL(_NVML)
    except OSError:
        return ()
    if nvml.nvmlInit_v2() != 0:
        return ()
    count = ctypes.c_uint(0)
    if nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
        return ()
    names = (_card_name(nvml, number) for number in range(count.value))
    return tuple(name for name in names if name)


def _card_name(nvml: ctypes.CDLL, number: int) -> str:
    """The name of a card; empty where NVML does not say."""
    handle, name = ctypes.c_void_p(), ctypes.create_string_buffer(_NAME_BYTES)
    if nvml.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(number), ctypes.byref(handle)) != 0:
        return ""
    if nvml.nvmlDeviceGetName(handle, name, ctypes.c_uint(_NAME_BYTES)) != 0:
        return ""
    return name.value.decode(errors="replace")
