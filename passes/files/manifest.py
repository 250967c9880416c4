"""The list of a result's files with their bytes and sha256, by which others see that it is what was made.

`digest` is one sha256 over the list: who has it from another place (a release page, a log of `apply`) trusts the whole folder by it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from passes.errors import InputError
from passes.files.atomic import read_json, write_json
from passes.record import dataclass

NAME = "manifest.json"
#: How files end that an engine, or whoever reads a result, takes for part of it: one that is in no list was added.
_READ = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".json", ".py", ".so", ".jinja", ".model")
_CHUNK = 1 << 24
#: Files up to so many bytes are read where only sizes are compared of others.
_SMALL = 1 << 20


@dataclass(frozen=True, slots=True)
class Damage:
    """A file that is not what was made: `missing`, of another `size`, `changed` with its size kept, or `added`."""

    file: str
    kind: str
    message: str


def write_manifest(folder: Path) -> str:
    """Write the list of every file of a folder, and return its digest."""
    return _write(folder, {name: _entry(path) for name, path in _files(folder)})


def renew(folder: Path, names: Iterable[str]) -> str | None:
    """Write a folder's list with some files as they are now, which came or changed by ours; the others stay as they were made. Returns its
    digest, None for a folder without a list. A list that was edited stays as it is, so that it goes on saying so.
    """
    if (digest := manifest_digest(folder)) is None:
        return None
    files = read_json(folder / NAME, "manifest")["files"]
    if digest != _digest(files):
        return digest
    return _write(folder, {**files, **{name: _entry(folder / name) for name in names}})


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
    if (
        not isinstance(files, Mapping)
        or said.get("digest") != _digest(files)
        or not all(map(_is_entry, files.values()))
    ):
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
    for name, _ in _files(folder):
        if name not in files and name.endswith(_READ):
            yield Damage(name, "added", f"{name} was added since: it is not in the list")


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        hidden = name.startswith(".") or "/." in name
        if path.is_file() and name != NAME and not hidden and not name.endswith(".partial"):
            yield name, path


def _is_entry(said: Any) -> bool:
    return isinstance(said, Mapping) and said.keys() >= {"bytes", "sha256"}


def _entry(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": _sha256(path)}


def _write(folder: Path, files: Mapping[str, Any]) -> str:
    digest = _digest(files)
    write_json(folder / NAME, {"format_version": "1", "files": files, "digest": digest})
    return digest


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
