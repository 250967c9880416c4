"""Feeds broken and malicious input to everything that reads what others wrote: specs, configs, headers, plans, options.

    python -m benchmarks.hostile_inputs [SEED] [N]

Each input is a good one, mutated. An answer or a TightfitError is right, anything else a defect. Printed are the kinds of defects with an
example each, the slowest inputs and the peak of memory; the exit code is 1 where there is a defect, an input over 5 s or a peak over 1 GiB.
`tests/planner/test_hostile_inputs.py` is a short run of it.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.hostile_inputs.run import run

#: What an input may take.
LIMIT_S, LIMIT_BYTES = 5.0, 1 << 30


def main() -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    seed, count = (int(sys.argv[1]) if len(sys.argv) > 1 else 0), (int(sys.argv[2]) if len(sys.argv) > 2 else 10_000)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        report = run(seed, count, Path(folder))
    print(f"{count:,} inputs of seed {seed} in {time.monotonic() - began:.0f} s: {dict(report.inputs)}")
    print(f"defects {report.defects.total()}, kinds {len(report.defects)}; peak {report.peak_bytes / 2**20:.0f} MiB")
    for key, times in report.defects.most_common():
        print(f"{times:5d}  {key}\n       {report.examples[key]!r}")
    for took, kind, each in report.slowest:
        print(f"{took:5.2f} s  {kind} (seed {each})")
    sys.exit(1 if report.defects or report.slowest[0][0] > LIMIT_S or report.peak_bytes > LIMIT_BYTES else 0)


if __name__ == "__main__":
    main()
