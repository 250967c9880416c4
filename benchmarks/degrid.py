"""The de-gridded twin of SmolLM2: each weight moved uniformly within its Q4_1 step.

The demo's model comes from a Q4_1 GGUF: in every block of 32 weights at most 16 distinct values, evenly spaced. A 4-bit
quantizer can hit such a grid exactly, which no real 16-bit model allows, so nothing may be fitted on it. The twin adds to
each weight a uniform random number in ±half a step of its block (fixed seed), which undoes the grid and keeps the model.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from passes.files.checkpoint import copy_side_files

_BLOCK = 32
SEED = 1234


def degrid(source: Path, target: Path) -> Path:
    """Write the twin of `source` (a folder with one model.safetensors) to `target`; done once."""
    if (target / "model.safetensors").exists():
        return target
    target.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(SEED)
    tensors = load_file(source / "model.safetensors")
    twin = {
        name: _dither(tensors[name], generator) if name.endswith("_proj.weight") else tensors[name]
        for name in sorted(tensors)
    }
    copy_side_files(source, target)
    (target / "config.json").write_bytes((source / "config.json").read_bytes())
    save_file(twin, target / "model.safetensors", metadata={"format": "pt"})
    return target


def _dither(weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One matrix `[N, K]`: the step of a block is its range over 15 (Q4_1: 16 levels from minimum to maximum)."""
    blocks = weight.float().reshape(-1, _BLOCK)
    step = (blocks.amax(1, keepdim=True) - blocks.amin(1, keepdim=True)) / 15
    noise = torch.rand(blocks.shape, generator=generator) - 0.5
    return (blocks + noise * step).reshape(weight.shape).to(weight.dtype)


if __name__ == "__main__":
    print(degrid(Path(sys.argv[1]), Path(sys.argv[2])))
