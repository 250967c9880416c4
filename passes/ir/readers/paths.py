"""Paths that a person or the environment names: only what the system can look for is handed on."""

from __future__ import annotations

import os
from pathlib import Path

from passes.errors import InputError


def path_named(text: str | Path, folder: Path = Path()) -> Path:
    """Resolve the path that a person wrote, relative to a folder, `~` spelt out. Raises InputError where nothing can be looked for."""
    try:
        path = folder / Path(text).expanduser()
        path.exists()
    except (OSError, ValueError, RuntimeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise InputError(
            f"{str(text)!r:.200} cannot be looked for ({why})",
            remedy="name a folder, a file, or something that a list here has",
        ) from None
    return path


def python_named(text: str, remedy: str) -> Path:
    """Find the Python that a person wrote: itself, or its environment's folder. Raises InputError with the remedy where there is none."""
    path = path_named(text)
    path = path / "bin" / "python" if path.is_dir() else path
    if not path.exists():
        raise InputError(f"no Python at {path}", remedy=remedy)
    return path.absolute()


def home_folder() -> Path:
    """Name the user's folder. Raises InputError where the system knows none."""
    try:
        return Path.home()
    except RuntimeError:
        said = os.environ.get("HOME")
        raise InputError(
            f"no home folder is known (HOME is {said!r:.80})", remedy="set HOME to the folder where files are kept"
        ) from None


def own_folder() -> Path:
    """Name tightfit's folder below the user's: `~/.cache/tightfit`."""
    return home_folder() / ".cache" / "tightfit"


def cache_root() -> Path:
    """Name the folder where tightfit keeps what it read: `$TIGHTFIT_HOME`, else `$XDG_CACHE_HOME/tightfit`, by default `~/.cache/tightfit`.

    Raises InputError where the system cannot even look there: a name that is too long, a folder that may not be read.
    """
    own, caches = os.environ.get("TIGHTFIT_HOME"), os.environ.get("XDG_CACHE_HOME")
    root = Path(own) if own else Path(caches) / "tightfit" if caches else own_folder()
    try:
        root.is_dir()
    except OSError as error:
        raise InputError(
            f"{str(root)[:80]!r}, where files are kept, cannot be looked at: {error.strerror}",
            remedy=f"set {'TIGHTFIT_HOME' if own else 'XDG_CACHE_HOME'} to a folder that can be, or leave it out",
        ) from None
    return root
