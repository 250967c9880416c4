"""Keys of steps: sha256 over a step's inputs, its options and the code that computes it."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

#: Files whose text decides what a step writes; their digest is part of every key.
_CODE = ("*.py", "quantize/*.py", "formats/*.py", "prune/*.py", "ir/model.py")


def content_key(*parts: Any) -> str:
    """A name for JSON values: equal parts, equal key."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:20]


@lru_cache(maxsize=1)
def code_digest() -> str:
    """sha256 over the code whose change may change what a step writes."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for pattern in _CODE:
        for path in sorted(root.glob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def folder_identity(folder: Path) -> list[Any]:
    """What tells one source from another without reading its weights: names, sizes and times of its files."""
    return [file_identity(path) for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.json")])]


def file_identity(path: Path) -> list[Any]:
    """Name, size and time of a file; empty for what is no file (the name of a data set)."""
    return [path.name, path.stat().st_size, path.stat().st_mtime_ns] if path.is_file() else []
