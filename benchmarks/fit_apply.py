"""Measures how fast this machine does each kind of work of `optimize apply`, as `planner/apply_rates.json` states it.

    python -m benchmarks.fit_apply [--device cuda] [--shape llama-8b|tiny] [--write]     --write: into the file, as measured

Each kind is timed alone, warm, by the code that `apply` runs: a block's forward, Hessians, GPTQ of each group of a block, AWQ's error of a
matrix, EXL2's options, text that a model writes, weights read from a file and copied. On a card it takes about half a minute. Where one
time holds two kinds (GPTQ: products, and columns one after the other; writing: a step's arithmetic, and its launches), several shapes tell
them apart.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls

from passes.algorithms import exl2
from passes.algorithms.gptq import gptq
from passes.algorithms.method import GPTQ_DEFAULT
from passes.blocks.devices import compute_devices, compute_dtype
from passes.blocks.input_statistics import InputStatistics
from passes.blocks.memory import BATCH_TOKENS
from passes.files.checkpoint import Checkpoint, write_shard
from passes.formats.exllama.exl2_options import MLP
from passes.formats.format import Grid
from passes.quantize.exl2 import OPTIONS_OPERATIONS
from passes.text.sampling import CardWriter, write_plainly
from passes.text.self_written import CARD_BATCH, SELF_BATCH

#: Operations a second of what another kind's seconds explain whole.
_UNSEEN = 1e18
RATES = Path(__file__).parents[1] / "planner" / "apply_rates.json"


@dataclass(frozen=True)
class Shape:
    """A block of a Llama, the text that goes through it, and how a model of such blocks writes: `layers` of them, `positions` tokens.

    `small`: width and layers of another model that writes, whose steps are launches above all.
    """

    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    tokens: int = BATCH_TOKENS
    length: int = 2048
    layers: int = 4
    positions: int = 48
    small: tuple[int, int] = (576, 30)
    group: int = 128

    @property
    def matrices(self) -> tuple[tuple[int, tuple[int, ...]], ...]:
        """Inputs of each group of matrices, and the outputs of each matrix."""
        key = self.hidden * self.kv_heads // self.heads
        return (
            (self.hidden, (self.hidden, key, key)), (self.hidden, (self.hidden,)),
            (self.hidden, (self.intermediate, self.intermediate)), (self.intermediate, (self.hidden,)),
        )  # fmt: skip

    @property
    def weights(self) -> int:
        """Weights of a block's matrices."""
        return sum(inputs * sum(outputs) for inputs, outputs in self.matrices)


SHAPES = {
    "llama-8b": Shape(4096, 14336, 32, 8),
    "tiny": Shape(64, 128, 4, 2, tokens=64, length=32, layers=2, positions=4, small=(32, 3), group=32),
}


@dataclass(frozen=True)
class Bench:
    """Where it is measured, in which numbers, on which shape, each time over `least_s` seconds at least."""

    device: torch.device
    dtype: torch.dtype
    shape: Shape
    least_s: float

    def random(self, *size: int) -> torch.Tensor:
        """Normal numbers as the device computes with."""
        return torch.randn(*size, device=self.device, dtype=self.dtype)

    def seconds(self, call: Callable[[], Any]) -> float:
        """Mean seconds of a call, after one that does not count."""
        call()
        calls, took = 0, 0.0
        self._wait()
        began = time.perf_counter()
        while not calls or took < self.least_s:
            call()
            calls += 1
            self._wait()
            took = time.perf_counter() - began
        return took / calls

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def product_rate(bench: Bench) -> float:
    """Operations a second of a large product: what shares are shares of."""
    side = 8192 if bench.device.type == "cuda" else 4 * bench.shape.hidden
    left, right = bench.random(side, side), bench.random(side, side)
    return 2 * side**3 / bench.seconds(lambda: left @ right)


