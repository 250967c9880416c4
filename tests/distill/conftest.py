"""The tiny Llama of the walk's tests, and a training of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from passes.distill.trainer import TrainingJob
from passes.files.checkpoint import write_shard
from tests.walk.conftest import llama, llama_ir, tokens

__all__ = ["llama", "llama_ir", "tokens"]


def training_job(student: Path, place: Path, length: int = 32, **changes: object) -> TrainingJob:
    """A training in `place` on 26 sequences of random bytes, of which two judge, without a teacher."""
    place.mkdir()
    text = torch.randint(0, 256, (26, length), generator=torch.Generator().manual_seed(3))
    write_shard(place / "text.safetensors", {"input_ids": text})
    asked = TrainingJob(
        str(student), str(place / "text.safetensors"), "", str(place / "training"), device="cpu", processes=1, apart=False, visible=None,
        objective="forward_kl", temperature=1.0, top_k=16, hidden=0.0, learning_rate=1e-2, steps=20, rows=4, at_once=2, held_out=2,
        seed=0,
    )  # fmt: skip
    return replace(asked, **changes)  # type: ignore[arg-type]
