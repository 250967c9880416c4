"""What this machine reaches, measured with torch: a program of its own, so that the engine's Python can run it.

    python calibrate_probe.py [--seconds 20]     prints one JSON object

Imports nothing of tightfit. On a processor it counts threads as vLLM's CPU backend does and, where vLLM can be imported, times
its own 4-bit kernel; on CUDA cards the same code times device memory, matrix products, launches, and all-reduce over NCCL.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import time
from collections.abc import Callable
from typing import Any

import torch

#: A matrix of a mid-sized layer; enough of them are cycled through that no cache holds them.
N, K = 4096, 4096
#: Bytes cycled through on a processor: beyond any last-level cache in common use.
WORKING_SET = 512 << 20


def seconds_per_call(call: Callable[[int], object], synchronize: Callable[[], None], budget_s: float) -> float:
    """Median seconds of `call(i)`, warmed up, within about `budget_s` seconds; a call that takes longer is timed once."""
    call(0)
    synchronize()
    times: list[float] = []
    deadline, i = time.perf_counter() + budget_s, 0
    while not times or (time.perf_counter() < deadline and len(times) < 200):
        start = time.perf_counter()
        call(i)
        synchronize()
        times.append(time.perf_counter() - start)
        i += 1
    return sorted(times)[len(times) // 2]


def rows_in_time(
    call: Callable[[int], object], synchronize: Callable[[], None], least: int, most: int, budget_s: float
) -> int:
    """How many rows, from `least` to `most` in steps of four, a product may have whose call takes no longer than a share of the budget.

    Where torch has no kernel for a processor, a large product takes minutes.
    """
    rows = least
    while rows < most:
        start = time.perf_counter()
        call(rows)
        synchronize()
        if time.perf_counter() - start > budget_s / 20:
            break
        rows = min(4 * rows, most)
    return rows


def dense_rates(device: torch.device, synchronize: Callable[[], None], budget_s: float) -> dict[str, float]:
    """Bytes a second of a 16-bit matrix-vector product and of a copy; operations a second of a large 16-bit product."""
    copies = max(2, WORKING_SET // (2 * N * K))
    weights = [torch.randn(N, K, device=device, dtype=torch.bfloat16) for _ in range(copies)]
    linear = torch.nn.functional.linear
    most = 1024 if device.type == "cpu" else 8192
    one, inputs = (torch.randn(m, K, device=device, dtype=torch.bfloat16) for m in (1, most))
    many = inputs[: rows_in_time(lambda rows: linear(inputs[:rows], weights[0]), synchronize, 16, most, budget_s)]
    vector = seconds_per_call(lambda i: linear(one, weights[i % copies]), synchronize, budget_s)
    product = seconds_per_call(lambda i: linear(many, weights[i % copies]), synchronize, budget_s)
    whole = torch.empty(WORKING_SET // 2, dtype=torch.bfloat16, device=device)
    target = torch.empty_like(whole)
    copy = seconds_per_call(lambda i: target.copy_(whole), synchronize, budget_s)
    return {
        "vector_bytes_per_s": 2 * N * K / vector,
        "copy_bytes_per_s": 2 * WORKING_SET / copy,
        "bf16_flops": 2 * many.shape[0] * N * K / product,
    }


def int8_rate(device: torch.device, synchronize: Callable[[], None], budget_s: float) -> float | None:
    """Operations a second of an 8-bit integer product; None where torch has none for this device."""
    inputs = torch.randint(-8, 8, (1024, K), device=device, dtype=torch.int8)
    right = torch.randint(-8, 8, (K, N), device=device, dtype=torch.int8)
    try:
        # Smaller products than 32 rows have no kernel on cards.
        rows = rows_in_time(lambda rows: torch._int_mm(inputs[:rows], right), synchronize, 32, 1024, budget_s)
        left = inputs[:rows]
        seconds = seconds_per_call(lambda i: torch._int_mm(left, right), synchronize, budget_s)
    except RuntimeError:
        return None
    return 2 * rows * N * K / seconds


def fp8_rate(device: torch.device, synchronize: Callable[[], None], budget_s: float) -> float | None:
    """Operations a second of an FP8 product with one scale; None below compute capability 8.9."""
    if device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 9):
        return None
    left = torch.randn(8192, K, device=device).to(torch.float8_e4m3fn)
    right = torch.randn(N, K, device=device).to(torch.float8_e4m3fn).t()
    scale = torch.ones((), device=device)
    seconds = seconds_per_call(
        lambda i: torch._scaled_mm(left, right, scale, scale, out_dtype=torch.bfloat16), synchronize, budget_s
    )
    return 2 * 8192 * N * K / seconds


def cpu_int4_rates(budget_s: float) -> dict[str, float]:
    """vLLM's CPU kernel for 4-bit weights: bytes a second with one row, operations a second with many; empty without vLLM."""
    try:
        kernel = importlib.import_module("vllm._custom_ops").cpu_gemm_wna16
    except (ImportError, AttributeError):
        return {}
    group, copies = 128, WORKING_SET // (N * K // 2)
    packed = [torch.randint(0, 2**31 - 1, (N // 16, K * 16 // 8), dtype=torch.int32) for _ in range(copies)]
    scales = torch.rand(K // group, N, dtype=torch.bfloat16)
    hint = "amx" if torch.cpu._is_amx_tile_supported() else "vec"
    rates = {}
    for rows, name in ((1, "int4_vector_bytes_per_s"), (1024, "int4_flops")):
        x = torch.randn(rows, K, dtype=torch.bfloat16)

        def product(i: int, x: torch.Tensor = x) -> object:
            return kernel(x, packed[i % copies], scales, None, None, 8, hint)

        seconds = seconds_per_call(product, lambda: None, budget_s)
        rates[name] = (N * K / 2 if rows == 1 else 2 * rows * N * K) / seconds
    return rates


def launch_seconds(device: torch.device, synchronize: Callable[[], None]) -> float:
    """Seconds of one small operation in a row of a thousand: what a kernel costs however little it does."""
    x = torch.zeros(64, device=device)
    start = time.perf_counter()
    for _ in range(1000):
        x.add_(1.0)
    synchronize()
    return (time.perf_counter() - start) / 1000


def all_reduce(rank: int, world: int, port: int, found: Any) -> None:
    """One process of the all-reduce measurement: seconds of a small one, bytes a second of a large one."""
    import torch.distributed as dist

    torch.cuda.set_device(rank)
    dist.init_process_group("nccl", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    seconds = []
    for elements in (4096, 64 << 20):
        x = torch.zeros(elements, device=f"cuda:{rank}", dtype=torch.bfloat16)

        def reduce(i: int, x: torch.Tensor = x) -> object:
            return dist.all_reduce(x)

        seconds.append(seconds_per_call(reduce, torch.cuda.synchronize, 2.0))
    if rank == 0:
        found["link_s"] = seconds[0]
        found["link_bytes_per_s"] = 2 * (world - 1) / world * (128 << 20) / seconds[1]
    dist.destroy_process_group()


def all_reduce_rates(world: int) -> dict[str, float]:
    """Seconds of a small all-reduce over all cards, and bytes a second that a large one moves over each link."""
    context = multiprocessing.get_context("spawn")
    found = context.Manager().dict()
    ranks = [context.Process(target=all_reduce, args=(rank, world, 29517, found)) for rank in range(world)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join()
    return dict(found)


def probe(seconds: float) -> dict[str, Any]:
    """Everything that can be measured here, in about `seconds` seconds."""
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    synchronize = torch.cuda.synchronize if cuda else (lambda: None)
    if not cuda:  # vLLM keeps one processor for its server
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) - 1))
    share = seconds / 8
    result: dict[str, Any] = {"device": torch.cuda.get_device_name(0) if cuda else "cpu", "torch": torch.__version__}
    result |= dense_rates(device, synchronize, share) | {"launch_s": launch_seconds(device, synchronize)}
    result |= {"int8_ops": int8_rate(device, synchronize, share), "fp8_flops": fp8_rate(device, synchronize, share)}
    if not cuda:
        result |= {"threads": torch.get_num_threads()} | cpu_int4_rates(share)
    elif torch.cuda.device_count() > 1:
        result |= all_reduce_rates(torch.cuda.device_count())
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0)
    print(json.dumps(probe(parser.parse_args().seconds)))
