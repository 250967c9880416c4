"""The result's folder: a walk's shards, what lies outside of the blocks, the side files; made beside its place, published at the end."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from passes import chain
from passes.base import Pass
from passes.errors import GoalMissedError, InputError
from passes.files.atomic import read_json, write_json
from passes.files.checkpoint import Checkpoint, copy_side_files, write_index, write_shard
from passes.files.os_errors import clear_disk_errors
from passes.formats.tensor import Tensor
from passes.ir.model import ModelIR
from passes.ir.quant_config.write import quantization_config
from passes.run.result_folder import MARKER, claim
from passes.text.source import TextSource

if TYPE_CHECKING:
    import torch

    from passes.files.checkpoint import Weights


def assemble(
    folder: Path,
    target: ModelIR,
    passes: Sequence[Pass],
    shards: Sequence[Path],
    source: Path,
    calibration: TextSource,
    key: str,
) -> None:
    """Make a result's folder from the shards of a walk on `source`, and hold it against its description. The marker comes last."""
    with clear_disk_errors(folder):
        claim(folder)
        for shard in shards:
            _link(shard, folder / shard.name)
    write_shard(folder / "model-00000.safetensors", outer_tensors(target, Checkpoint(source)))
    copy_side_files(source, folder)
    write_json(folder / "config.json", _config(passes, target, calibration))
    write_index(folder)
    wrong = differences(folder, target)
    if wrong:
        raise GoalMissedError(
            "the checkpoint differs from its description: " + "; ".join(wrong[:5]),
            remedy="this is a defect of tightfit; nothing was published",
        )
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.name != MARKER}
    write_json(folder / MARKER, {"key": key, "passes": chain.to_json(passes), "files": files})


def holds(folder: Path, key: str, target: ModelIR) -> bool:
    """Whether a folder has the result of `key` with all its files as they were made."""
    try:
        marker = read_json(folder / MARKER, "marker")
    except InputError:
        return False
    files = marker.get("files", {}).items()
    same = all((folder / name).is_file() and (folder / name).stat().st_size == size for name, size in files)
    return marker.get("key") == key and same and not differences(folder, target)


def differences(folder: Path, target: ModelIR) -> list[str]:
    """How a checkpoint differs from its description, tensor by tensor; empty when it is exactly as described."""
    try:
        found = {tensor.name: tensor for tensor in Checkpoint(folder).describe()}
    except InputError as error:
        return [error.message]
    expected = {tensor.name: tensor for tensor in target.tensors()}
    out = [f"{name} is missing" for name in expected if name not in found]
    out += [f"{name} is not in the description" for name in found if name not in expected]
    out += [
        f"{name}: {_form(found[name])} instead of {_form(tensor)}"
        for name, tensor in expected.items()
        if name in found and found[name] != tensor
    ]
    return out


def _config(passes: Sequence[Pass], target: ModelIR, text: TextSource) -> dict[str, Any]:
    config: dict[str, Any] = {key: value for key, value in target.config.items() if key != "quantization_config"}
    for pass_ in passes:
        config = pass_.config(config, text)
    if "quantization_config" in config:
        return config
    quantized = quantization_config(target)
    return config if quantized is None else {**config, "quantization_config": quantized}


def _form(tensor: Tensor) -> str:
    return f"{tensor.dtype}{list(tensor.shape)} ({tensor.bytes} bytes)"


def outer_tensors(target: ModelIR, weights: Weights) -> dict[str, torch.Tensor]:
    """What is outside of the decoder's blocks, as it was."""
    return weights.read(target.outer_names())


def _link(source: Path, target: Path) -> None:
    """A second name for the file; a copy where the file system knows no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
