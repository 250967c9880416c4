"""Says how much memory this machine has, which cards its driver lists, and who holds a card's memory. Everything here looks only."""

from __future__ import annotations

import os
import re
from pathlib import Path

from passes.record import dataclass

#: Where NVIDIA's driver lists its cards beside NVML, and where it puts a node for each.
_DRIVER_CARDS, _NODES = Path("/proc/driver/nvidia/gpus"), Path("/dev")


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that holds memory of a card; `used_bytes`: None where the driver does not say how much."""

    pid: int
    name: str
    used_bytes: int | None

    def __str__(self) -> str:
        said = "" if self.used_bytes is None else f" holds {self.used_bytes / 2**30:.1f} GiB"
        return f"{self.name} (process {self.pid}){said}"


def memory_total_bytes() -> int:
    """Return the bytes of this machine's memory, or of its cgroup's limit where that is lower."""
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
    """Return the bytes of this machine's memory that are free or can be freed at once."""
    import psutil

    return min(int(psutil.virtual_memory().available), memory_total_bytes())


def card_names() -> tuple[str, ...]:
    """Return the names of this machine's cards as NVML prints them; without NVML, as the driver's own files have them."""
    import pynvml

    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return tuple(pynvml.nvmlDeviceGetName(handle) for handle in handles)
    except pynvml.NVMLError:
        return _names_by_driver()


@dataclass(frozen=True, slots=True)
class CardMemory:
    """A card by the name that NVML prints, with its bytes."""

    name: str
    free_bytes: int
    total_bytes: int


def cards_memory() -> tuple[CardMemory, ...]:
    """Return what each of this machine's cards has free, by NVML; empty where it cannot be asked."""
    import pynvml

    try:
        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        held = [(pynvml.nvmlDeviceGetName(handle), pynvml.nvmlDeviceGetMemoryInfo(handle)) for handle in handles]
    except pynvml.NVMLError:
        return ()
    return tuple(CardMemory(name, int(memory.free), int(memory.total)) for name, memory in held)


def card_nodes() -> int:
    """Return how many cards have a node in /dev: they are there, whatever else can be asked about them."""
    return sum(re.fullmatch(r"nvidia\d+", path.name) is not None for path in _NODES.glob("nvidia*"))


def card_holders(uuid: str) -> tuple[Holder, ...] | None:
    """Return the other processes that hold memory of a card, most first; None where NVML cannot be asked.

    `uuid`: the card's, as torch has it. In a container the driver may list none though there are some.
    """
    import pynvml

    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(uuid if uuid.startswith(("GPU-", "MIG-")) else f"GPU-{uuid}")
        found = pynvml.nvmlDeviceGetComputeRunningProcesses(handle)
    except pynvml.NVMLError:
        return None
    holders = (
        Holder(each.pid, process_name(each.pid), each.usedGpuMemory) for each in found if each.pid != os.getpid()
    )
    return tuple(sorted(holders, key=lambda holder: -(holder.used_bytes or 0)))


def _names_by_driver() -> tuple[str, ...]:
    names = []
    for path in sorted(_DRIVER_CARDS.glob("*/information")):
        try:
            model = re.search(r"^Model:\s*(.+)$", path.read_text(), re.MULTILINE)
        except OSError:
            continue
        names += [model[1].strip()] if model else []
    return tuple(names)


def process_name(pid: int) -> str:
    """Return the name of a process; in a container those outside cannot be seen."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "a program"
