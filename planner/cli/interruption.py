"""Ctrl-C, and the signals by which a scheduler or a closed terminal ends a job: one message, one exit code, nothing half-written.

The first signal ends the command. Those that follow within some seconds, while files are closed and children ended, are ignored: an
impatient second Ctrl-C does not cut the tidying off. A later one ends it again, should something have swallowed the first.
"""

from __future__ import annotations

import math
import signal
import time
from types import FrameType

#: What shells give a command that Ctrl-C ended: 128 + SIGINT.
EXIT_CODE = 130
#: How long the end of a command may take before a signal counts again.
_TIDYING_SECONDS = 10.0
_last = -math.inf
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """The command was ended from outside. No `Exception`: nothing that handles errors handles this."""

    exit_code = EXIT_CODE
    message = "interrupted"
    remedy = "the same command begins again; an apply, or a plan that measures, goes on where it was"

    def __str__(self) -> str:
        return f"{self.message}\n  {self.remedy}"


def interruptible() -> None:
    """Have the signals raise `Interrupted` in the main thread, once; one that is ignored (`nohup`, jobs in the background) stays so."""
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _last
    now = time.monotonic()
    if now - _last > _TIDYING_SECONDS:
        _last = now
        raise Interrupted
