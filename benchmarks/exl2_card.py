"""EXL2's kernels on the card that is here: held to the path without Triton, and how long a block of an 8B shape takes.

    python -m benchmarks.exl2_card [--divide 1]

Prints JSON: of some matrices the share of equal codes and the ratio of the output errors; seconds to factor, to quantize every option of
each group of matrices that read one input (what measuring does), and one option of each (what the walk does), the second time, kernels
compiled; the most memory that torch held. `--divide` makes every matrix that much smaller, for Triton's interpreter (TRITON_INTERPRET=1,
`--divide 64`), where seconds mean nothing and minutes pass.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from passes.algorithms import exl2
from passes.algorithms.kernels import exl2_triton
from passes.formats.exllama.exl2 import Exl2
from passes.formats.exllama.exl2_options import ATTENTION, MLP

#: Of a Llama-3.1-8B block, matrices that read one input: K; N of each and its column in the table of options.
GROUPS = {
    "q/k/v": (4096, ((4096, ATTENTION, 0), (1024, ATTENTION, 1), (1024, ATTENTION, 1))),
    "o": (4096, ((4096, ATTENTION, 2),)),
    "gate/up": (4096, ((14336, MLP, 0), (14336, MLP, 1))),
    "down": (14336, ((4096, MLP, 2),)),
}
#: (K, N, option of down) held to the path without Triton.
COMPARED = ((1536, 576, 5), (4096, 1024, 9))


def inputs(rows: int, device: torch.device) -> torch.Tensor:
    """Correlated inputs `[2·K, K]` of uneven size."""
    rng = torch.Generator(device).manual_seed(rows)
    mix = torch.randn(rows, 64, generator=rng, device=device) / 4
    made = torch.randn(2 * rows, rows, generator=rng, device=device)
    made += torch.randn(2 * rows, 64, generator=rng, device=device) @ mix.T
    return made * torch.rand(rows, generator=rng, device=device)


def weights(rows: int, columns: int, device: torch.device) -> torch.Tensor:
    rng = torch.Generator(device).manual_seed(columns)
    return torch.randn(columns, rows, generator=rng, device=device) * 0.02


@contextmanager
def timed(into: dict[str, float], name: str, device: torch.device) -> Iterator[None]:
    wait = torch.cuda.synchronize if device.type == "cuda" else int
    wait()
    began = time.perf_counter()
    yield
    wait()
    into[name] = round(time.perf_counter() - began, 4)


def agreement(divide: int, device: torch.device) -> Iterator[dict[str, float]]:
    for rows, columns, option in COMPARED:
        weight = weights(rows // divide // 32 * 32 or 32, columns // divide, device)
        x = inputs(weight.shape[1], device)
        factor = exl2.factorize(x.T @ x, "benchmark")
        layouts = [MLP[number][2].layout(weight.shape[1]) for number in (0, option)]
        by_kernels = list(exl2_triton.quantize_parts([(weight, layout) for layout in layouts], factor))
        for (codes, decoded), (other, expected) in zip(by_kernels, exl2.quantize(weight, factor, layouts), strict=True):
            ours, theirs = (float((x @ (each - weight).T).norm()) for each in (decoded, expected))
            equal = float((codes.codes == other.codes).float().mean())
            yield {"inputs": len(codes.codes), "equal codes": round(equal, 5), "error ratio": round(ours / theirs, 5)}


def block(divide: int, device: torch.device, options: Sequence[int] | None) -> dict[str, float]:
    """Seconds by group; `options`: the one of attention and of the MLP, None: all."""
    seconds: dict[str, float] = {}
    for name, (rows, matrices) in GROUPS.items():
        x = inputs(rows // divide, device)
        hessian = x.T @ x
        del x
        with timed(seconds, f"factor {name}", device):
            factor = exl2.factorize(hessian, name)
        del hessian
        parts: list[exl2.Part] = []
        for columns, table, column in matrices:
            weight = weights(rows // divide, columns // divide, device)
            chosen = table if options is None else [table[options[0]]]
            forms: list[Exl2] = list(dict.fromkeys(row[column] for row in chosen))
            parts += [(weight, form.layout(rows // divide)) for form in forms]
        with timed(seconds, name, device):
            for _, decoded in exl2.quantize_parts(parts, factor):
                decoded.to(torch.bfloat16)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--divide", type=int, default=1)
    divide = parser.parse_args().divide
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found: dict[str, object] = {"torch": torch.__version__, "device": str(device)}
    if device.type == "cuda":
        found["card"] = torch.cuda.get_device_name(device)
    else:
        exl2.quantize_parts = exl2_triton.quantize_parts
    found["agreement"] = list(agreement(divide, device))
    for name, options in (("one option", (6,)), ("all options", None)):
        for _ in range(1 + (device.type == "cuda")):
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            seconds = block(divide, device, options)
        found[name] = seconds | {"sum": round(sum(seconds.values()), 3)}
        if device.type == "cuda":
            found[f"{name}: peak GiB"] = round(torch.cuda.max_memory_allocated(device) / 2**30, 2)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
