"""The probe's own logic, with a clock that calls move: slow first calls and waits do not count, and no card runs out of memory."""

from __future__ import annotations

import ast
import math
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from targets.gpu import find_gpu
from targets.machine import probe_program
from targets.machine.probe_program import (
    MATRICES,
    SIDES,
    Place,
    card,
    copy_rate,
    cpu_int4_rates,
    dense_rates,
    int8_rate,
    probe,
    processor,
    rows_in_time,
    seconds_in_rounds,
    seconds_per_call,
    warm_up,
)

GIB = 1 << 30
#: Seconds that waiting for a card takes, whatever it did.
WAIT_S = 30e-6


class Clock:
    """A clock that moves only by the work that is done. The first call of all takes a second more, or the first of each size."""

    def __init__(self) -> None:
        self.now = 0.0
        self.seen: list[int] = []
        self.waits = 0

    def work(self, seconds: Callable[[int], float], *, sized: bool = False) -> Callable[[int], None]:
        def call(what: int) -> None:
            self.now += seconds(what) + (what not in self.seen if sized else not self.seen)
            self.seen.append(what)

        return call

    def wait(self) -> None:
        self.now += WAIT_S
        self.waits += 1


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(probe_program.time, "perf_counter", lambda: clock.now)
    return clock


def place(clock: Clock, timing_s: float, rows: int = 8192) -> Place:
    return Place(torch.device("cpu"), clock.wait, 64, rows, 1 << 20, timing_s, torch.bfloat16)


def test_the_first_call_of_a_size_does_not_say_how_many_rows_there_is_time_for(clock: Clock) -> None:
    """Libraries that are loaded in a first call made the products of an H100 16 rows small."""
    assert rows_in_time(clock.work(lambda rows: rows * 1e-7, sized=True), place(clock, 0.02), 16, 2.5) == 8192


def test_rows_end_where_calls_take_long(clock: Clock) -> None:
    assert rows_in_time(clock.work(lambda rows: rows * 1e-3, sized=True), place(clock, 0.0, rows=1024), 16, 2.5) == 256
    assert max(clock.seen) == 256


def test_waiting_for_a_card_does_not_count(clock: Clock) -> None:
    found = seconds_per_call(clock.work(lambda i: 11e-6), place(clock, 0.02), 100.0)
    assert found == pytest.approx(11e-6, rel=0.01)


def test_every_matrix_of_a_working_set_is_read_in_turn(clock: Clock) -> None:
    seconds_per_call(clock.work(lambda i: 11e-6), place(clock, 0.02), 0.1)
    assert clock.seen[1:] == list(range(len(clock.seen) - 1))


def test_a_processor_s_calls_are_timed_one_by_one(clock: Clock) -> None:
    assert seconds_per_call(clock.work(lambda i: 0.01), place(clock, 0.0), 100.0) == pytest.approx(0.01, rel=0.01)
    assert clock.waits == len(clock.seen) == 201


def test_a_call_that_takes_longer_than_its_budget_is_timed_once(clock: Clock) -> None:
    assert seconds_per_call(clock.work(lambda i: 60.0), place(clock, 0.02), 1.0) == pytest.approx(60.0, rel=0.01)
    assert len(clock.seen) == 2


def test_a_launch_is_the_median_of_warm_rounds(clock: Clock) -> None:
    calls = iter(range(1 << 20))
    work = clock.work(lambda i: 5e-6)
    cold = clock.work(lambda i: 1.0)

    def call() -> None:
        if next(calls) < 1500:
            cold(0)
        work(0)

    assert seconds_in_rounds(call, clock.wait, 2000) == pytest.approx(5e-6, rel=0.01)
    assert clock.waits == 9


def test_a_card_is_warmed_up_for_so_many_seconds(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe_program, "SIDES", (64,))
    warm_up(place(clock, 0.02), 10 * WAIT_S)
    assert 10 <= clock.waits <= 13


