"""The result's folder: a walk's shards, what lies outside of the blocks, the side files; made beside its place, published at the end."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from passes import chain
from passes.base import Pass
from passes.blocks.dense_model import DenseModel
from passes.errors import GoalMissedError, InputError
from passes.files.atomic import read_json, write_json
from passes.files.checkpoint import Checkpoint, copy_side_files, write_index, write_shard
from passes.files.os_errors import clear_disk_errors
from passes.formats.tensor import Tensor
from passes.ir.model import ModelIR
from passes.ir.quant_config.write import quantization_config
from passes.record import dataclass
from passes.run.result_folder import MARKER, claim
from passes.text.source import TextSource


@dataclass(frozen=True)
class Assembly:
    """What a result is made of: the chain and the description it leads to, the shards of its blocks, and what stays of `dense`."""

    passes: Sequence[Pass]
    planned: ModelIR
    dense: DenseModel
    shards: Sequence[Path]
    calibration: TextSource


def assemble(folder: Path, parts: Assembly, key: str) -> None:
    """Make a result's folder, and hold it against its description. The marker comes last."""
    passes, planned = parts.passes, parts.planned
    with clear_disk_errors(folder):
        claim(folder)
        for shard in parts.shards:
            _link(shard, folder / shard.name)
    write_shard(folder / "model-00000.safetensors", parts.dense.outer(planned))
    copy_side_files(parts.dense.weights.folder, folder)
    write_json(folder / "config.json", _config(passes, planned, parts.calibration))
    write_index(folder)
    wrong = differences(folder, planned)
    if wrong:
        raise GoalMissedError(
            "the checkpoint differs from its description: " + "; ".join(wrong[:5]),
            remedy="this is a defect of tightfit; nothing was published",
        )
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.name != MARKER}
    write_json(folder / MARKER, {"key": key, "passes": chain.to_json(passes), "files": files})


def holds(folder: Path, key: str, target: ModelIR) -> bool:
    """Return whether a folder has the result of `key` with all its files as they were made."""
    try:
        marker = read_json(folder / MARKER, "marker")
    except InputError:
        return False
    files = marker.get("files", {}).items()
    same = all((folder / name).is_file() and (folder / name).stat().st_size == size for name, size in files)
    return marker.get("key") == key and same and not differences(folder, target)


def differences(folder: Path, target: ModelIR) -> list[str]:
    """Say how a checkpoint differs from its description, tensor by tensor; empty when it is exactly as described."""
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


def _link(source: Path, target: Path) -> None:
    """A second name for the file; a copy where the file system knows no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
