"""What an engine computes with a stored matrix: the decoded weight, and inputs rounded where the format has them rounded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file

from passes.blocks.decoded_weights import DecodedCheckpoint
from passes.files.checkpoint import Checkpoint
from passes.formats.compressed_tensors.floats import FloatQuantized
from passes.formats.compressed_tensors.integers import IntQuantized
from passes.formats.format import E4M3_MAX, Format
from passes.ir.model import ModelIR
from passes.ir.quant_config.gptq import FUSED


class StoredProducts:
    """The products of a result's matrices, computed in fp32. Each is decoded once."""

    def __init__(self, target: ModelIR, folder: Path) -> None:
        self._stored = Checkpoint(folder)
        self._exact = DecodedCheckpoint(self._stored, target, torch.float32)
        self._weights: dict[str, torch.Tensor] = {}
        stack = target.decoder
        self.storage: Mapping[str, Format] = {
            stack.layer_prefix(layer) + linear.name: linear.storage
            for layer in range(len(stack.layers))
            for linear in stack.block(layer).linears
        }

    def product(self, name: str, x: torch.Tensor) -> torch.Tensor:
        """The output of a matrix (full name) for inputs `[…, K]`, fp32."""
        if name not in self._weights:
            self._weights[name] = self._exact.read([f"{name}.weight"])[f"{name}.weight"].float()
        return torch.nn.functional.linear(self._inputs(name, x.float()), self._weights[name])

    def cache_scale(self, name: str) -> float:
        """A stored scale of keys or values; 1 where there is none."""
        return float(self._stored.read([name])[name]) if name in self._stored else 1.0

    def rounds_inputs(self, name: str) -> bool:
        """Whether the format has the inputs rounded."""
        return isinstance(self.storage[name], IntQuantized | FloatQuantized)

    def _inputs(self, name: str, x: torch.Tensor) -> torch.Tensor:
        form = self.storage[name]
        if not isinstance(form, IntQuantized | FloatQuantized):
            return x
        top = E4M3_MAX if isinstance(form, FloatQuantized) else 127.0
        scale = (
            self._stored.read([f"{name}.input_scale"])[f"{name}.input_scale"]
            if form.static
            else x.abs().amax(-1, keepdim=True).clamp(min=1e-8) / top
        )
        if isinstance(form, FloatQuantized):
            return e4m3(x, scale)
        return (x / scale).round().clamp(-128, 127) * scale


def e4m3(x: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """What is left of x when it is kept as e4m3 times a scale."""
    return ((x.float() / scale).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).float() * scale).to(x.dtype)


def product_errors(products: StoredProducts, seen: Path) -> Iterator[float]:
    """‖engine − ours‖ / ‖ours‖ of every product an engine noted: `<module>.input`, `<module>.output`, fused modules included; and
    of the scales of its caches (1 where none is stored).
    """
    parts_of = {fused: parts for parts, fused in FUSED.items()}
    noted = load_file(seen)
    for key, x in noted.items():
        module, _, kind = key.rpartition(".")
        if kind in ("k_scale", "v_scale"):
            yield abs(float(x) / products.cache_scale(f"{module.removesuffix('.attn')}.{kind}") - 1)
        if kind != "input":
            continue
        parent, _, leaf = module.rpartition(".")
        names = [f"{parent}.{part}" for part in parts_of.get(leaf, (leaf,))]
        ours = torch.cat([products.product(name, x) for name in names], -1)
        yield float((noted[f"{module}.output"].float() - ours).norm() / ours.norm())
