"""What the machine is, and `optimize calibrate` beside plain torch on it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import time
from collections.abc import Callable
from typing import Any

from benchmarks.on_card.measuring import seconds_each
from benchmarks.on_card.staging import Notes, NotHereError, Setup
from benchmarks.on_card.tools import find_tool
from passes.host_memory import memory_total_bytes

_PACKAGES = ("torch", "triton", "transformers", "safetensors", "compressed-tensors")
_TOOLS = ("vllm", "exllamav2", "llmcompressor", "gptqmodel")
#: Plain torch: sides of the matrices, bytes of a copied tensor; on a processor what takes as long there.
_CARD, _PROCESSOR = (8192, 4 << 30), (1024, 64 << 20)
#: Matrices that are read for one row in turn, so that no cache holds the next.
_MATRICES = 16


def machine(setup: Setup, note: Notes) -> None:
    """Card, driver, versions, memory, cores."""
    import torch

    cuda = torch.cuda.is_available()
    versions = {name: _version(name) for name in _PACKAGES}
    for name in _TOOLS:
        try:
            versions[name] = find_tool(setup, name).version
        except NotHereError:
            versions[name] = None
    card = torch.cuda.get_device_name(0) if cuda else "cpu"
    memory = torch.cuda.get_device_properties(0).total_memory if cuda else None
    note(
        card=card, card_memory_bytes=memory, cards=torch.cuda.device_count(), driver=_driver(), cuda=torch.version.cuda,
        python=platform.python_version(), processor=_processor(), cores=len(os.sched_getaffinity(0)),
        memory_bytes=memory_total_bytes(), versions=versions, code=_commit(),
        headline=f"{card}, {len(os.sched_getaffinity(0))} cores, torch {torch.__version__}",
    )  # fmt: skip


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _said(*command: str) -> str | None:
    """The first line that a program prints; None where it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return next(iter(done.stdout.strip().splitlines()), None)


def _driver() -> str | None:
    return _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")


def _commit() -> str | None:
    return _said("git", "rev-parse", "--short", "HEAD")


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def calibrate(setup: Setup, note: Notes) -> None:
    """`optimize calibrate`, then the same rates by plain torch, and their ratios."""
    from planner.calibrate import calibrate as run

    began = time.monotonic()
    profile = run(None, None, None, 2.0 if setup.shape == "tiny" else 20.0, say=lambda text: print(text, flush=True))
    note(
        seconds=round(time.monotonic() - began, 1), calibrated=dict(profile.probe), headline="; ".join(profile.lines())
    )
    plain = plain_rates(tiny=setup.shape == "tiny")
    note(plain=plain)
    ratios = {
        name: round(profile.probe[name] / rate, 3) for name, rate in plain.items() if rate and profile.probe.get(name)
    }
    said = ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items())
    note(ratios=ratios, headline=f"{time.monotonic() - began:.0f} s; over plain torch: {said}")


def plain_rates(*, tiny: bool) -> dict[str, float | None]:
    """Bytes, operations and seconds by torch's own calls, nothing of this project between: a copy counts what it reads and writes."""
    import torch

    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    side, copied = _CARD if cuda and not tiny else _PROCESSOR
    row = 0.3 if cuda else 0.05
    warm = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    seconds_each(lambda: warm @ warm, row)
    source = torch.empty(copied, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    copy = seconds_each(lambda: target.copy_(source), row)
    product = seconds_each(lambda: warm @ warm, row)
    matrices = [warm.clone() for _ in range(_MATRICES)]
    one = warm[:1].clone()
    read = seconds_each(lambda: [torch.nn.functional.linear(one, each) for each in matrices], row)
    small = torch.zeros(64, device=device)

    def launches() -> None:
        for _ in range(1000):
            small.add_(1.0)

    return {
        "copy_bytes_per_s": 2 * copied / copy, "vector_bytes_per_s": _MATRICES * 2 * side**2 / read, "bf16_flops": 2 * side**3 / product,
        "int8_ops": _rate(_int8(side, device), side, row), "fp8_flops": _rate(_fp8(side, device), side, row),
        "launch_s": seconds_each(launches, row) / 1000,
    }  # fmt: skip


def _rate(call: Callable[[], Any] | None, side: int, row: float) -> float | None:
    return None if call is None else 2 * side**3 / seconds_each(call, row)


def _int8(side: int, device: Any) -> Callable[[], Any] | None:
    import torch

    left, right = (torch.randint(-8, 8, (side, side), device=device, dtype=torch.int8) for _ in range(2))
    if device.type == "cuda":
        right = right.t()
    return lambda: torch._int_mm(left, right)


def _fp8(side: int, device: Any) -> Callable[[], Any] | None:
    """None on a processor, and on cards before compute capability 8.9."""
    import torch

    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        return None
    left, right = (torch.randn(side, side, device=device).to(torch.float8_e4m3fn) for _ in range(2))
    scale = torch.ones((), device=device)
    return lambda: torch._scaled_mm(left, right.t(), scale, scale, out_dtype=torch.bfloat16)
