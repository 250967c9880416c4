"""Processes of their own without the seconds that loading takes: forks of one that has loaded torch, transformers and the command line.

What a process is tested for stays real: signals, exit codes, limits, streams, and what a kill leaves behind.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload([
    "pytest", "torch", "transformers.models.llama.modeling_llama", "transformers.models.auto.tokenization_auto", "planner.cli.commands",
    "planner.apply", "passes.run.execute",
])  # fmt: skip
_PATIENCE_SECONDS = 300


@dataclass(frozen=True)
class Ended:
    """How a process ended (minus the signal where one ended it) and what it printed."""

    returncode: int
    stdout: str
    stderr: str


class Child:
    """A process that runs `function(*arguments)` on one thread, in a folder, with additions to its environment."""

    def __init__(
        self,
        function: Callable[..., object],
        *arguments: Any,
        folder: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._streams = [tempfile.NamedTemporaryFile() for _ in range(2)]  # noqa: SIM115 (kept until it has ended)
        self._encoding = (environment or {}).get("PYTHONIOENCODING", "utf-8")
        names = [stream.name for stream in self._streams]
        work = (function, arguments)
        self._process = _FORKS.Process(
            target=_run, args=(names, self._encoding, str(folder or Path.cwd()), dict(environment or {}), work)
        )
        self._process.start()

    @property
    def pid(self) -> int:
        """The process's number."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        return self._process.exitcode is not None

    def wait(self) -> Ended:
        """Wait until it has ended; one that does not within minutes is killed, and says so by its exit code."""
        self._process.join(_PATIENCE_SECONDS)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
        assert self._process.exitcode is not None
        out, err = (Path(stream.name).read_text(encoding=self._encoding) for stream in self._streams)
        return Ended(self._process.exitcode, out, err)


def run(function: Callable[..., object], *arguments: Any, **options: Any) -> Ended:
    """Run a function in a process of its own and wait for its end."""
    return Child(function, *arguments, **options).wait()


def optimize(*arguments: object) -> None:
    """Run the command line, as a process's only work."""
    from planner.cli.main import main

    sys.argv = ["optimize", *map(str, arguments)]
    main()


def _run(
    streams: list[str], encoding: str, folder: str, environment: dict[str, str], work: tuple[Callable[..., object], Any]
) -> None:
    import torch

    for number, (stream, name) in enumerate(zip((sys.stdout, sys.stderr), streams, strict=True), start=1):
        handle = os.open(name, os.O_WRONLY | os.O_APPEND)
        os.dup2(handle, number)
        os.close(handle)
        stream.reconfigure(encoding=encoding)  # type: ignore[union-attr]
    gc.freeze()  # what is loaded is no garbage
    os.environ.update(environment)
    os.chdir(folder)
    torch.set_num_threads(1)
    function, arguments = work
    function(*arguments)
