"""What works on weights computes on, and in: the cards that torch sees (`CUDA_VISIBLE_DEVICES` says which), or the processor.

Whatever a card needs before it can be asked anything happens in `compute_devices`, and nowhere else: the driver is started, the card has
room for the work to begin, and torch's current card is the first one. Who computes gets its devices from there.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, NoReturn

from passes.errors import DoesNotFitError, InputError, unknown_name
from passes.host_memory import card_holders, card_names, card_nodes, memory_total_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

#: What a device is asked for by: every card, else the processor; the processor; every card; and `cuda:1`, the second card.
AUTO, PROCESSOR, CARDS = "auto", "cpu", "cuda"
#: What people call a card elsewhere.
_OTHER_NAMES = {"gpu": CARDS, "card": CARDS, "nvidia": CARDS, "processor": PROCESSOR}
#: A card with less memory free than this cannot even begin: torch's context and cuBLAS take half of it.
LEAST_FREE_BYTES = 1 << 30
#: torch's words for a processor that multiplies bfloat16 itself. Without either, torch 2.13 multiplies it at a sixth of fp32's rate
#: (2 AVX2 cores: 5 and 31 Gflop/s).
_BF16_PROCESSORS = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")


def compute_devices(asked: str = AUTO) -> tuple[torch.device, ...]:
    """Return the devices of a name (`auto`, `cpu`, `cuda`, `cuda:1`), the first one first: it also does what is not shared out.

    Cards are made ready for every question to them. Raises InputError for a name that is none, for a card that is not there, and where
    the driver shows cards on which nothing can be computed; DoesNotFitError for a card whose memory others hold.
    """
    import torch

    name = device_name(asked)
    count = 0 if name == PROCESSOR else torch.cuda.device_count()
    if not count:
        if name in (AUTO, PROCESSOR):
            return (torch.device("cpu"),)
        _refuse_without_cards(name)
    _start_driver(count)
    devices = tuple(torch.device("cuda", index) for index in _card_numbers(name, count))
    for device in devices:
        _require_free(device, LEAST_FREE_BYTES, "to begin")
    torch.cuda.set_device(devices[0])
    return devices


def device_name(asked: str) -> str:
    """Return a device's name as it is used here. Raises InputError with the nearest valid one where there is none of that name."""
    name = asked.strip().lower()
    if name in (AUTO, PROCESSOR, CARDS) or re.fullmatch(r"cuda:\d+", name):
        return name
    remedy = "auto (every card, else the processor), cpu, cuda (every card), or one card: cuda:0, cuda:1, …"
    for other, meant in _OTHER_NAMES.items():
        if other in name:
            raise InputError(f"unknown device {asked!r}. Did you mean {meant!r}?", remedy=remedy)
    raise unknown_name("device", asked, (CARDS, "cuda:0", "cuda:1", PROCESSOR, AUTO), remedy=remedy)


def hidden_cards(asked: str = AUTO) -> bool:
    """Return whether nothing but the processor is to compute: it was asked for, or CUDA_VISIBLE_DEVICES hides every card."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    return device_name(asked) == PROCESSOR or (hidden is not None and hidden.strip() in ("", "-1"))


def listed_cards() -> list[str]:
    """Return what CUDA_VISIBLE_DEVICES lists, in its order; nothing where it is not set."""
    return [part.strip() for part in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if part.strip()]


def visible_cards(asked: str) -> str | None:
    """Return CUDA_VISIBLE_DEVICES of a process that is to compute where this one was asked to; None where as it is here."""
    name = device_name(asked)
    if name == PROCESSOR:
        return ""
    return None if ":" not in name else _as_listed(int(name.partition(":")[2]))


def only_cards(devices: Sequence[torch.device]) -> str | None:
    """Return CUDA_VISIBLE_DEVICES of a process that is to see these cards alone; None where they are no cards."""
    numbers = [device.index for device in devices if device.type == "cuda"]
    return ",".join(_as_listed(number or 0) for number in numbers) if numbers else None


def _as_listed(number: int) -> str:
    """A card's name in CUDA_VISIBLE_DEVICES, by its number among those that this process sees."""
    here = listed_cards()
    return here[number] if number < len(here) else str(number)


def built_for_cards() -> bool:
    """Return whether the installed torch may compute on cards, by its version; it is not loaded for that."""
    from importlib.metadata import PackageNotFoundError, version  # twenty milliseconds, for where a card is

    try:
        return not version("torch").endswith("+cpu")
    except PackageNotFoundError:
        return False


def unused_cards(asked: str = AUTO) -> str | None:
    """Return why the processor is going to compute on a machine that has cards, and how to get these used.

    None where they are used, where there are none, and where they are not wanted. torch is loaded only where there are cards.
    """
    if device_name(asked) != AUTO or hidden_cards() or not (card_names() or card_nodes()):
        return None
    import torch

    if torch.cuda.device_count():
        return None
    why, remedy = _why_no_cards()
    return f"the processor computes: {why}. To use the card, {remedy}"


def require_memory(device: torch.device, needed_bytes: float, remedy: str) -> None:
    """Refuse work that takes more of a card's memory than is free: DoesNotFitError with who holds the rest, where the driver says so.

    A processor refuses nothing here.
    """
    if device.type == "cuda":
        _require_free(device, needed_bytes, "for the work", remedy)


