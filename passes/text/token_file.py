"""Keeps a text's token blocks as a file, made as a step of a run."""

from __future__ import annotations

import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from passes.files.checkpoint import Checkpoint, write_shard
from passes.ir.readers.headers import is_whole
from passes.steps.context import RunContext
from passes.steps.key import code_digest, content_key, file_identity, folder_identity
from passes.steps.step import Report
from passes.text.source import TextSource, token_blocks

if TYPE_CHECKING:
    import torch


def token_file(run: RunContext, model: Path, name: str, source: TextSource) -> Path:
    """Make the file with a text's token blocks, as a step; what the model writes itself, it writes on the run's first device."""
    identity = file_identity(Path(source.dataset))
    key = content_key("text", asdict(source), identity, folder_identity(model), code_digest())
    path = run.folder / f"text-{key}.safetensors"

    def make(report: Report) -> None:
        write_shard(path, {"input_ids": token_blocks(source, model, path.with_suffix(""), report, run.devices[0])})

    run.steps.run(name, key, is_whole(path), make)
    shutil.rmtree(path.with_suffix(""), ignore_errors=True)
    return path


def read_tokens(path: Path) -> torch.Tensor:
    """Read the token blocks of a file that `token_file` made."""
    tokens: torch.Tensor = Checkpoint.of_files([path]).read(["input_ids"])["input_ids"]
    return tokens
