"""Feeds broken and malicious input to everything that reads what others wrote: specs, configs, headers, plans, options.

    python -m benchmarks.hostile_inputs [SEED] [N] [FROM]

Each input is a good one, mutated. An answer or a TightfitError is right, anything else a defect. Each defect is printed as it is found, each
new slowest input too, and a line for every hundred inputs; a run that was stopped goes on at the number FROM. The exit code is 1 where
there is a defect, an input over 5 s or a peak over 1 GiB. `tests/planner/test_hostile_inputs.py` is a short run of it.
"""

from __future__ import annotations

import contextlib
import io
import os
import resource
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.hostile_inputs.run import peak_bytes, trials

#: What an input may take.
LIMIT_S, LIMIT_BYTES = 5.0, 1 << 30
#: What the whole process may ask for: an input that wants more ends in a MemoryError, which is a defect, instead of ending the machine.
_ALL_BYTES = 8 << 30
_EVERY = 100


def main() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    resource.setrlimit(resource.RLIMIT_AS, (_ALL_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    seed, count, first = (*map(int, sys.argv[1:]), *(0, 10_000, 0)[len(sys.argv) - 1 :])
    began, defects, slowest_s = time.monotonic(), 0, 0.0
    with tempfile.TemporaryDirectory() as name, contextlib.redirect_stderr(io.StringIO()):
        folder = Path(name)
        for trial in trials(seed, range(first, count), folder):
            where = f"input {trial.number:,} of seed {seed} ({trial.surface}, {trial.seed})"
            if trial.problem is not None:
                defects += 1
                print(f"defect: {where}: {trial.problem}\n    {trial.shown(folder)!r}", flush=True)
            if trial.took_s > slowest_s:
                slowest_s = trial.took_s
                print(f"slowest: {where}: {slowest_s:.2f} s", flush=True)
            if (trial.number + 1) % _EVERY == 0 or trial.number + 1 == count:
                print(
                    f"{trial.number + 1:,} of {count:,} in {time.monotonic() - began:.0f} s: defects {defects}, slowest {slowest_s:.2f} s, "
                    f"peak {peak_bytes() / 2**20:.0f} MiB",
                    flush=True,
                )
    sys.exit(1 if defects or slowest_s > LIMIT_S or peak_bytes() > LIMIT_BYTES else 0)


if __name__ == "__main__":
    main()
