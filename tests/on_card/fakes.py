"""Stages that a test runs in place of the real ones."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from benchmarks.on_card.staging import Notes, NotHereError, Setup


def fine(setup: Setup, note: Notes, number: int) -> None:
    note(number=number, shape=setup.shape)
    note(headline=f"number {number}")


def broken(setup: Setup, note: Notes) -> None:
    note(before=1)
    raise ValueError("this went wrong")


def crashes(setup: Setup, note: Notes) -> None:
    os.abort()


def lacks(setup: Setup, note: Notes) -> None:
    raise NotHereError("the tool is not there")


def hangs(setup: Setup, note: Notes) -> None:
    """Starts a process in a session of its own, as an engine is started, tells its number, and goes on for ever."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    note(child=child.pid, own=os.getpid())
    time.sleep(600)
