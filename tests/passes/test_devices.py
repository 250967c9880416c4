"""Cards before and after they can be asked: what they need is done once, where they are chosen by name, each thing that can be wrong with
them is one clear message, and the meter never fails for it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest
import torch

from passes import host_memory
from passes.blocks import devices
from passes.blocks.devices import (
    compute_devices,
    compute_dtype,
    free_bytes,
    require_memory,
    unused_cards,
    visible_cards,
)
from passes.errors import DoesNotFitError, InputError
from passes.steps.meter import Meter, cards_at_work

_REFUSAL = "Invalid device argument 0: did you call init?"
_H100 = "NVIDIA H100 80GB HBM3"
_GIB = 1 << 30


@dataclass
class Driver:
    """Two cards of 79 GiB as torch and NVML show them: they answer no question of counters before CUDA was initialised."""

    peaks: list[int] = field(default_factory=lambda: [7 << 30, 9 << 30])
    free: list[int | Exception] = field(default_factory=lambda: [78 << 30, 78 << 30])
    holders: list[tuple[int, int | None]] = field(default_factory=list)
    """Process and bytes of who holds the memory of card 0."""
    fault: Exception | None = None
    count: int = 2
    ready: bool = False
    failed: bool = False
    current: object = None

    def init(self) -> None:
        if self.fault is not None:
            raise self.fault
        self.ready = True

    def peak(self, card: int) -> int:
        if not self.ready or self.failed:
            raise RuntimeError(_REFUSAL)
        return self.peaks[card]

    def reset(self, card: int) -> None:
        self.peak(card)
        self.peaks[card] = 0

    def memory(self, device: torch.device) -> tuple[int, int]:
        assert self.ready
        free = self.free[device.index]
        if isinstance(free, Exception):
            raise free
        return free, 79 * _GIB

    def choose(self, device: torch.device) -> None:
        self.current = device

    def running(self, handle: str) -> list[Any]:
        held = self.holders if handle == "GPU-uuid-0" else []
        return [SimpleNamespace(pid=pid, usedGpuMemory=used) for pid, used in held]


@pytest.fixture(autouse=True)
def undecided(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody has chosen among cards."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    """Torch with two cards that the driver sees."""
    driver = Driver()
    properties = [SimpleNamespace(name=_H100, total_memory=79 * _GIB, uuid=f"uuid-{card}") for card in range(2)]
    for name, stand_in in {
        "device_count": lambda: driver.count, "is_available": lambda: driver.count > 0, "is_initialized": lambda: driver.ready,
        "init": driver.init, "reset_peak_memory_stats": driver.reset, "max_memory_allocated": driver.peak,
        "mem_get_info": driver.memory, "memory_reserved": lambda device: 3 * _GIB, "memory_allocated": lambda device: 3 * _GIB,
        "set_device": driver.choose, "get_device_properties": lambda device: properties[device.index],
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, stand_in)
    nvml(monkeypatch, (_H100, _H100))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByUUID", lambda uuid: uuid)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetComputeRunningProcesses", driver.running)
    return driver


def nvml(monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]) -> None:
    """NVML that lists some cards."""
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: len(names))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda index: index)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetName", lambda handle: names[handle])


def no_nvml(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without libnvidia-ml."""

    def refuse() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", refuse)


def test_a_meter_asks_nothing_of_cards_that_are_not_at_work(driver: Driver) -> None:
    meter = Meter()
    assert not driver.ready
    assert list(cards_at_work()) == []
    assert meter.peak_bytes > 0


def test_chosen_cards_can_be_asked(driver: Driver) -> None:
    assert compute_devices() == (torch.device("cuda", 0), torch.device("cuda", 1))
    meter = Meter()
    assert driver.peaks == [0, 0]
    driver.peaks = [3 << 30, 5 << 30]
    assert meter.peak_bytes == 5 << 30


def test_a_step_in_which_the_cards_begin_their_work_is_measured_on_them(driver: Driver) -> None:
    meter = Meter()
    compute_devices()
    driver.peaks = [3 << 30, 1 << 30]
    assert meter.peak_bytes == 3 << 30


@pytest.mark.parametrize(
    ("asked", "numbers"), [("auto", (0, 1)), ("cuda", (0, 1)), ("cuda:1", (1,)), (" CUDA:0 ", (0,))]
)
def test_devices_are_chosen_by_name_and_the_first_is_torchs_own(
    driver: Driver, asked: str, numbers: tuple[int, ...]
) -> None:
    """Kernels of ours are launched on torch's current card: with `cuda:1` that must not stay the first one."""
    chosen = tuple(torch.device("cuda", number) for number in numbers)
    assert compute_devices(asked) == chosen
    assert driver.current == chosen[0]


