"""Writes files whole or not at all, and reads back the JSON that was written so."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from passes.errors import InputError
from passes.files.os_errors import clear_disk_errors
from passes.ir.fields import file_bytes, json_object


def write_json(path: Path, value: Any) -> None:
    """Write one JSON document atomically."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with whole_or_nothing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Return a JSON object that tightfit wrote. Raises InputError where it is missing or damaged; `what` names it for people."""
    try:
        return json_object(file_bytes(path), f"{path} is no {what}", remedy="make it again")
    except OSError as error:
        raise InputError(f"{path} is no {what}: {error}", remedy="make it again") from None


def readable(path: Path) -> bool:
    """Return whether a JSON object is there and whole."""
    try:
        read_json(path, "JSON object")
    except InputError:
        return False
    return True


@contextmanager
def whole_or_nothing(path: Path) -> Iterator[Path]:
    """Yield a place to write a file at, renamed to `path` at the end; nothing is left of it where writing fails."""
    if path.exists() and not path.is_file():
        raise InputError(f"cannot write {path}: it is no file", remedy="name another place to write to")
    partial = path.with_name(path.name + ".partial")
    with clear_disk_errors(path):
        try:
            yield partial
            partial.replace(path)
        finally:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
