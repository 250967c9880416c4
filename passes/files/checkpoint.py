"""Checkpoints on disk: reading tensors by mmap, writing shards atomically.

A shard becomes visible under its name only when it is whole (write to `<name>.partial`, then rename), so a process killed
at any moment leaves whole shards or none. Reading maps the file: only the pages of the tensors asked for are touched.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from passes.errors import InputError
from passes.files.atomic import whole_or_nothing, write_json
from passes.files.os_errors import clear_disk_errors
from passes.formats.tensor import Tensor
from passes.ir.readers.headers import read_file_header
from passes.ir.sources import CARRIED

if TYPE_CHECKING:
    import torch

INDEX = "model.safetensors.index.json"


class Weights(Protocol):
    """Where weights come from: a checkpoint, a renumbered view of one, or a quantized one decoded as it is read."""

    @property
    def folder(self) -> Path:
        """The folder with the checkpoint's files, or with those that a view shows: a tokenizer lies there too."""

    def __contains__(self, name: str) -> bool: ...

    def read(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """Return the named tensors."""


class Checkpoint:
    """The safetensors files of one folder, read only. Tensors are found by name; nothing is loaded before it is asked for."""

    def __init__(self, folder: Path) -> None:
        self._open(folder, sorted(folder.glob("*.safetensors")))

    @classmethod
    def of_files(cls, paths: Sequence[Path]) -> Checkpoint:
        """Return a checkpoint of exactly these files of one folder."""
        out = cls.__new__(cls)
        out._open(paths[0].parent, paths)
        return out

    def _open(self, folder: Path, paths: Sequence[Path]) -> None:
        self.folder = folder
        self._files: dict[str, Path] = {}
        self._described: dict[str, Tensor] = {}
        if not paths:
            raise InputError(
                f"{folder} holds no safetensors files", remedy="name a folder with the model's weights in safetensors"
            )
        for path in paths:
            for tensor in read_file_header(path).values():
                self._files[tensor.name] = path
                self._described[tensor.name] = tensor

    def __contains__(self, name: str) -> bool:
        return name in self._files

    @property
    def names(self) -> tuple[str, ...]:
        """All tensor names, in file order."""
        return tuple(self._files)

    def describe(self) -> Iterator[Tensor]:
        """Name, dtype and shape of every tensor, from the headers."""
        return iter(self._described.values())

    def read(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
        """Return the named tensors, mapped from their files; the caller copies what it changes."""
        from safetensors import safe_open

        by_file: dict[Path, list[str]] = {}
        for name in names:
            if name not in self._files:
                raise InputError(
                    f"{self.folder} has no tensor {name!r}", remedy="check that the checkpoint is complete"
                )
            by_file.setdefault(self._files[name], []).append(name)
        out: dict[str, torch.Tensor] = {}
        for path, wanted in by_file.items():
            with safe_open(path, framework="pt") as file:
                out.update((name, file.get_tensor(name)) for name in wanted)
        return out


def write_shard(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write one safetensors file atomically. The bytes depend on the tensors only."""
    from safetensors.torch import save_file

    with whole_or_nothing(path) as partial:
        save_file(
            {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
            partial,
            metadata={"format": "pt"},
        )
        partial.chmod(_ordinary_mode())  # safetensors makes its files private, but an engine may run as another user


def _ordinary_mode() -> int:
    """The mode that a plain `open` gives a new file."""
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def write_index(folder: Path) -> None:
    """Write the index of a sharded checkpoint; none for a single `model.safetensors`."""
    shards = sorted(folder.glob("*.safetensors"))
    if len(shards) == 1 and shards[0].name == "model.safetensors":
        return
    weight_map: dict[str, str] = {}
    total = 0
    for shard in shards:
        for tensor in read_file_header(shard).values():
            weight_map[tensor.name] = shard.name
            total += tensor.bytes
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))})


def copy_side_files(source: Path, target: Path) -> None:
    """Carry tokenizer, chat template and generation settings along. The source is only read."""
    for name in CARRIED:
        if (source / name).is_file():
            with clear_disk_errors(target / name):
                (target / name).write_bytes((source / name).read_bytes())
