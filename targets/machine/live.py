"""This machine as its drivers tell it now: cards with what is free of them and who holds the rest, links, driver, memory of the host.

NVIDIA's cards through NVML (`nvidia-ml-py`), AMD's through `amdsmi` where it is installed. Nothing here changes anything. What a driver
does not say is None; where none answers at all, `silent` says why in one sentence.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from passes.host_memory import Holder, memory_available_bytes, memory_total_bytes, process_name
from passes.record import dataclass
from targets.machine.devices import cores, cpu_model

#: The most NVLinks that a card has (`NVML_NVLINK_MAX_LINKS`).
_LINKS = 18
#: Where a Linux kernel says that it is Windows' (WSL).
_KERNEL = Path("/proc/sys/kernel/osrelease")


@dataclass(frozen=True, slots=True)
class LiveCard:
    """A card, or a slice of one (MIG). `pcie`: generation and lanes now, `pcie_most` those that it can have. `links`: NVLinks that are up.
    `display`: whether a screen is driven by it.
    """

    index: int
    name: str
    uuid: str
    total_bytes: int
    free_bytes: int
    holders: tuple[Holder, ...] = ()
    capability: str | None = None
    ecc: bool | None = None
    display: bool | None = None
    is_slice: bool = False
    links: int | None = None
    pcie: str | None = None
    pcie_most: str | None = None

    @property
    def used_bytes(self) -> int:
        """Bytes that are not free."""
        return max(0, self.total_bytes - self.free_bytes)


@dataclass(frozen=True, slots=True)
class LiveMachine:
    """What is here. `cards`: those that CUDA_VISIBLE_DEVICES leaves, in its order; `hidden`: how many more there are. `silent`: why no
    card can be asked. `cuda`: the newest CUDA that the driver runs.
    """

    cards: tuple[LiveCard, ...]
    cpu: str
    cores: int
    memory_bytes: int
    memory_free_bytes: int
    driver: str | None = None
    cuda: str | None = None
    maker: str | None = None
    wsl: bool = False
    hidden: int = 0
    silent: str | None = None


def look() -> LiveMachine:
    """Return this machine as it is now."""
    here = LiveMachine(
        (), cpu_model(), cores(), memory_total_bytes(), memory_available_bytes(), wsl=_is_wsl(), maker=None
    )
    found = _nvidia(here)
    if not found.cards and (amd := _amd(here)) is not None:
        found = amd
    shown = visible(found.cards, os.environ.get("CUDA_VISIBLE_DEVICES"))
    return replace(found, cards=shown, hidden=len(found.cards) - len(shown))


def visible(cards: Sequence[LiveCard], listed: str | None) -> tuple[LiveCard, ...]:
    """Return the cards that CUDA_VISIBLE_DEVICES leaves, in its order: by number, or by the beginning of a UUID; as CUDA does, up to the
    first that is not there.
    """
    if listed is None:
        return tuple(cards)
    shown = []
    for part in (part.strip() for part in listed.split(",")):
        card = next(
            (c for n, c in enumerate(cards) if (part.isdigit() and int(part) == n) or (part and c.uuid.startswith(part))), None
        )  # fmt: skip
        if card is None:
            break
        shown.append(card)
    return tuple(shown)


def _is_wsl() -> bool:
    try:
        return "microsoft" in _KERNEL.read_text().lower()
    except OSError:
        return False


#: What NVML's errors mean for who asks, and what to do.
_SILENT = {
    "LibraryNotFound": "no NVIDIA driver is installed: libnvidia-ml.so.1 is not found; in a container, start it with --gpus all",
    "DriverNotLoaded": "the NVIDIA driver is not loaded: reboot, or load it (modprobe nvidia)",
    "LibRmVersionMismatch": "the NVIDIA driver's library and kernel module are of two versions, as after an update: reboot",
    "NoPermission": "the NVIDIA driver may not be asked by this user: check the permissions of /dev/nvidia*",
    "GpuIsLost": "a card fell off the bus: reboot, and look at dmesg",
}


def _nvidia(here: LiveMachine) -> LiveMachine:
    """With NVIDIA's cards. Errors of NVML are said, never raised."""
    try:
        import pynvml
    except ImportError as error:
        return replace(here, silent=f"NVML cannot be asked: {error}")
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return replace(here, silent=_silence(error))
    try:
        cards = tuple(replace(card, index=n) for n, card in enumerate(_nvidia_cards(pynvml)))
        cuda = _told(pynvml, "nvmlSystemGetCudaDriverVersion")
        return replace(
            here,
            cards=cards,
            maker="NVIDIA",
            driver=_text(_told(pynvml, "nvmlSystemGetDriverVersion")),
            cuda=None if cuda is None else f"{cuda // 1000}.{cuda % 1000 // 10}",
        )
    except pynvml.NVMLError as error:
        return replace(here, silent=_silence(error))
    finally:
        _told(pynvml, "nvmlShutdown")


def _silence(error: Exception) -> str:
    kind = type(error).__name__.removeprefix("NVMLError_")
    return _SILENT.get(
        kind, f"the NVIDIA driver answers with an error ({error}): run nvidia-smi, and reboot where it fails too"
    )