@pytest.mark.parametrize("free", [GIB // 4, GIB, 3 * GIB, 6 * GIB, 22 * GIB, 78 * GIB, 180 * GIB])
def test_work_takes_no_more_than_a_share_of_the_free_memory(free: int) -> None:
    one = card(free, (9, 0))
    assert 2 * one.working_set <= free / 2
    assert MATRICES * one.matrix_bytes <= free or one.side == SIDES[-1]


def test_a_card_is_measured_in_a_fraction_of_the_time_that_is_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five rates, half a second each, after a warm-up: most of `optimize calibrate` is the import of torch."""
    budgets: list[float] = []
    h100 = {
        "is_available": lambda: True, "device_count": lambda: 1, "mem_get_info": lambda device: (78 * GIB, 79 * GIB),
        "get_device_capability": lambda device: (9, 0), "get_device_name": lambda device: "NVIDIA H100 80GB HBM3",
    }  # fmt: skip
    for name, answer in h100.items():
        monkeypatch.setattr(torch.cuda, name, answer)
    monkeypatch.setattr(probe_program, "warm_up", lambda place, seconds: budgets.append(seconds))

    def rates(place: Place, budget_s: float) -> dict[str, float | None]:
        budgets.append(budget_s)
        return {"bf16_flops": 1.0}

    monkeypatch.setattr(probe_program, "rates", rates)
    found = probe(20.0)
    assert sum(budgets[:1] + 5 * budgets[1:]) <= 5
    assert find_gpu(found["device"]).name == "H100 SXM"


def test_a_copy_counts_what_it_reads_and_what_it_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A working set of n bytes is n bytes of 16-bit numbers, read once and written once."""
    copied: list[int] = []

    def timed(call: Callable[[int], torch.Tensor], place: Place, budget_s: float) -> float:
        copied.append(call(0).nbytes)
        return 2.0

    monkeypatch.setattr(probe_program, "seconds_per_call", timed)
    small = Place(torch.device("cpu"), lambda: None, 64, 64, 1 << 20, 1e-4, torch.bfloat16)
    assert copy_rate(small, 0.1) == 2 * copied[0] / 2.0 == 1 << 20


def test_a_card_with_room_gets_large_work() -> None:
    one = card(78 * GIB, (9, 0))
    assert (one.side, one.rows, one.working_set, one.dtype) == (8192, 8192, 4 * GIB, torch.bfloat16)
    assert one.timing_s >= 0.005


def test_cards_that_multiply_no_bfloat16_compute_in_float16() -> None:
    assert card(14 * GIB, (7, 5)).dtype is torch.float16


def test_a_processor_s_work_is_what_it_was() -> None:
    one = processor()
    assert (one.side, one.rows, one.working_set, one.timing_s) == (4096, 1024, 512 << 20, 0.0)


def test_the_path_of_a_card_gives_rates() -> None:
    """Many calls a timing, as on a card, on a small piece of the processor."""
    small = Place(torch.device("cpu"), lambda: None, 64, 64, 1 << 20, 1e-4, torch.float32)
    found = dense_rates(small, 0.02) | {"copy": copy_rate(small, 0.02), "int8": int8_rate(small, 0.02) or math.nan}
    assert len(found) == 4
    assert all(rate > 0 and math.isfinite(rate) for rate in found.values())


def test_programs_of_other_pythons_import_nothing_of_ours() -> None:
    """The engine's Python has torch, and tools theirs; tightfit is in neither."""
    root = Path(probe_program.__file__).parents[2]
    programs = [Path(probe_program.__file__), *root.glob("*/**/drivers/*.py")]
    assert len(programs) > 3
    for program in programs:
        tree = ast.parse(program.read_text(encoding="utf-8"))
        named = {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        named |= {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        assert not {name.split(".")[0] for name in named} & {"passes", "targets", "planner", "tightfit"}, program


def test_a_build_without_the_4_bit_kernel_is_measured_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """vLLM's CPU build for AVX2 has the Python function, which fails at its first call: the operator is not in the library."""
    operators = type("Built", (), {"cpu_gemm_wna16": staticmethod(lambda *args: torch.ops._C.cpu_gemm_wna16(*args))})
    monkeypatch.setitem(sys.modules, "vllm", types.ModuleType("vllm"))
    monkeypatch.setitem(sys.modules, "vllm._custom_ops", operators)  # type: ignore[arg-type]
    small = Place(torch.device("cpu"), lambda: None, 128, 64, 1 << 20, 1e-4, torch.bfloat16)
    assert cpu_int4_rates(small, 0.01) == {}
