"""What the source brings behind its last block on a text, kept for other plans and outputs: each result of one source is held against it.

<cache>/judged/<key>/00000.safetensors    of batch 0
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from passes.errors import TightfitError
from passes.ir.readers.paths import cache_root

#: So many are kept at most, and so many bytes: the one that was longest not asked for goes first.
_MOST, _MOST_BYTES = 16, 1 << 30


def bring(key: str, states: Path) -> None:
    """Put what was kept under a key where a run looks for it, unless it has its own. What cannot be read is made anew by who asked."""
    with suppress(OSError, TightfitError):
        kept = _root() / key
        if kept.is_dir() and not states.exists():
            shutil.copytree(kept, states)
            os.utime(kept)


def keepable(states_bytes: int) -> bool:
    """Return whether so many bytes would be kept: more need not be written for it."""
    return states_bytes <= _MOST_BYTES


def keep(key: str, states: Path) -> None:
    """Keep what a run has found; without a word where there is no room, or no right to."""
    with suppress(OSError, TightfitError):
        kept = _root() / key
        if kept.is_dir() or not keepable(_bytes(states)):
            return
        partial = kept.with_name(f"{key}.{os.getpid()}.partial")
        try:
            shutil.copytree(states, partial)
            partial.replace(kept)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        _let_go()


def _root() -> Path:
    return cache_root() / "judged"


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def _let_go() -> None:
    """Remove the oldest beyond what is kept, and what a process that was killed left half-copied."""
    newest = sorted(_root().iterdir(), key=lambda each: each.stat().st_mtime, reverse=True)
    taken = 0
    for number, each in enumerate(newest):
        taken += _bytes(each)
        if number >= _MOST or taken > _MOST_BYTES:
            shutil.rmtree(each, ignore_errors=True)