def test_the_processor_is_chosen_without_a_look_at_the_cards(driver: Driver) -> None:
    driver.fault = RuntimeError("broken")
    assert compute_devices("cpu") == (torch.device("cpu"),)
    assert not driver.ready
    assert compute_dtype("F16", device=torch.device("cpu")) is torch.float32
    assert compute_dtype("F16") is torch.float16


@pytest.mark.parametrize(
    ("asked", "nearest"),
    [("cudda", "cuda"), ("cuda0", "cuda:0"), ("gpu", "cuda"), ("GPU:1", "cuda"), ("cpus", "cpu"), ("cuda:x", "cuda"),
     ("processor", "cpu"), ("", "")],
)  # fmt: skip
def test_an_unknown_device_gets_the_nearest_one(asked: str, nearest: str) -> None:
    with pytest.raises(InputError, match=f"unknown device {asked!r}.*{nearest}") as error:
        compute_devices(asked)
    assert error.value.remedy is not None
    assert "cuda:1" in error.value.remedy


def test_a_card_that_is_not_there_is_refused_with_those_that_are(driver: Driver) -> None:
    with pytest.raises(InputError, match="there is no cuda:5: torch sees 2 cards") as error:
        compute_devices("cuda:5")
    assert error.value.remedy is not None
    assert "nearest is cuda:1" in error.value.remedy


@pytest.mark.parametrize(
    "fault",
    [
        RuntimeError("CUDA driver initialization failed, you might not have a CUDA gpu.\nmore"),
        torch.cuda.DeferredCudaCallError("CUDA driver initialization failed, you might not have a CUDA gpu."),
    ],
)
def test_cards_that_cannot_be_used_are_one_clear_message(driver: Driver, fault: Exception) -> None:
    driver.fault = fault
    with pytest.raises(
        InputError, match=r"torch sees 2 cards, but cannot compute there: CUDA driver .* gpu\.\n"
    ) as error:
        compute_devices()
    assert error.value.remedy is not None
    assert "CUDA_VISIBLE_DEVICES=" in error.value.remedy
    assert Meter().peak_bytes > 0


def test_a_meter_outlives_its_cards(driver: Driver) -> None:
    compute_devices()
    meter = Meter()
    driver.failed = True
    assert meter.peak_bytes > 0
    assert Meter().peak_bytes > 0


def test_without_cards_the_processor_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    no_nvml(monkeypatch)
    monkeypatch.setattr(devices, "card_nodes", lambda: 0)
    assert compute_devices() == (torch.device("cpu"),)
    assert unused_cards() is None
    with pytest.raises(InputError, match="no card") as error:
        compute_devices("cuda")
    assert "--device cpu" in str(error.value)


@pytest.mark.parametrize(
    "full",
    [400 << 20, torch.OutOfMemoryError("CUDA out of memory."), RuntimeError("CUDA error: out of memory")],
)
def test_a_card_that_is_taken_is_refused_with_who_holds_it(driver: Driver, full: int | Exception) -> None:
    """To ask how much is free takes memory itself: a card that is quite full answers with an error."""
    driver.free[0], driver.holders = full, [(os.getpid(), 5 << 30), (2**22 + 1, 78 << 30), (2**22 + 2, None)]
    with pytest.raises(DoesNotFitError, match=r"cuda:0 \(NVIDIA H100 80GB HBM3\) has 0\.\d GiB of 79\.0 GiB free") as error:  # fmt: skip
        compute_devices()
    assert f"a program (process {2**22 + 1}) holds 78.0 GiB, a program (process {2**22 + 2})" in error.value.message
    assert str(os.getpid()) not in error.value.message
    assert "--device cuda:1" in str(error.value.remedy)
    assert compute_devices("cuda:1") == (torch.device("cuda", 1),)


def test_processes_are_named(driver: Driver) -> None:
    driver.holders = [(os.getppid(), 1 << 30)]
    (holder,) = host_memory.card_holders("uuid-0") or ()
    assert holder.name == Path(f"/proc/{os.getppid()}/comm").read_text().strip()