def _told(nvml: Any, function: str, *arguments: Any) -> Any:
    """What NVML answers; None where it does not, or this version of it has no such question."""
    ask: Callable[..., Any] | None = vars(nvml).get(function)
    if ask is None:
        return None
    try:
        return ask(*arguments)
    except nvml.NVMLError:
        return None


def _text(value: Any) -> str | None:
    return value.decode() if isinstance(value, bytes) else value


def _nvidia_cards(nvml: Any) -> Iterator[LiveCard]:
    """Every card; of one that is cut into slices, these."""
    for index in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        mode = _told(nvml, "nvmlDeviceGetMigMode", handle)
        if mode is None or mode[0] != 1:
            yield _nvidia_card(nvml, handle, handle)
            continue
        for number in range(_told(nvml, "nvmlDeviceGetMaxMigDeviceCount", handle) or 0):
            part = _told(nvml, "nvmlDeviceGetMigDeviceHandleByIndex", handle, number)
            if part is not None:
                yield replace(_nvidia_card(nvml, part, handle), is_slice=True)


def _nvidia_card(nvml: Any, handle: Any, whole: Any) -> LiveCard:
    """A card or slice. `whole`: the card that a slice is of, which alone knows of links."""
    memory = _told(nvml, "nvmlDeviceGetMemoryInfo", handle)
    # Cards in the machine's own memory (GB10, Jetson) have none of their own to tell.
    total, free = (
        (memory.total, memory.free) if memory is not None else (memory_total_bytes(), memory_available_bytes())
    )
    capability = _told(nvml, "nvmlDeviceGetCudaComputeCapability", whole)
    ecc = _told(nvml, "nvmlDeviceGetEccMode", whole)
    display = _told(nvml, "nvmlDeviceGetDisplayActive", whole)
    links = [_told(nvml, "nvmlDeviceGetNvLinkState", whole, link) for link in range(_LINKS)]
    up = None if all(state is None for state in links) else sum(state == 1 for state in links)
    return LiveCard(
        index=0,
        name=_text(_told(nvml, "nvmlDeviceGetName", handle)) or "a card without a name",
        uuid=_text(_told(nvml, "nvmlDeviceGetUUID", handle)) or "",
        total_bytes=int(total),
        free_bytes=int(free),
        holders=_holders(nvml, handle),
        capability=None if capability is None else f"{capability[0]}.{capability[1]}",
        ecc=None if ecc is None else ecc[0] == 1,
        display=None if display is None else display == 1,
        links=up,
        pcie=_pcie(
            _told(nvml, "nvmlDeviceGetCurrPcieLinkGeneration", whole),
            _told(nvml, "nvmlDeviceGetCurrPcieLinkWidth", whole),
        ),
        pcie_most=_pcie(
            _told(nvml, "nvmlDeviceGetMaxPcieLinkGeneration", whole),
            _told(nvml, "nvmlDeviceGetMaxPcieLinkWidth", whole),
        ),
    )


def _pcie(generation: int | None, lanes: int | None) -> str | None:
    return f"PCIe {generation}.0 x{lanes}" if generation and lanes else None


def _holders(nvml: Any, handle: Any) -> tuple[Holder, ...]:
    """The other processes that hold memory, most first; each once, though it may compute and draw."""
    found: dict[int, int | None] = {}
    for question in ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetGraphicsRunningProcesses"):
        for process in _told(nvml, question, handle) or ():
            if process.pid != os.getpid():
                found.setdefault(process.pid, process.usedGpuMemory)
    holders = (Holder(pid, process_name(pid), used) for pid, used in found.items())
    return tuple(sorted(holders, key=lambda holder: -(holder.used_bytes or 0)))


def _amd(here: LiveMachine) -> LiveMachine | None:
    """With AMD's cards, by amdsmi; None where it is not installed or finds none."""
    try:
        import amdsmi  # type: ignore[import-not-found]
    except (ImportError, OSError, KeyError):  # its import loads the driver's library
        return None
    try:
        amdsmi.amdsmi_init()
        cards = tuple(
            _amd_card(amdsmi, number, handle) for number, handle in enumerate(amdsmi.amdsmi_get_processor_handles())
        )
    except amdsmi.AmdSmiException as error:
        return replace(here, silent=f"amdsmi answers with an error ({error}): run amd-smi list")
    return replace(here, cards=cards, maker="AMD") if cards else None


def _amd_card(amdsmi: Any, number: int, handle: Any) -> LiveCard:
    board = amdsmi.amdsmi_get_gpu_asic_info(handle)
    kind = amdsmi.AmdSmiMemoryType.VRAM
    total, used = amdsmi.amdsmi_get_gpu_memory_total(handle, kind), amdsmi.amdsmi_get_gpu_memory_usage(handle, kind)
    holders = []
    for process in amdsmi.amdsmi_get_gpu_process_list(handle):
        info = process if isinstance(process, dict) else {}
        held = info.get("mem") or info.get("memory_usage", {}).get("vram_mem")
        if "pid" in info and info["pid"] != os.getpid():
            holders.append(Holder(int(info["pid"]), str(info.get("name") or process_name(int(info["pid"]))), held))
    name = re.sub(r"\s+", " ", str(board.get("market_name") or "AMD card"))
    uuid = str(amdsmi.amdsmi_get_gpu_device_uuid(handle))
    return LiveCard(number, name, uuid, int(total), int(total - used), tuple(holders))
