"""How long `optimize plan` and `optimize check` take, whole process, from a cold start: median and spread of N runs.

    python -m benchmarks.plan_speed [-n 15]

Wall time is what a person waits; on a busy machine processor time says what the command itself costs. No network, no torch.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
OPTIMIZE = Path(sys.executable).with_name("optimize")
#: what is run → the goal in seconds
GOALS: dict[tuple[str, ...], float] = {
    ("plan", "examples/llama-3.3-70b-rtx4090.yaml"): 0.5,
    ("plan", "examples/qwen2.5-32b-rtx4090.yaml"): 0.5,
    ("check", "--model", "llama-3.1-8b", "--gpu", "24GB"): 0.4,
}


def timed(command: Sequence[str]) -> tuple[float, float]:
    """Wall and processor seconds of one run. Exit 3 (nothing fits) is an answer too."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    code = subprocess.run(
        command,
        check=False,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    ).returncode
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if code not in (0, 3):
        raise SystemExit(f"{' '.join(command)} ended with {code}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=15, help="runs of each command")
    runs = parser.parse_args().n
    print(
        f"load before: {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; {runs} runs of each, one more to warm the disk"
    )
    with tempfile.TemporaryDirectory() as folder:
        for arguments, goal in GOALS.items():
            saved = ["-o", str(Path(folder) / "a.plan.json")] if arguments[0] == "plan" else []
            command = [str(OPTIMIZE), *arguments, *saved]
            timed(command)
            walls, cpus = zip(*(timed(command) for _ in range(runs)), strict=True)
            print(f"optimize {' '.join(arguments)}")
            for name, seconds in (("wall", walls), ("processor", cpus)):
                low, high = min(seconds), max(seconds)
                print(
                    f"  {name:9s} median {statistics.median(seconds):.3f} s   {low:.3f} to {high:.3f}   goal {goal} s"
                )


if __name__ == "__main__":
    main()