def forward_rate(bench: Bench) -> float:
    """Operations a second of a block's forward, attention's own left out as the plan leaves it out."""
    shape = bench.shape
    model = _llama(bench, shape.hidden, shape.intermediate, 1, shape.heads, shape.kv_heads)
    states = bench.random(max(1, shape.tokens // shape.length), shape.length, shape.hidden)
    with torch.inference_mode():
        seconds = bench.seconds(lambda: model.model(inputs_embeds=states, use_cache=False))
    return 2 * shape.weights * states.shape[0] * shape.length / seconds


def hessian_rate(bench: Bench) -> float:
    """Operations a second of a batch's Hessians in a block: half of a product of the inputs with themselves."""
    operations, seconds = 0.0, 0.0
    for inputs, _ in bench.shape.matrices:
        seen, batch = InputStatistics(inputs, bench.device), bench.random(bench.shape.tokens, inputs)
        operations += bench.shape.tokens * inputs**2
        seconds += bench.seconds(lambda seen=seen, batch=batch: seen.add(batch))  # type: ignore[misc]
    return operations / seconds


def compensation(bench: Bench) -> tuple[float, float]:
    """Operations a second of GPTQ's products, and seconds of a column beside them, from the four groups of a block."""
    rows, seconds = [], []
    for inputs, outputs in bench.shape.matrices:
        hessian, weight = _hessian(bench, inputs), bench.random(sum(outputs), inputs).float()
        grid = Grid(4, bench.shape.group)
        took = bench.seconds(
            lambda weight=weight, hessian=hessian, grid=grid: gptq(  # type: ignore[misc]
                weight, hessian, grid, bench.dtype, GPTQ_DEFAULT, "a matrix"
            )
        )
        rows.append((2.0 * sum(each * inputs**2 + inputs**3 for each in outputs), float(inputs)))
        seconds.append(took)
    a_second, a_column = two_rates(rows, seconds)
    return _rate(a_second), a_column


def two_rates(rows: Sequence[tuple[float, float]], seconds: Sequence[float]) -> tuple[float, float]:
    """Seconds of one of each of two kinds, none below 0, that explain the `seconds` of some amounts of both, each to the same share."""
    amounts, times = np.array(rows), np.array(seconds)
    scale = amounts.max(axis=0)
    found, _ = nnls(amounts / scale / times[:, None], np.ones(len(times)))
    return float(found[0] / scale[0]), float(found[1] / scale[1])


def error_rate(bench: Bench) -> float:
    """Operations a second of tr(E H Eᵀ), as AWQ and choices of formats have it."""
    width = bench.shape.hidden
    error, hessian = bench.random(width, width).float(), _hessian(bench, width)
    return 2 * width**3 / bench.seconds(lambda: float(((error @ hessian) * error).sum()))


def options_rate(bench: Bench) -> float:
    """Counted operations a second of trying every option of EXL2 on a matrix."""
    width = bench.shape.hidden
    weight, factor = bench.random(width, width).float(), exl2.factorize(_hessian(bench, width), "a matrix")
    parts = [(weight, form.layout(width)) for form in dict.fromkeys(row[0] for row in MLP)]

    def tried() -> None:
        for _ in exl2.quantize_parts(parts, factor):
            pass

    return OPTIONS_OPERATIONS * width**2 / bench.seconds(tried)


def writing(bench: Bench) -> tuple[float, float]:
    """Operations a second of text that a model writes, and seconds of a position of a block beside them, from a wide and a narrow model."""
    shape, (width, layers) = bench.shape, bench.shape.small
    rows = CARD_BATCH if bench.device.type == "cuda" else SELF_BATCH
    opening = torch.zeros(rows, 1, dtype=torch.int64, device=bench.device)
    uniforms = torch.rand(shape.positions, rows, device=bench.device)
    amounts, seconds = [], []
    for hidden, wide, depth, heads, kv in (
        (shape.hidden, shape.intermediate, shape.layers, shape.heads, shape.kv_heads),
        (width, 8 * width // 3, layers, 1, 1),
        (width, 8 * width // 3, 2 * layers, 1, 1),
    ):
        model = _llama(bench, hidden, wide, depth, heads, kv)
        write = CardWriter(model) if bench.device.type == "cuda" else partial(write_plainly, model)
        seconds.append(bench.seconds(lambda write=write: write(opening, uniforms, _untold)))  # type: ignore[misc]
        weights = sum(value.numel() for value in model.parameters()) - model.model.embed_tokens.weight.numel()
        amounts.append((2.0 * weights * rows * shape.positions, float(shape.positions * depth)))
        del model
    a_second, a_position = two_rates(amounts, seconds)
    return _rate(a_second), a_position


def moved_rate(bench: Bench) -> float:
    """Bytes a second of a block's weights from a file in the system's cache to the device."""
    tensors = {f"{n}": torch.zeros(sum(out), inputs, dtype=torch.bfloat16) for n, (inputs, out) in enumerate(bench.shape.matrices)}  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "block.safetensors"
        write_shard(path, tensors)
        stored = Checkpoint.of_files([path])

        def read() -> None:
            for tensor in stored.read(list(tensors)).values():
                tensor.to(bench.device, copy=True)

        return sum(tensor.nbytes for tensor in tensors.values()) / bench.seconds(read)


def measured(bench: Bench, source: str) -> dict[str, dict[str, Any]]:
    """Every figure of `apply_rates.json` for this device, by its name there. `source`: what it is measured on."""
    product = product_rate(bench)
    compensated, column = compensation(bench)
    written, position = writing(bench)
    figures = {
        "forwards": {"share": forward_rate(bench) / product}, "hessians": {"share": hessian_rate(bench) / product},
        "compensation": {"share": compensated / product}, "errors": {"share": error_rate(bench) / product},
        "options": {"share": options_rate(bench) / product}, "writing": {"share": written / product},
        "columns": {"seconds": column}, "positions": {"seconds": position}, "moved": {"bytes_per_s": moved_rate(bench)},
    }  # fmt: skip
    return {
        name: {unit: float(f"{value:.3g}") for unit, value in figure.items()} | {"basis": "measured", "source": source}
        for name, figure in figures.items()
    }


def as_text(rates: Any) -> str:
    """The file of rates: a figure a line."""
    kinds = []
    for kind, figures in rates.items():
        lines = [f"  {json.dumps(name)}: {json.dumps(figure, ensure_ascii=False)}" for name, figure in figures.items()]
        kinds.append(f" {json.dumps(kind)}: {{\n" + ",\n".join(lines) + "\n }")
    return "{\n" + ",\n".join(kinds) + "\n}\n"


def _rate(seconds_each: float) -> float:
    """Operations a second; of what shows no time of its own, so many that it takes next to none."""
    return 1 / seconds_each if seconds_each else _UNSEEN


def _hessian(bench: Bench, width: int) -> torch.Tensor:
    seen = InputStatistics(width, bench.device)
    seen.add(bench.random(max(bench.shape.tokens, 2 * width), width))
    return seen.hessian("a matrix")


def _llama(bench: Bench, hidden: int, intermediate: int, layers: int, heads: int, kv_heads: int) -> Any:
    """A Llama with random weights on the device."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv_heads, vocab_size=4096, max_position_embeddings=4096, dtype=bench.dtype, bos_token_id=None,
        eos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    with torch.device(bench.device):
        return LlamaForCausalLM(config).to(bench.dtype).eval()


def _untold(position: int) -> None: ...


def main() -> None:
    """Measure and print; with --write, keep."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--shape", default="llama-8b", choices=list(SHAPES))
    parser.add_argument("--write", action="store_true")
    asked = parser.parse_args()
    device = compute_devices(asked.device)[0]
    card = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if card else "processor"
    source = f"{name}, torch {torch.__version__}, benchmarks/fit_apply.py --shape {asked.shape}"
    bench = Bench(device, compute_dtype("BF16", device=device), SHAPES[asked.shape], 0.3)
    kind = "card" if card else "processor"
    rates = json.loads(RATES.read_text(encoding="utf-8"))
    rates[kind] = measured(bench, source) | {key: rates[kind][key] for key in ("memory", "start", "spread")}
    print(as_text({kind: rates[kind]}))
    if asked.write:
        RATES.write_text(as_text(rates), encoding="utf-8")


if __name__ == "__main__":
    main()