def test_without_nvml_cards_compute_and_a_taken_one_says_that_its_holders_are_not_known(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_nvml(monkeypatch)
    assert compute_devices("cuda:0") == (torch.device("cuda", 0),)
    driver.free[0] = 0
    with pytest.raises(DoesNotFitError, match="who holds the rest is not known: NVML cannot be asked"):
        compute_devices("cuda:0")


def test_what_torch_keeps_for_later_is_free(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    compute_devices()
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: _GIB)
    assert free_bytes(torch.device("cuda", 0)) == 80 * _GIB


def test_work_that_a_card_has_no_room_for_is_refused_with_what_would_do(driver: Driver) -> None:
    compute_devices()
    require_memory(torch.device("cuda", 0), 70 * _GIB, "fewer samples")
    require_memory(torch.device("cpu"), 1e15, "fewer samples")
    with pytest.raises(DoesNotFitError, match=r"78\.0 GiB of 79\.0 GiB free, 90\.0 GiB are needed for the work") as error:  # fmt: skip
        require_memory(torch.device("cuda", 0), 90 * _GIB, "fewer samples")
    assert str(error.value.remedy).startswith("fewer samples; or ")
    assert "--device cpu" in str(error.value.remedy)


@pytest.mark.parametrize(
    ("asked", "here", "seen"),
    [("auto", None, None), ("cuda", "2,3", None), ("cpu", None, ""), ("cuda:1", None, "1"), ("cuda:1", "2, 3", "3"),
     ("cuda:0", "GPU-8f2a", "GPU-8f2a")],
)  # fmt: skip
def test_outside_tools_are_shown_what_was_asked_for(
    monkeypatch: pytest.MonkeyPatch, asked: str, here: str | None, seen: str | None
) -> None:
    if here is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", here)
    assert visible_cards(asked) == seen


@pytest.fixture
def unusable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a card, and a torch of the processor's."""
    nvml(monkeypatch, (_H100,))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch, "__version__", "2.13.0+cpu")


def test_a_torch_without_cuda_says_so_and_how_to_get_the_card_used(unusable: None) -> None:
    note = unused_cards()
    assert note is not None
    assert note.startswith(f"the processor computes: this machine has {_H100}, but torch 2.13.0+cpu is built without")
    assert "pytorch.org" in note
    assert compute_devices() == (torch.device("cpu"),)
    with pytest.raises(InputError, match=f"--device cuda: this machine has {_H100}, but torch") as error:
        compute_devices("cuda")
    assert "--device cpu" in str(error.value.remedy)


def test_a_card_that_only_has_a_node_is_seen(unusable: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    no_nvml(monkeypatch)
    monkeypatch.setattr(host_memory, "_NODES", tmp_path)
    assert unused_cards() is None
    for name in ("nvidia0", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    assert host_memory.card_nodes() == 1
    assert "this machine has an NVIDIA card, but" in str(unused_cards())


def test_a_driver_that_is_too_old_for_torch_is_said_in_torchs_words(
    unusable: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 11040).\nPlease update")

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "init", refuse)
    note = str(unused_cards())
    assert "cannot use it: The NVIDIA driver on your system is too old (found version 11040)." in note
    assert "a driver for CUDA 13.0" in note


@pytest.mark.parametrize(("asked", "visible"), [("cpu", None), ("auto", ""), ("auto", "-1")])
def test_cards_that_are_not_wanted_are_not_missed(
    unusable: None, monkeypatch: pytest.MonkeyPatch, asked: str, visible: str | None
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        with pytest.raises(InputError, match="CUDA_VISIBLE_DEVICES hides every card"):
            compute_devices("cuda")
    assert unused_cards(asked) is None


def test_without_nvml_the_drivers_files_name_the_cards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    no_nvml(monkeypatch)
    monkeypatch.setattr(host_memory, "_DRIVER_CARDS", tmp_path)
    assert host_memory.card_names() == ()
    (tmp_path / "0000:19:00.0").mkdir()
    (tmp_path / "0000:19:00.0" / "information").write_text(f"Model: \t\t {_H100}\nIRQ:   \t\t 16\n")
    assert host_memory.card_names() == (_H100,)


def test_a_meter_does_not_load_torch() -> None:
    program = "import sys; from passes.steps.meter import Meter; assert Meter().peak_bytes > 0; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_machine_without_cards_is_not_made_to_load_torch() -> None:
    program = (
        "import sys; from passes import host_memory; from passes.blocks import devices; devices.card_names = lambda: ();"
        "devices.card_nodes = lambda: 0; assert devices.unused_cards() is None; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
