"""Cards before and after they can be asked: what they need is done once, where they are chosen, and the meter never fails for it."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, field

import pytest
import torch

from passes.blocks.devices import compute_devices
from passes.errors import InputError
from passes.steps.meter import Meter, cards_at_work

_REFUSAL = "Invalid device argument 0: did you call init?"


@dataclass
class Driver:
    """Two cards as torch shows them: they answer no question of counters before CUDA was initialised."""

    peaks: list[int] = field(default_factory=lambda: [7 << 30, 9 << 30])
    fault: Exception | None = None
    ready: bool = False
    failed: bool = False

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


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    """Torch with two cards that the driver sees."""
    driver = Driver()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: driver.ready)
    monkeypatch.setattr(torch.cuda, "init", driver.init)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", driver.reset)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", driver.peak)
    return driver


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
    assert compute_devices() == (torch.device("cpu"),)


def test_a_meter_does_not_load_torch() -> None:
    program = "import sys; from passes.steps.meter import Meter; assert Meter().peak_bytes > 0; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
