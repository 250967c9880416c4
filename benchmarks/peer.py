"""Runs llm-compressor's GPTQ beside ours, on the same tokens, in the environment where it is installed."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import torch


def llmcompressor(
    python: Path, model: Path, tokens: torch.Tensor, out: Path, group_size: int, actorder: str = "static"
) -> dict[str, Any]:
    """Quantize the folder `model` to W4A16 into `out`; return its seconds and peak bytes.

    `python`: that of an environment with llmcompressor 0.14; `tokens`: ids `[S, T]`.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    file = out.with_suffix(".tokens.pt")
    torch.save(tokens, file)
    script = Path(__file__).with_name("peer_llmcompressor.py")
    command = [str(python), str(script), str(model), str(file), str(out), str(group_size), actorder]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    file.unlink()
    return dict(json.loads(run.stdout.strip().splitlines()[-1]))
