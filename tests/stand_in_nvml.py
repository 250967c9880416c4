"""A stand-in of the driver's library (libnvidia-ml), called as pynvml calls it: C functions with results by reference.

It answers with what real cards answer: figures as `nvidia-smi -q` prints them.
"""

from __future__ import annotations

from collections.abc import Callable
from ctypes import addressof
from dataclasses import dataclass, field
from typing import Any

import pynvml
import pytest

GIB, MIB = 1 << 30, 1 << 20


@dataclass
class Card:
    """What a card or a slice answers; None: not supported."""

    name: str
    total: int
    free: int
    uuid: str = "GPU-1"
    capability: tuple[int, int] = (8, 9)
    processes: tuple[tuple[int, int | None], ...] = ()
    drawing: tuple[tuple[int, int | None], ...] = ()
    ecc: int | None = None
    display: int = 0
    links: int | None = None
    pcie: tuple[int, int, int, int] = (4, 16, 4, 16)
    """Generation and lanes now, then at most."""
    slices: tuple[Card, ...] = ()
    own_memory: bool = True


@dataclass
class Library:
    """The library of a machine with cards. `fails`: what `nvmlInitWithFlags` returns in place of success."""

    cards: list[Card]
    driver: str = "570.172.08"
    cuda: int = 12080
    fails: int = pynvml.NVML_SUCCESS
    handles: dict[int, tuple[Any, Card]] = field(default_factory=dict)

    def __getattr__(self, name: str) -> Callable[..., int]:
        if name.startswith("nvml") and (answer := _ANSWERS.get(name)) is not None:
            return lambda *arguments: answer(self, *arguments)
        raise AttributeError(name)

    def point(self, reference: Any, card: Card) -> int:
        """Make a handle of a card."""
        target = pynvml.struct_c_nvmlDevice_t()
        self.handles[addressof(target)] = (target, card)
        reference._obj.contents = target
        return int(pynvml.NVML_SUCCESS)

    def card(self, handle: Any) -> Card:
        """The card of a handle."""
        return self.handles[addressof(handle.contents)][1]


def _set(*pairs: tuple[Any, int | None]) -> int:
    if any(value is None for _, value in pairs):
        return int(pynvml.NVML_ERROR_NOT_SUPPORTED)
    for reference, value in pairs:
        reference._obj.value = value
    return int(pynvml.NVML_SUCCESS)


def _write(buffer: Any, text: str) -> int:
    buffer.value = text.encode()
    return int(pynvml.NVML_SUCCESS)


def _memory(library: Library, handle: Any, reference: Any) -> int:
    card = library.card(handle)
    if not card.own_memory:
        return int(pynvml.NVML_ERROR_NOT_SUPPORTED)
    reference._obj.total, reference._obj.free, reference._obj.used = card.total, card.free, card.total - card.free
    return int(pynvml.NVML_SUCCESS)


def _processes(held: tuple[tuple[int, int | None], ...], count: Any, rows: Any) -> int:
    if not held:
        return _set((count, 0))
    if rows is None:
        _set((count, len(held)))
        return int(pynvml.NVML_ERROR_INSUFFICIENT_SIZE)
    for row, (pid, used) in zip(rows, held, strict=False):
        row.pid = pid
        row.usedGpuMemory = pynvml.NVML_VALUE_NOT_AVAILABLE_ulonglong.value if used is None else used
    return _set((count, len(held)))


def _slice(library: Library, handle: Any, index: Any, reference: Any) -> int:
    slices = library.card(handle).slices
    return (
        library.point(reference, slices[index.value]) if index.value < len(slices) else int(pynvml.NVML_ERROR_NOT_FOUND)
    )


def _link(library: Library, handle: Any, link: int, up: Any) -> int:
    links = library.card(handle).links
    return _set((up, None if links is None else int(link < links)))


_ANSWERS: dict[str, Callable[..., int]] = {
    "nvmlInitWithFlags": lambda lib, flags: int(lib.fails),
    "nvmlShutdown": lambda lib: int(pynvml.NVML_SUCCESS),
    "nvmlErrorString": lambda lib, code: b"an error",
    "nvmlSystemGetDriverVersion": lambda lib, buffer, size: _write(buffer, lib.driver),
    "nvmlSystemGetCudaDriverVersion": lambda lib, ref: _set((ref, lib.cuda)),
    "nvmlDeviceGetCount_v2": lambda lib, ref: _set((ref, len(lib.cards))),
    "nvmlDeviceGetHandleByIndex_v2": lambda lib, index, ref: lib.point(ref, lib.cards[index.value]),
    "nvmlDeviceGetName": lambda lib, h, buffer, size: _write(buffer, lib.card(h).name),
    "nvmlDeviceGetUUID": lambda lib, h, buffer, size: _write(buffer, lib.card(h).uuid),
    "nvmlDeviceGetMemoryInfo": _memory,
    "nvmlDeviceGetCudaComputeCapability": lambda lib, h, a, b: _set(*zip((a, b), lib.card(h).capability, strict=True)),
    "nvmlDeviceGetEccMode": lambda lib, h, a, b: _set((a, lib.card(h).ecc), (b, lib.card(h).ecc)),
    "nvmlDeviceGetDisplayActive": lambda lib, h, ref: _set((ref, lib.card(h).display)),
    "nvmlDeviceGetMigMode": lambda lib, h, a, b: _set((a, int(bool(lib.card(h).slices))), (b, 0)),
    "nvmlDeviceGetMaxMigDeviceCount": lambda lib, h, ref: _set((ref, 7)),
    "nvmlDeviceGetMigDeviceHandleByIndex": _slice,
    "nvmlDeviceGetNvLinkState": _link,
    "nvmlDeviceGetCurrPcieLinkGeneration": lambda lib, h, ref: _set((ref, lib.card(h).pcie[0])),
    "nvmlDeviceGetCurrPcieLinkWidth": lambda lib, h, ref: _set((ref, lib.card(h).pcie[1])),
    "nvmlDeviceGetMaxPcieLinkGeneration": lambda lib, h, ref: _set((ref, lib.card(h).pcie[2])),
    "nvmlDeviceGetMaxPcieLinkWidth": lambda lib, h, ref: _set((ref, lib.card(h).pcie[3])),
    "nvmlDeviceGetComputeRunningProcesses_v3": lambda lib, h, count, rows: _processes(lib.card(h).processes, count, rows),
    "nvmlDeviceGetGraphicsRunningProcesses_v3": lambda lib, h, count, rows: _processes(lib.card(h).drawing, count, rows),
}  # fmt: skip


def install(monkeypatch: pytest.MonkeyPatch, library: Library) -> None:
    """Put the library where pynvml has loaded the driver's."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(pynvml, "nvmlLib", library)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})
