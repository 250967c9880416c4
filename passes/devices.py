"""What the walk computes on: every CUDA device that the process sees (`CUDA_VISIBLE_DEVICES` says which), or the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def compute_devices() -> tuple[torch.device, ...]:
    """The devices, the first one first: it also does what is not shared out."""
    import torch

    cards = tuple(torch.device("cuda", index) for index in range(torch.cuda.device_count()))
    return cards or (torch.device("cpu"),)
