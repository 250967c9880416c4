"""Ctrl-C, and the signals by which a scheduler or a closed terminal ends a job: one message, one exit code, nothing half-written.

The first signal ends the command; those that follow, while files are closed and children ended, are ignored: an impatient second
Ctrl-C does not cut the tidying off.
"""

from __future__ import annotations

import signal
from types import FrameType

#: What shells give a command that Ctrl-C ended: 128 + SIGINT.
EXIT_CODE = 130
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """The command was ended from outside. No `Exception`: nothing that handles errors handles this."""

    exit_code = EXIT_CODE
    message = "interrupted"
    remedy = "run the same command again; what was finished is kept, and work goes on there"

    def __str__(self) -> str:
        return f"{self.message}\n  {self.remedy}"


def interruptible() -> None:
    """Have the signals raise `Interrupted` in the main thread, once; one that is ignored (`nohup`, jobs in the background) stays so."""
    for number in _SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    for each in _SIGNALS:
        signal.signal(each, signal.SIG_IGN)
    raise Interrupted
