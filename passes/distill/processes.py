"""A training in processes of its own, one a card, by `accelerate launch`; none of them outlives the process that began it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from passes.errors import DoesNotFitError, TightfitError

#: Seconds between two looks at how far a training is, and lines of its log that are shown where it fails.
_LOOK_SECONDS, _SHOWN = 0.5, 12
#: How Python's last line of a traceback begins.
_ERROR = re.compile(r"(\[rank\d+\]: *)?[\w.]*(Error|Exception)\b: ")


def launch(module: str, job: Path, processes: int, visible: str | None, tell: Callable[[], None]) -> None:
    """Run `python -m module job` in so many processes and wait for their end; `tell` is called while they work.

    `visible`: the CUDA_VISIBLE_DEVICES of the processes, None for this one's. Raises DoesNotFitError where a card's memory does not
    suffice, TightfitError with the end of their log where one of them fails.
    """
    program = [sys.executable, "-m", "accelerate.commands.launch", *(["--multi_gpu"] if processes > 1 else [])]
    program += ["--num_processes", str(processes), "--num_machines", "1", "--mixed_precision", "no"]
    program += ["--dynamo_backend", "no", "--main_process_port", "0", "-m", module, str(job)]
    environment = dict(os.environ) | ({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
    log = job.with_name("log.txt")
    with log.open("w", encoding="utf-8") as kept:
        # Nothing is ever written to their input: that it ends says that this process has.
        child = subprocess.Popen(
            program, stdin=subprocess.PIPE, stdout=kept, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )  # fmt: skip
        try:
            while child.poll() is None:
                try:
                    child.wait(_LOOK_SECONDS)
                except subprocess.TimeoutExpired:
                    tell()
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
    if child.returncode:
        raise _failed(child.returncode, log, program)


def end_with_parent() -> None:
    """Have this process end as soon as the one that launched it has, whatever ended that."""

    def wait() -> None:
        os.read(sys.stdin.fileno(), 1)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _failed(code: int, log: Path, program: Sequence[str]) -> TightfitError:
    lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    # The first error is that of a process; what follows is what its launcher makes of it.
    cause = next((line for line in lines if _ERROR.match(line)), "\n".join(lines[-_SHOWN:]))
    if "out of memory" in cause.lower():
        return DoesNotFitError(
            f"a card's memory does not suffice for the training: {cause}",
            remedy="`distill: lora_rank:`, shorter sequences (`distill: length:`), or `method: blockwise`",
        )
    return TightfitError(
        f"the training ended with {code}: {cause}",
        remedy=f"its whole log: {log}; what was trained is kept, and the same command goes on. By hand: {' '.join(program)}",
    )
