"""What the commands of a page print, put below them while the site is built: they are run, in the order of their page."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from reference.commands import BLOCK, Command, File, steps

ROOT = Path(__file__).parents[1]
#: Pages whose readers want to see what they will see, and commands whose answer is of no one machine.
PAGES = ("index.md", "tasks/")
_COMMANDS = ("plan", "check", "explain", "diff", "drift")
#: Of a longer answer so many lines are shown.
_LINES = 60


def answered(pages: Mapping[str, str]) -> dict[str, str]:
    """Return pages, by where they stand, with the answers of their commands, folded, below the blocks that these stand in. Pages are done
    side by side.
    """
    with ThreadPoolExecutor(os.cpu_count()) as at_once:
        return dict(zip(pages, at_once.map(_page, pages.values()), strict=True))


def _page(page: str) -> str:
    with TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "examples", Path(folder) / "examples")
        return BLOCK.sub(lambda block: block[0] + "".join(_answers(block[0], Path(folder))), page)


def _answers(block: str, folder: Path) -> Iterator[str]:
    for step in steps(block):
        if isinstance(step, File):
            (folder / step.name).write_text(step.text, encoding="utf-8")
        elif _needs_nothing(step):
            printed = _printed(step, folder)
            if step.words[1] in _COMMANDS:
                head = step.line.replace('"', "'")
                yield f'\n\n??? example "{head}"\n\n    ```text\n{_indented(printed)}\n    ```'


def _needs_nothing(step: Command) -> bool:
    """Whether it runs here: what takes a card, and what reads a result, does not."""
    return (
        step.takes is None
        and step.words[0] == "optimize"
        and "out/small" not in step.line
        and "--live" not in step.line
    )


def _printed(step: Command, folder: Path) -> str:
    if step.words[1] == "doctor":
        return ""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT), "COLUMNS": "110"}
    command = [sys.executable, "-m", "planner.cli", *step.words[1:]]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != step.exit_code:
        raise RuntimeError(f"{step.line} ended with {done.returncode}: {done.stderr}")
    return done.stdout.strip("\n") or done.stderr.strip("\n")


def _indented(text: str) -> str:
    lines = text.splitlines()
    shown = lines if len(lines) <= _LINES else [*lines[:_LINES], f"… ({len(lines) - _LINES} more lines)"]
    return "\n".join(f"    {line}".rstrip() for line in shown)
