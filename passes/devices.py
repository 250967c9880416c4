"""What the walk computes on: every CUDA device that the process sees (`CUDA_VISIBLE_DEVICES` says which), or the CPU."""

from __future__ import annotations

import resource
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def compute_devices() -> tuple[torch.device, ...]:
    """The devices, the first one first: it also does what is not shared out."""
    import torch

    cards = tuple(torch.device("cuda", index) for index in range(torch.cuda.device_count()))
    return cards or (torch.device("cpu"),)


def peak_bytes(devices: Sequence[torch.device]) -> int:
    """Peak memory so far: allocated on the CUDA device that has most, or resident on a CPU."""
    import torch

    if devices[0].type == "cuda":
        return max(int(torch.cuda.max_memory_allocated(device)) for device in devices)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
