"""A driver on a job file, its memory told at the end: `python peer_program.py DRIVER JOB`. Runs in a tool's Python, without tightfit."""

from __future__ import annotations

import json
import resource
import runpy
import sys


def main(driver: str, job: str) -> None:
    sys.path[:] = sys.path[1:]  # this file's folder, whose names would hide others
    sys.argv = [driver, job]
    runpy.run_path(driver, run_name="__main__")
    import torch

    gib = 1 << 30
    card = torch.cuda.max_memory_allocated() / gib if torch.cuda.is_available() else None
    host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / gib
    print(json.dumps({"card_peak_gib": card and round(card, 2), "host_peak_gib": round(host, 2)}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