def compute_dtype(stored: str, asked: str = "auto", device: torch.device | None = None) -> torch.dtype:
    """Return the dtype to compute in for a model stored in `stored` (safetensors' name): its own, or fp32 where the processor lacks it.

    `asked`: another, by torch's name. `device`: what computes; by default a card where torch sees one. Raises InputError for a name that
    is none of them.
    """
    import torch

    names = {"bfloat16": torch.bfloat16, "float32": torch.float32, "float16": torch.float16}
    if asked != "auto":
        if asked not in names:
            raise InputError(f"unknown compute dtype {asked!r}", remedy=f"one of auto, {', '.join(names)}")
        return names[asked]
    card = torch.cuda.is_available() if device is None else device.type == "cuda"
    bf16 = card or any(getattr(torch.cpu, name, bool)() for name in _BF16_PROCESSORS)
    own = {"BF16": torch.bfloat16 if bf16 else torch.float32, "F16": torch.float16 if card else torch.float32}
    return own.get(stored, torch.float32)


def memory_bytes(device: torch.device) -> int:
    """Return the bytes of memory that a device has, used or not."""
    import torch

    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return memory_total_bytes()


def free_bytes(device: torch.device) -> int:
    """Return the bytes of a card's memory that this process may take: what is free, and what torch keeps of it for later; 0 where
    there is not even room to ask.
    """
    import torch

    try:
        free, _ = torch.cuda.mem_get_info(device)
    except (RuntimeError, torch.OutOfMemoryError) as error:
        if "out of memory" in str(error).lower():
            return 0
        _refuse_driver(torch.cuda.device_count(), error)
    return int(free) + int(torch.cuda.memory_reserved(device)) - int(torch.cuda.memory_allocated(device))


def pinned_copy(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy in memory that cards read and write directly; of a card's tensor it is begun, and whole when the card's queue has come
    to it.
    """
    import torch

    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)


def _card_numbers(name: str, count: int) -> Sequence[int]:
    """The cards of a name, of so many that torch sees."""
    if ":" not in name:
        return range(count)
    number = int(name.partition(":")[2])
    if number >= count:
        there = [f"cuda:{index}" for index in range(count)]
        raise InputError(
            f"there is no {name}: torch sees {count} card{'s' * (count > 1)}",
            remedy=f"the nearest is {there[-1]}; there are {', '.join(there)}, cuda (every card) and cpu",
        )
    return (number,)


def _start_driver(count: int) -> None:
    """Have CUDA ready: a card's counters answer only after that."""
    import torch

    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, torch.cuda.DeferredCudaCallError) as error:
        _refuse_driver(count, error)


def _refuse_driver(count: int, error: Exception) -> NoReturn:
    raise InputError(
        f"torch sees {count} card{'s' * (count > 1)}, but cannot compute there: {_first_line(error)}",
        remedy="install a driver that this torch works with (nvidia-smi and torch.version.cuda name both); --device cpu computes on the "
        "processor, and so does CUDA_VISIBLE_DEVICES=",
    ) from error


def _refuse_without_cards(name: str) -> NoReturn:
    why, remedy = _why_no_cards()
    raise InputError(f"--device {name}: {why}", remedy=f"{remedy}; or --device cpu")


def _why_no_cards() -> tuple[str, str]:
    """Why torch sees no card, and what would mend it."""
    import torch

    there = ", ".join(dict.fromkeys(card_names())) or ("an NVIDIA card" if card_nodes() else "")
    if hidden_cards():
        return "CUDA_VISIBLE_DEVICES hides every card", "unset CUDA_VISIBLE_DEVICES"
    if not (torch.version.cuda or torch.version.hip):
        why = f"torch {torch.__version__} is built without CUDA"
        return (
            f"this machine has {there}, but {why}" if there else f"{why}, and no card is seen here",
            "install a torch with CUDA (https://pytorch.org/get-started/locally names it)",
        )
    if not there:
        return "torch sees no card, and the driver lists none", "compute where there is a card"
    said = "no reason given"
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError, torch.cuda.DeferredCudaCallError) as error:
        said = _first_line(error)
    return (
        f"this machine has {there}, but torch {torch.__version__} cannot use it: {said}",
        f"install a driver for CUDA {torch.version.cuda} (nvidia-smi names the one that is there), or a torch for this driver",
    )


def _require_free(device: torch.device, needed_bytes: float, what: str, remedy: str = "") -> None:
    """Refuse a card that has less memory free than `needed_bytes`, with who holds the rest."""
    free = free_bytes(device)
    if needed_bytes <= free:
        return
    import torch

    properties = torch.cuda.get_device_properties(device)
    holders = card_holders(str(properties.uuid))
    if holders is None:
        held = "who holds the rest is not known: NVML cannot be asked"
    else:
        held = ", ".join(map(str, holders)) or "the driver names no other process that holds the rest"
    mends = "end what holds it, choose another card (--device cuda:1, CUDA_VISIBLE_DEVICES), or --device cpu"
    raise DoesNotFitError(
        f"{device} ({properties.name}) has {free / 2**30:.1f} GiB of {properties.total_memory / 2**30:.1f} GiB free, "
        f"{needed_bytes / 2**30:.1f} GiB are needed {what}; {held}",
        remedy=f"{remedy}; or {mends}" if remedy else mends,
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no reason given"])[0]
