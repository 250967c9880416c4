"""Writes launch files into a result."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from targets.launch.request import LaunchFile

#: The folder inside a result that holds the launch files.
FOLDER = "launch"


def write_launch(result: Path, files: Iterable[LaunchFile]) -> None:
    """Write launch files into a result, each atomically."""
    write_files(result / FOLDER, files)


def write_files(folder: Path, files: Iterable[LaunchFile]) -> None:
    """Write files into a folder, each atomically; the folder is made where it is missing."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        path = folder / file.path
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        partial.write_text(file.text, encoding="utf-8")
        partial.chmod(0o755 if file.executable else 0o644)
        partial.replace(path)
