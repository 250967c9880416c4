"""The list of a result's files with their bytes and sha256, by which others see that it is what was made.

`digest` is one sha256 over the list: who has it from another place (a release page, a log of `apply`) trusts the whole folder by it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from passes.errors import InputError
from passes.files.atomic import read_json, write_json
from passes.record import dataclass

NAME = "manifest.json"
#: Files that come later and are in no list.
_LATER = frozenset({NAME, "verified.json"})
_CHUNK = 1 << 24
#: Files up to so many bytes are read where only sizes are compared of others.
_SMALL = 1 << 20


@dataclass(frozen=True, slots=True)
class Damage:
    """A file that is not what was made: `missing`, of another `size`, or `changed` with its size kept."""

    file: str
    kind: str
    message: str


def write_manifest(folder: Path) -> str:
    """Write the list of every file of a folder, and return its digest."""
    files = {name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for name, path in _files(folder)}
    digest = _digest(files)
    write_json(folder / NAME, {"format_version": "1", "files": files, "digest": digest})
    return digest


def manifest_digest(folder: Path) -> str | None:
    """Return the digest of a folder's list; None where it has none."""
    if not (folder / NAME).is_file():
        return None
    digest = read_json(folder / NAME, "manifest").get("digest")
    return digest if isinstance(digest, str) else None


def damage(folder: Path, *, quick: bool = False) -> tuple[Damage, ...]:
    """Return every file that is not what was made. `quick`: large files by their size alone. Raises InputError for an unreadable list.

    A folder without a list, of an older version, has none to tell.
    """
    if not (folder / NAME).is_file():
        return ()
    said = read_json(folder / NAME, "manifest")
    files = said.get("files")
    if not isinstance(files, Mapping) or said.get("digest") != _digest(files):
        return (Damage(NAME, "changed", f"{NAME} was edited: its digest is not that of its list"),)
    return tuple(_differences(folder, files, quick))


def _differences(folder: Path, files: Mapping[str, Any], quick: bool) -> Iterator[Damage]:
    for name, made in files.items():
        path = folder / name
        if not path.is_file():
            yield Damage(name, "missing", f"{name} is missing")
        elif (size := path.stat().st_size) != made["bytes"]:
            yield Damage(name, "size", f"{name} has {size:,} bytes, {made['bytes']:,} were written")
        elif (not quick or size <= _SMALL) and _sha256(path) != made["sha256"]:
            yield Damage(name, "changed", f"{name} was changed since it was made: its sha256 is another")


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in _LATER and not name.endswith(".partial"):
            yield name, path


def _sha256(path: Path) -> str:
    whole = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                whole.update(chunk)
    except OSError as error:
        raise InputError(
            f"{path} cannot be read: {error.strerror}", remedy="check the disk and its permissions"
        ) from None
    return whole.hexdigest()


def _digest(files: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
