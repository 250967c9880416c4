"""EXL2's adaptive quantizer beside ExLlamaV2's own, matrix by matrix: relative error of the output at the same parameter set.

    python -m benchmarks.exl2_peer MODEL_FOLDER EXLLAMAV2 [--layers 0 15 29]

EXLLAMAV2: the folder of an installed exllamav2 (`pip install --no-deps exllamav2==0.3.2`). Its `AdaptiveGPTQ` runs as it is: Hessian, damping,
order, inverse, groups, scales. Only its two CUDA kernels have stand-ins in torch here (`quantize_err`: the error of each scale;
`quantize_range`: rounding with feedback), and "cuda:0" means the processor. Inputs are those of the unquantized model on 16 × 512 tokens of the
calibration text. Error: ‖X (Ŵ − W)ᵀ‖ / ‖X Wᵀ‖. Goal: ours at most 1 % above theirs.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import sys
import time
import types
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.degrid import degrid
from benchmarks.text import CACHE
from passes.algorithms import exl2
from passes.formats.exllama.exl2 import Exl2
from passes.formats.exllama.exl2_options import parse_shares
from passes.text.source import PYTHON_REFERENCE, TextSource, token_blocks

NAMES = ("self_attn.q_proj", "self_attn.v_proj", "mlp.up_proj", "mlp.down_proj")
SETS = (".1x3b+.9x2b/64", ".1x4b+.9x3b/128", "4b/128", "4b/32", ".1x5b+.9x4b/32", "6b/128", "8b/128")


def quantize_err(
    x: torch.Tensor, out: torch.Tensor, scale: torch.Tensor, zero: float, top: float, norm: float, low: float, high: float, steps: int
) -> None:  # fmt: skip
    """Σ |error|^norm of a group at every multiplier of its scale; the kernel leaves partial sums, here they are whole."""
    for step in range(steps + 1):
        s = scale * (low * (1 - step / steps) + high * step / steps)
        out[step, 0] = ((torch.clamp(torch.round(x / s), -zero, top - zero) * s - x).abs() ** norm).sum()


def quantize_range(
    quant: torch.Tensor, scale: torch.Tensor, codes: torch.Tensor, zero: float, top: float, inverse: torch.Tensor, weights: torch.Tensor,
    error: torch.Tensor, first: int, last: int,
) -> None:  # fmt: skip
    """Rows first … last − 1: each rounded, decoded in half precision, its error spread over the rows after it."""
    half = scale.half()
    for row in range(first, last):
        q = torch.clamp(torch.round(weights[row] / scale) + zero, 0, top)
        quant[row] = ((q.half() - torch.tensor(zero).half()) * half).float()
        error[row] = (weights[row] - quant[row]) / inverse[row, row]
        weights[row + 1 :] -= torch.outer(inverse[row, row + 1 :], error[row])


def peer(folder: Path) -> Any:
    """ExLlamaV2's module with the adaptive quantizer, its kernels stood in for."""
    extension: Any = types.ModuleType("exllamav2.ext")
    extension.exllamav2_ext = types.SimpleNamespace(quantize_err=quantize_err, quantize_range=quantize_range)
    extension.none_tensor = torch.empty((1, 1), device="meta")
    helpers: Any = types.ModuleType("exllamav2.util")
    helpers.list_live_tensors = lambda: None
    sys.modules |= {"exllamav2": types.ModuleType("exllamav2"), "exllamav2.ext": extension, "exllamav2.util": helpers}
    spec = importlib.util.spec_from_file_location("adaptivegptq", folder / "conversion" / "adaptivegptq.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    moved = torch.Tensor.to

    def to(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return self if args and args[0] == "cuda:0" else moved(self, *args, **kwargs)

    torch.Tensor.to = to  # type: ignore[method-assign]
    card = types.SimpleNamespace(
        device_count=lambda: 1, empty_cache=lambda: None, synchronize=lambda: None, OutOfMemoryError=MemoryError
    )
    module.torch = types.SimpleNamespace(**vars(torch) | {"cuda": card, "device": lambda _: torch.device("cpu")})  # type: ignore[attr-defined]
    return module


def inputs(model: Path, layers: list[int]) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Name, weight and inputs `[tokens, K]` of every judged matrix."""
    from transformers import AutoModelForCausalLM

    found: dict[str, list[torch.Tensor]] = {}
    whole = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    names = [f"model.layers.{layer}.{name}" for layer in layers for name in NAMES]
    for name in names:
        whole.get_submodule(name).register_forward_pre_hook(
            lambda module, args, name=name: found.setdefault(name, []).append(args[0].flatten(0, 1))
        )
    with torch.inference_mode():
        for row in token_blocks(TextSource(PYTHON_REFERENCE, 16, 512), model):
            whole(row[None])
    for name in names:
        yield name, whole.get_submodule(name).weight.data, torch.cat(found[name])


def theirs(module: Any, weight: torch.Tensor, x: torch.Tensor, form: Exl2) -> torch.Tensor:
    """The decoded weight by ExLlamaV2's own code."""
    layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight.data = weight.clone()
    quantizer = module.AdaptiveGPTQ(layer)
    quantizer.configure(
        {bits: size for _, bits, size in form.shares}, [b for _, b, _ in form.shares], [s for s, _, _ in form.shares]
    )
    quantizer.add_batch(x)
    quantizer.prepare()
    quantizer.quantize()
    decoded: torch.Tensor = quantizer.quant[quantizer.invperm].T
    return decoded


def ours(weight: torch.Tensor, x: torch.Tensor, form: Exl2) -> torch.Tensor:
    """The decoded weight by the walk's code."""
    factor = exl2.factorize(x.T @ x, "benchmark")
    [(_, decoded)] = exl2.quantize(weight, factor, [form.layout(weight.shape[1])])
    return decoded


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", type=Path)
    parser.add_argument("exllamav2", type=Path)
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 15, 29])
    options = parser.parse_args()
    module = peer(options.exllamav2)
    ratios, seconds = [], [0.0, 0.0]
    print(f"{'matrix':36}{'set':18}{'theirs':>9}{'ours':>9}{'ratio':>8}")
    for name, weight, x in inputs(degrid(options.model, CACHE / "smollm2-degridded"), options.layers):
        reference = (x @ weight.T).norm()
        for text in SETS:
            form, errors = parse_shares(text), []
            for number, make in enumerate((partial(theirs, module), ours)):
                began = time.perf_counter()
                found = make(weight, x, form)
                seconds[number] += time.perf_counter() - began
                errors.append(float((x @ (found - weight).T).norm() / reference))
            ratios.append(errors[1] / errors[0])
            print(f"{name:36}{text:18}{errors[0]:9.5f}{errors[1]:9.5f}{ratios[-1]:8.4f}", flush=True)
    print(f"ratio: median {statistics.median(ratios):.4f}, {min(ratios):.4f} to {max(ratios):.4f}, over {len(ratios)}")
    print(f"seconds: theirs {seconds[0]:.0f} (kernels stood in for, so no measure of it), ours {seconds[1]:.0f}")


if __name__ == "__main__":
    main()
