"""What this machine reaches, measured with torch: a program of its own, so that the engine's Python can run it.

    python calibrate_probe.py [--seconds 20]     prints one JSON object

Imports nothing of tightfit. On a processor it counts threads as vLLM's CPU backend does and, where vLLM can be imported, times
its own 4-bit kernel; on CUDA cards the same code times device memory, matrix products, launches, and all-reduce over NCCL, on work
so large, and so many calls between two looks at the clock, that launching and waiting do not count.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

#: Bytes cycled through: on a processor beyond any last-level cache in common use, on a card many times its own.
PROCESSOR_SET, CARD_SET = 512 << 20, 4 << 30
#: The sides a card's square matrices may have, and how many of the largest in 16 bits its free memory must hold: the working set
#: takes a quarter of what is free, a copy of it two.
SIDES, MATRICES = (8192, 4096, 2048), 32
#: Seconds of work between two looks at a card's clock: launching and waiting take some ten microseconds.
CARD_TIMING_S = 0.02
#: Seconds of work until a card's clocks have risen.
WARM_S = 0.5
#: The most seconds that one rate of a card takes to measure: two dozen timings, after which they only say what heat does to the clocks.
CARD_BUDGET_S = 0.5


@dataclass(frozen=True, slots=True)
class Place:
    """What is measured, and how large the work is there.

    `side`: rows and columns of a matrix; `rows`: the most rows of its products; `working_set`: bytes that no cache holds;
    `timing_s`: the least seconds of one timing, of as many calls as that takes (0: of one call); `dtype`: of the 16-bit products.
    """

    device: torch.device
    synchronize: Callable[[], None]
    side: int
    rows: int
    working_set: int
    timing_s: float
    dtype: torch.dtype

    @property
    def matrix_bytes(self) -> int:
        """Bytes of a matrix in 16 bits."""
        return 2 * self.side * self.side


def processor() -> Place:
    """Measure the processor: matrices of a mid-sized layer, one call a timing."""
    return Place(torch.device("cpu"), lambda: None, 4096, 1024, PROCESSOR_SET, 0.0, torch.bfloat16)


def card(free_bytes: int, capability: tuple[int, int]) -> Place:
    """Measure a card with so much memory free: matrices and a working set as large as that allows.

    Before compute capability 8.0, cards multiply no bfloat16 themselves, and engines compute in float16 there.
    """
    side = next((side for side in SIDES if MATRICES * 2 * side * side <= free_bytes), SIDES[-1])
    dtype = torch.bfloat16 if capability >= (8, 0) else torch.float16
    working_set = min(CARD_SET, free_bytes // 4)
    return Place(torch.device("cuda"), torch.cuda.synchronize, side, side, working_set, CARD_TIMING_S, dtype)


def seconds_per_call(call: Callable[[int], object], place: Place, budget_s: float) -> float:
    """Measure the median seconds of `call(i)`, warm, within about `budget_s` seconds; a call that takes longer is timed once.

    The first call does not count, and calls are timed together until one timing takes `place.timing_s` seconds.
    """
    call(0)
    place.synchronize()
    times: list[float] = []
    deadline, calls, done = time.perf_counter() + budget_s, 1, 0
    while not times or (time.perf_counter() < deadline and len(times) < 200):
        start = time.perf_counter()
        for i in range(done, done + calls):
            call(i)
        place.synchronize()
        seconds = time.perf_counter() - start
        done += calls
        if seconds < place.timing_s:
            calls *= 2
        else:
            times.append(seconds / calls)
    return sorted(times)[len(times) // 2]


def seconds_in_rounds(
    call: Callable[[], object], synchronize: Callable[[], None], calls: int, rounds: int = 7
) -> float:
    """Measure the median seconds of one of `calls` calls in a row, over rounds of them; two rounds before do not count.

    How many calls there are does not hang on how long they take, so that processes that wait for each other agree.
    """
    times: list[float] = []
    for _ in range(2 + rounds):
        start = time.perf_counter()
        for _ in range(calls):
            call()
        synchronize()
        times.append((time.perf_counter() - start) / calls)
    return sorted(times[2:])[rounds // 2]


def rows_in_time(call: Callable[[int], object], place: Place, least: int, budget_s: float) -> int:
    """Find how many rows, from `least` to `place.rows` in steps of four, a product may have whose call takes no longer than a share of the
    budget.

    Where torch has no kernel for a processor, a large product takes minutes. The first call of each size does not count: libraries
    are loaded and kernels chosen in it.
    """
    rows = least
    while rows < place.rows:
        call(rows)
        place.synchronize()
        start = time.perf_counter()
        call(rows)
        place.synchronize()
        if time.perf_counter() - start > budget_s / 20:
            break
        rows = min(4 * rows, place.rows)
    return rows


def warm_up(place: Place, seconds: float) -> None:
    """Keep a card at work for so many seconds, until its clocks have risen; loading the libraries, in the first call, does not count."""
    matrix = torch.randn(SIDES[-1], SIDES[-1], device=place.device, dtype=place.dtype)
    matrix @ matrix
    place.synchronize()
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        for _ in range(10):
            matrix @ matrix
        place.synchronize()


def dense_rates(place: Place, budget_s: float) -> dict[str, float]:
    """Return the bytes a second of a 16-bit matrix-vector product; operations a second of a large 16-bit product."""
    copies, side = max(2, place.working_set // place.matrix_bytes), place.side
    weights = [torch.randn(side, side, device=place.device, dtype=place.dtype) for _ in range(copies)]
    linear = torch.nn.functional.linear
    row, inputs = (torch.randn(m, side, device=place.device, dtype=place.dtype) for m in (1, place.rows))
    many = inputs[: rows_in_time(lambda rows: linear(inputs[:rows], weights[0]), place, 16, budget_s)]
    vector = seconds_per_call(lambda i: linear(row, weights[i % copies]), place, budget_s)
    product = seconds_per_call(lambda i: linear(many, weights[i % copies]), place, budget_s)
    return {"vector_bytes_per_s": place.matrix_bytes / vector, "bf16_flops": 2 * many.shape[0] * side * side / product}


def copy_rate(place: Place, budget_s: float) -> float:
    """Return the bytes a second of a copy, read and written."""
    whole = torch.empty(place.working_set // 2, dtype=place.dtype, device=place.device)
    target = torch.empty_like(whole)
    return 2 * place.working_set / seconds_per_call(lambda i: target.copy_(whole), place, budget_s)


def int8_rate(place: Place, budget_s: float) -> float | None:
    """Return the operations a second of an 8-bit integer product; None where torch has none for this device."""
    try:
        inputs = torch.randint(-8, 8, (place.rows, place.side), device=place.device, dtype=torch.int8)
        right = torch.randint(-8, 8, (place.side, place.side), device=place.device, dtype=torch.int8)
        if place.device.type != "cpu":
            right = right.t()  # as weights lie there, and as the fast kernels of cards want them
        # Smaller products than 32 rows have no kernel on cards.
        rows = rows_in_time(lambda rows: torch._int_mm(inputs[:rows], right), place, 32, budget_s)
        left = inputs[:rows]
        seconds = seconds_per_call(lambda i: torch._int_mm(left, right), place, budget_s)
    except RuntimeError:
        return None
    return 2 * rows * place.side * place.side / seconds


def fp8_rate(place: Place, budget_s: float) -> float | None:
    """Return the operations a second of an FP8 product with one scale; None below compute capability 8.9 and where torch has none."""
    if place.device.type != "cuda" or torch.cuda.get_device_capability(place.device) < (8, 9):
        return None
    try:
        left, right = (
            torch.randn(rows, place.side, device=place.device, dtype=place.dtype).to(torch.float8_e4m3fn)
            for rows in (place.rows, place.side)
        )
        scale = torch.ones((), device=place.device)
        seconds = seconds_per_call(
            lambda i: torch._scaled_mm(left, right.t(), scale, scale, out_dtype=torch.bfloat16), place, budget_s
        )
    except RuntimeError:
        return None
    return 2 * place.rows * place.side * place.side / seconds


def cpu_int4_rates(place: Place, budget_s: float) -> dict[str, float]:
    """Measure vLLM's CPU kernel for 4-bit weights: bytes a second with one row, operations a second with many; empty where there is none.

    vLLM's build for AVX2 has the function and not the kernel that it calls.
    """
    try:
        kernel = importlib.import_module("vllm._custom_ops").cpu_gemm_wna16
        torch.ops._C.cpu_gemm_wna16  # noqa: B018
    except (ImportError, AttributeError):
        return {}
    side, group = place.side, 128
    copies = place.working_set // (side * side // 2)
    packed = [torch.randint(0, 2**31 - 1, (side // 16, side * 16 // 8), dtype=torch.int32) for _ in range(copies)]
    scales = torch.rand(side // group, side, dtype=torch.bfloat16)
    hint = "amx" if torch.cpu._is_amx_tile_supported() else "vec"
    rates = {}
    for rows, name in ((1, "int4_vector_bytes_per_s"), (place.rows, "int4_flops")):
        x = torch.randn(rows, side, dtype=torch.bfloat16)

        def product(i: int, x: torch.Tensor = x) -> object:
            return kernel(x, packed[i % copies], scales, None, None, 8, hint)

        seconds = seconds_per_call(product, place, budget_s)
        rates[name] = (side * side / 2 if rows == 1 else 2 * rows * side * side) / seconds
    return rates


def launch_seconds(place: Place) -> float:
    """Return the seconds of one small operation in a row of thousands: what a kernel costs however little it does."""
    x = torch.zeros(64, device=place.device)
    return seconds_in_rounds(lambda: x.add_(1.0), place.synchronize, 2000)


def all_reduce(rank: int, world: int, port: int, found: Any) -> None:
    """Run one process of the all-reduce measurement: seconds of a small one, bytes a second of a large one."""
    import torch.distributed as dist

    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    seconds = []
    for elements, calls in ((4096, 200), (64 << 20, 10)):
        x = torch.zeros(elements, device=f"cuda:{rank}", dtype=torch.bfloat16)

        def reduce(x: torch.Tensor = x) -> object:
            return dist.all_reduce(x)

        seconds.append(seconds_in_rounds(reduce, torch.cuda.synchronize, calls))
    if rank == 0:
        found["link_s"] = seconds[0]
        found["link_bytes_per_s"] = 2 * (world - 1) / world * (128 << 20) / seconds[1]
    dist.destroy_process_group()


def all_reduce_rates(world: int) -> dict[str, float]:
    """Return the seconds of a small all-reduce over all cards, and bytes a second that a large one moves over each link."""
    context = multiprocessing.get_context("spawn")
    found = context.Manager().dict()
    ranks = [context.Process(target=all_reduce, args=(rank, world, 29517, found)) for rank in range(world)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    return dict(found)


def rates(place: Place, budget_s: float) -> dict[str, float | None]:
    """Measure what both kinds of devices are asked, each in about `budget_s` seconds."""
    return {
        **dense_rates(place, budget_s), "copy_bytes_per_s": copy_rate(place, budget_s), "launch_s": launch_seconds(place),
        "int8_ops": int8_rate(place, budget_s), "fp8_flops": fp8_rate(place, budget_s),
    }  # fmt: skip


def probe(seconds: float) -> dict[str, Any]:
    """Measure everything that can be measured here, in about `seconds` seconds."""
    share = seconds / 8
    if not torch.cuda.is_available():
        place = processor()
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) - 1))  # vLLM keeps one processor for its server
        found = {"device": "cpu", "torch": torch.__version__, "threads": torch.get_num_threads()}
        return found | rates(place, share) | cpu_int4_rates(place, share)
    free, total = torch.cuda.mem_get_info(0)
    place = card(free, torch.cuda.get_device_capability(0))
    warm_up(place, WARM_S)
    found = {"device": torch.cuda.get_device_name(0), "torch": torch.__version__, "memory_bytes": total}
    found |= rates(place, min(share, CARD_BUDGET_S))
    return found | (all_reduce_rates(torch.cuda.device_count()) if torch.cuda.device_count() > 1 else {})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0)
    print(json.dumps(probe(parser.parse_args().seconds)))
