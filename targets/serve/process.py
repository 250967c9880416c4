"""Starts an engine from its launch files as a child process, watches it, measures it, and stops it whatever happens."""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from passes.errors import InputError, TightfitError
from passes.ir.readers.paths import own_folder, python_named
from passes.record import dataclass

#: How long an engine may take until it answers; a cold start of a large model compiles for minutes.
START_SECONDS = 900.0
_STOP_SECONDS = 20.0
#: The line of a traceback that says what happened.
_CAUSE = re.compile(r"\b\w+(Error|Exception): ")


class EngineError(TightfitError):
    """The engine did not start or died: the message holds the end of its log."""

    exit_code = 4


@dataclass(frozen=True, slots=True)
class Served:
    """A running engine: where it answers, its log, how long it took to start, and the session that its processes are of."""

    host: str
    port: int
    log: Path
    start_seconds: float
    session: int | None = None


def engine_python(given: Path | None = None) -> Path:
    """Return the Python that has the engine: as given, else TIGHTFIT_ENGINE, else where `make engine` puts it. Raises InputError."""
    if (named := named_python(given, "TIGHTFIT_ENGINE")) is not None:
        return named
    # Where `make engine` puts engines unless told otherwise, one folder a version.
    if made := sorted(own_folder().glob("engine-*/bin/python")):
        return made[-1]
    raise InputError(
        "which Python has the engine?",
        remedy="`make engine` sets one up; name it with --engine or TIGHTFIT_ENGINE=/path/to/bin/python",
    )


def named_python(given: Path | None, *variables: str) -> Path | None:
    """Find the Python as given, else as the first variable that is set names it: itself or its environment's folder. Raises InputError."""
    text = str(given) if given else next((os.environ[name] for name in variables if os.environ.get(name)), "")
    if not text:
        return None
    return python_named(text, f"name the engine's Python with --engine or {variables[0]}")


@contextmanager
def serving(
    script: Path,
    python: Path | None,
    *,
    start_seconds: float = START_SECONDS,
    arguments: Sequence[str] = (),
    variables: Mapping[str, str] | None = None,
) -> Iterator[Served]:
    """Start `script` (a launch folder's run.sh) on a free local port; yields when it answers, stops it at the end.

    The engine runs in a process group of its own, which is ended as a whole. It does not see this process's PYTHONPATH, which is for
    another Python, unless `variables` (added to its environment) hands it on. Raises EngineError with the log's end.
    """
    port = _free_port()
    environment = engine_environment() | {"HOST": "127.0.0.1", "PORT": str(port)} | dict(variables or {})
    if python is not None:
        environment["TIGHTFIT_ENGINE"] = str(python)
    descriptor, name = tempfile.mkstemp(prefix="tightfit-engine-", suffix=".log")
    log = Path(name)
    began = time.monotonic()
    with os.fdopen(descriptor, "wb") as stream:
        child = subprocess.Popen(
            ["bash", str(script), *arguments],
            stdout=stream,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
    try:
        with _ending_on_signals():
            _wait(child, port, log, began + start_seconds)
            yield Served("127.0.0.1", port, log, time.monotonic() - began, child.pid)
    finally:
        _stop(child)
        log.unlink(missing_ok=True)


def run_to_end(command: Sequence[str], log: Path, *, seconds: float, environment: Mapping[str, str]) -> None:
    """Run a program of an engine's Python, its output to `log`, in a process group of its own that ends with this call whatever happens.

    Raises EngineError with the log's end where it fails or takes longer than `seconds`.
    """
    with log.open("wb") as stream:
        child = subprocess.Popen(
            list(command), stdout=stream, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=dict(environment),
            start_new_session=True,
        )  # fmt: skip
    try:
        with _ending_on_signals():
            code = child.wait(seconds)
    except subprocess.TimeoutExpired as error:
        raise EngineError(
            f"the engine was not done after {seconds:.0f} s:\n{_tail(log)}", remedy=_advice(log)
        ) from error
    finally:
        _stop(child)
    if code:
        raise EngineError(f"the engine ended with code {code}:\n{_tail(log)}", remedy=_advice(log))


def engine_environment() -> dict[str, str]:
    """Return the environment of an engine's process: this one's, without what says where this process's own packages are."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return kept | {"PYTHONUNBUFFERED": "1"}


@contextmanager
def _ending_on_signals() -> Iterator[None]:
    """Turn a polite end of this process into SystemExit, so that the engine is stopped on the way out; what handles one already stays."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    unhandled = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL]
    before = {number: signal.signal(number, leave) for number in unhandled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def _wait(child: subprocess.Popen[bytes], port: int, log: Path, deadline: float) -> None:
    while time.monotonic() < deadline:
        if child.poll() is not None:
            raise EngineError(
                f"the engine ended with code {child.returncode} before it answered:\n{_tail(log)}", remedy=_advice(log)
            )
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/health")
            if connection.getresponse().status == 200:
                return
        except (OSError, http.client.HTTPException):
            pass  # not listening yet
        time.sleep(0.5)
    raise EngineError(f"the engine did not answer in time:\n{_tail(log)}", remedy="see its log above")


def _tail(log: Path, lines: int = 25) -> str:
    """The end of the log, after the first messages of exceptions: the cause is often far above the end."""
    everything = log.read_text(errors="replace").splitlines()
    causes = [line for line in everything[:-lines] if _CAUSE.search(line)][:5]
    shown = [*causes, "…", *everything[-lines:]] if causes else everything[-lines:]
    return "\n".join(f"    {line[:240]}" for line in shown)


def _advice(log: Path) -> str:
    text = log.read_text(errors="replace")
    if "No module named" in text or "vllm: not found" in text or "vllm: command not found" in text:
        return "this Python lacks the engine or a part of it: name the one that has it with --engine or TIGHTFIT_ENGINE"
    if "out of memory" in text.lower() or "less than requested memory" in text:
        return "memory ran out: other processes may hold some; free it, or plan with a `reserve`"
    return "the end of its log stands above"


def _stop(child: subprocess.Popen[bytes]) -> None:
    """End the engine's whole process group: politely, then for good."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, number)
        except ProcessLookupError:
            break
        try:
            child.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            continue
        if not _group_alive(child.pid):
            break
        time.sleep(1.0)
    child.wait()


def _group_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True
