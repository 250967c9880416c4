"""What the speed model needs of a card, from the catalog's `Gpu`."""

from __future__ import annotations

import re
from functools import cache, lru_cache
from typing import TYPE_CHECKING

from targets.gpu import Gpu
from targets.speed.step import Card

if TYPE_CHECKING:
    from targets.engines.engine import Engine

#: Bytes a second of one direction of one PCIe lane by generation (PCI-SIG, after line coding).
_PCIE_LANE = {3: 0.985e9, 4: 1.969e9, 5: 3.938e9}

#: 16-bit rate assumed where nobody prints one, per byte a second of bandwidth: the lowest of the catalog's cards with tensor cores.
_FLOPS_PER_BYTE = 60.0


#: CUDA capability whose arithmetic another maker's generation has: FP8 from CDNA3 on, FP4 from CDNA4 on.
_LIKE = {"CDNA4": 10.0, "CDNA3": 9.0, "CDNA2": 8.0, "RDNA3": 8.6, "RDNA4": 8.9}


def generation_of(gpu: Gpu) -> str:
    """Name the generation that efficiencies are kept by: CUDA compute capability (`8.6`, `9.0`; `10` and `12` for all of Blackwell), with
    ` geforce` behind it where that is the line.
    """
    if gpu.capability is None:
        return "cpu" if gpu.is_cpu else gpu.generation
    major, minor = divmod(gpu.capability, 10)
    architecture = str(major) if major >= 10 else "8.6" if (major, minor) == (8, 7) else f"{major}.{minor}"
    return f"{architecture} geforce" if is_geforce(gpu) else architecture


def is_geforce(gpu: Gpu) -> bool:
    """Tell whether a card's tensor cores sum in 32 bit at half their rate, as only NVIDIA's GeForce line has it from Ampere on.

    Such cards reach more of that halved rate than others of their full one, and their hosts are desktops: faster cores.
    """
    return bool(gpu.fp16_accumulate_flops and gpu.bf16_flops and gpu.fp16_accumulate_flops > 1.5 * gpu.bf16_flops)


def capability_of(gpu: Gpu) -> float:
    """Read the card's CUDA compute capability, or that of the generation that another maker's card is like; 0 for a processor."""
    return gpu.capability / 10 if gpu.capability else _LIKE.get(gpu.generation, 0.0)


@lru_cache(maxsize=256)
def card_of(engine: Engine, gpu: Gpu) -> Card:
    """Find the card's peaks, and the kernels that `engine` runs on it."""
    bf16 = gpu.bf16_flops or _FLOPS_PER_BYTE * gpu.bandwidth_bytes_per_s
    rates = {"bf16": bf16, "fp8": gpu.fp8_flops, "int8": gpu.int8_ops, "fp4": gpu.fp4_flops}
    return Card(
        kernel=cache(lambda form: engine.kernel(form, gpu)),
        capability=capability_of(gpu),
        bandwidth=gpu.bandwidth_bytes_per_s,
        flops={name: rate for name, rate in rates.items() if rate},
        link=_link(gpu),
        wiring=wiring_of(gpu),
        bridge=gpu.link_bytes_per_s / 2 if gpu.bridge and gpu.link_bytes_per_s else None,
        network=gpu.network,
    )


def wiring_of(gpu: Gpu) -> str:
    """Say how more than two cards of this kind reach each other: `nvlink` (or another maker's links), `pcie` from card to card, `staged`
    through the host's memory where the driver has no access from card to card (GeForce). Two may have a bridge (`Gpu.bridge`).
    """
    if gpu.link_bytes_per_s and gpu.bridge is None:
        return "nvlink"
    return "staged" if is_geforce(gpu) else "pcie"


def _link(gpu: Gpu) -> float:
    """Bytes a second of one direction to the other cards: NVLink and the like, else PCIe."""
    if gpu.link_bytes_per_s and gpu.bridge is None:
        return gpu.link_bytes_per_s / 2
    found = re.match(r"PCIe (\d)\.\d x(\d+)", gpu.pcie or "")
    return _PCIE_LANE.get(int(found[1]), 1.969e9) * int(found[2]) if found else 16 * 1.969e9
