"""The process of one stage: reads its job from stdin, calls its function, notes what it finds."""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import sys
from pathlib import Path

from benchmarks.on_card.staging import Notes, NotHereError, Setup

#: prctl(2): the signal that a process gets when its parent ends.
_PR_SET_PDEATHSIG = 1


def main() -> None:
    # A run that is killed takes its stage with it, and that ends what it started: an engine would hold the card.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    job = json.load(sys.stdin)
    setup, notes = Setup.of_json(job["setup"]), Notes(Path(job["notes"]))
    # What is measured of this machine stays with the run; text and models come from where they are.
    os.environ["TIGHTFIT_HOME"] = str(setup.work / "home")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    module, _, name = job["function"].partition(":")
    try:
        getattr(importlib.import_module(module), name)(setup, notes, **job["options"])
    except NotHereError as reason:
        notes(skipped=str(reason))


if __name__ == "__main__":
    main()
