"""Runs an outside tool as a child process: its Python found, its output kept in a log and read for progress, its end explained."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from passes.backends.backend import Backend, P, Task
from passes.errors import DoesNotFitError, InputError, TightfitError
from passes.files.atomic import write_json
from passes.ir.readers.paths import python_named

_LINE_END = re.compile(r"[\r\n]+")
_SHOWN = 12


def backend_python(backend: Backend[P]) -> Path:
    """Return the Python that has the tool: as its variable names it, else this one. Raises InputError with what to install."""
    given = os.environ.get(backend.variable)
    if given:
        return python_named(given, f"{backend.variable} names a Python that has {backend.package}")
    if importlib.util.find_spec(backend.module) is None:
        raise InputError(
            f"this Python has no {backend.package}",
            remedy=f"pip install {backend.package} into a Python of its own and name it: {backend.variable}=/path/to/bin/python",
        )
    return Path(sys.executable)


def version(backend: Backend[P], python: Path) -> str:
    """Return the tool's installed version, asked of its Python. Raises InputError where it has none."""
    code = f"import importlib.metadata as m; print(m.version({backend.package!r}))"
    found = subprocess.run(
        [str(python), "-c", code], capture_output=True, text=True, check=False, env=_environment(backend)
    )
    if found.returncode:
        raise InputError(
            f"{python} has no {backend.package}",
            remedy=f"pip install {backend.package} there, or name another Python with {backend.variable}",
        )
    return found.stdout.strip()


def has_cuda(backend: Backend[P], python: Path, cards: str | None = None) -> bool:
    """Return whether the tool's torch sees a card; `cards`: as a task has them."""
    code = "import torch, sys; sys.exit(0 if torch.cuda.is_available() else 1)"
    return (
        subprocess.run(
            [str(python), "-c", code], capture_output=True, check=False, env=_environment(backend, cards)
        ).returncode
        == 0
    )


def run(backend: Backend[P], python: Path, task: Task[P], report: Callable[[int, int], None]) -> None:
    """Make the task's checkpoint in `task.out`. A second run resumes where the tool can, else begins again.

    Raises InputError where the tool needs a card that is not there, TightfitError with the end of its log when it fails.
    """
    if backend.needs_cuda(task.pass_) and not has_cuda(backend, python, task.cards):
        raise InputError(
            f"{backend.name} makes {task.pass_.text()} on an NVIDIA card only, and {python} sees none",
            remedy="run apply where the card is, or choose backend: native",
        )
    for leftover in (task.out, *(() if backend.resumes else (task.scratch,))):
        shutil.rmtree(leftover, ignore_errors=True)
    task.scratch.mkdir(parents=True, exist_ok=True)
    write_json(
        task.job,
        {
            "source": str(task.source),
            "out": str(task.out),
            "tokens": str(task.tokens),
            "options": dict(backend.options(task.pass_)),
        },
    )
    backend.prepare(task)
    log = task.work / "log.txt"
    with log.open("w", encoding="utf-8") as kept:
        child = subprocess.Popen(
            list(backend.command(python, task)), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            cwd=task.scratch, env=_environment(backend, task.cards), start_new_session=True,
        )  # fmt: skip
        assert child.stdout is not None
        try:
            for line in _lines(child.stdout):
                kept.write(line + "\n")
                if found := backend.progress(line):
                    report(*found)
            code = child.wait()
        finally:
            _end(child)
    if code or not task.out.is_dir():
        raise _failed(backend, code, log)


def _environment(backend: Backend[P], cards: str | None = None) -> dict[str, str]:
    """The tool's process knows nothing of this one's packages, and asks no network for what lies here."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV", "TQDM_DISABLE")}
    seen = {} if cards is None else {"CUDA_VISIBLE_DEVICES": cards}
    return kept | {"PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"} | seen | dict(backend.environment)


def _lines(stream: IO[bytes]) -> Iterator[str]:
    """Lines of output as they come; a bar that is drawn anew over itself is a line each time."""
    rest = ""
    while chunk := os.read(stream.fileno(), 1 << 16):
        *whole, rest = _LINE_END.split(rest + chunk.decode(errors="replace"))
        yield from whole
    if rest:
        yield rest


def _end(child: subprocess.Popen[bytes]) -> None:
    """Nothing of the tool outlives this process, whatever ended it."""
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _failed(backend: Backend[P], code: int, log: Path) -> TightfitError:
    with log.open(encoding="utf-8") as lines:
        last = "".join(
            f"    {line[:240].rstrip()}\n" for line in deque((said for said in lines if said.strip()), _SHOWN)
        )
    if "out of memory" in last.lower():
        return DoesNotFitError(
            f"{backend.name} ran out of memory:\n{last}",
            remedy="fewer or shorter calibration samples, or a larger card",
        )
    return TightfitError(
        f"{backend.name} ended with code {code} and left no checkpoint:\n{last}", remedy=f"its whole log: {log}"
    )
