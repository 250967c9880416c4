"""What the walk computes on, and in: every CUDA device that the process sees (`CUDA_VISIBLE_DEVICES` says which), or the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from passes.errors import InputError
from passes.host_memory import memory_total_bytes

if TYPE_CHECKING:
    import torch

#: torch's words for a processor that multiplies bfloat16 itself. Without either, torch 2.13 multiplies it at a sixth of fp32's rate
#: (2 AVX2 cores: 5 and 31 Gflop/s).
_BF16_PROCESSORS = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")


def compute_devices() -> tuple[torch.device, ...]:
    """Return the devices, the first one first: it also does what is not shared out. Cards are made ready for every question to them.

    Raises InputError where the driver shows cards on which nothing can be computed.
    """
    import torch

    count = torch.cuda.device_count()
    if not count:
        return (torch.device("cpu"),)
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, torch.cuda.DeferredCudaCallError) as error:
        said = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise InputError(
            f"torch sees {count} card{'s' * (count > 1)}, but cannot compute there: {said}",
            remedy="install a driver that this torch works with (nvidia-smi and torch.version.cuda name both); CUDA_VISIBLE_DEVICES= "
            "computes on the processor",
        ) from error
    return tuple(torch.device("cuda", index) for index in range(count))


def compute_dtype(stored: str, asked: str = "auto") -> torch.dtype:
    """Return the dtype to compute in for a model stored in `stored` (safetensors' name): its own, or fp32 where the processor lacks it.

    `asked`: another, by torch's name. Raises InputError for a name that is none of them.
    """
    import torch

    names = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16}
    if asked != "auto":
        if asked not in names:
            raise InputError(f"unknown compute dtype {asked!r}", remedy=f"one of auto, {', '.join(names)}")
        return names[asked]
    cards = torch.cuda.is_available()
    bf16 = cards or any(getattr(torch.cpu, name, bool)() for name in _BF16_PROCESSORS)
    own = {"BF16": torch.bfloat16 if bf16 else torch.float32, "F16": torch.float16 if cards else torch.float32}
    return own.get(stored, torch.float32)


def memory_bytes(device: torch.device) -> int:
    """Return the bytes of memory that a device has, used or not."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return memory_total_bytes()
