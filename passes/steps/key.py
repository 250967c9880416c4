"""Keys of steps: sha256 over a step's inputs, its options and the code that computes it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import passes
from passes.registry import packages

#: Libraries whose version decides what a step writes, beside the code of passes; all of it is part of every key.
_LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "compressed-tensors")


def content_key(*parts: Any) -> str:
    """Return a name for JSON values: equal parts, equal key."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:20]


@lru_cache(maxsize=1)
def code_digest() -> str:
    """Return a sha256 over what may change what a step writes: all code of passes, the versions of the libraries that compute, and of
    the packages that add to the tables of names.
    """
    root = Path(passes.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.read_bytes())
    for library in _LIBRARIES:
        try:
            digest.update(version(library).encode())
        except PackageNotFoundError:
            digest.update(b"none")
    for package in packages():
        digest.update(package.encode())
    return digest.hexdigest()


def source_identity(folder: Path, dtype: Any, devices: Sequence[Any]) -> list[Any]:
    """Return what every step on a source depends on besides its own options: the files, what computes and in what, the code."""
    return [folder_identity(folder), str(dtype), [device.type for device in devices], code_digest()]


def folder_identity(folder: Path) -> list[Any]:
    """Return what tells one source from another without reading its weights: names, sizes and times of its files."""
    return [file_identity(path) for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.json")])]


def file_identity(path: Path) -> list[Any]:
    """Return name, size and time of a file; empty for what is no file (the name of a data set)."""
    return [path.name, path.stat().st_size, path.stat().st_mtime_ns] if path.is_file() else []
