"""What a cold start of `optimize plan` and `optimize check` takes, and what of it is loading.

    python -m benchmarks.cold_start [-n 7] [--keep]

Medians of N whole processes. Wall time is what a person waits; on a busy machine processor time says what the command itself costs, and
`imports` how much of that goes to loading the modules that it loads. Modules are compiled beforehand, as an installed package's are;
`uncompiled` is one run that finds none compiled and may write none. No network, no torch.
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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import measured
from benchmarks.plan_speed import GOALS, OPTIMIZE, ROOT, figures

#: Runs a command and names the modules that it loaded; and loads modules, those that cannot be loaded alone left out.
_NAME = """
import sys
from planner.cli.main import main
try: main()
except SystemExit: print(*sys.modules, file=sys.stderr)
"""
_LOAD = """
import sys
from importlib import import_module
for name in sys.argv[1:]:
    try: import_module(name)
    except Exception: pass
"""


def environment(**changes: str) -> dict[str, str]:
    """Return what a run sees: no network, compiled modules read and written."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return kept | {"HF_HUB_OFFLINE": "1", **changes}


def timed(command: Sequence[str], env: Mapping[str, str]) -> tuple[float, float]:
    """Return wall and processor seconds of one run. Exit 3 (nothing fits) is an answer too."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, check=False, cwd=ROOT, env=env, capture_output=True)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in (0, 3):
        raise SystemExit(f"{' '.join(command)} ended with {done.returncode}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def loading(arguments: Sequence[str]) -> list[str]:
    """Return the command that loads the modules which `optimize` loads for these arguments."""
    named = subprocess.run(
        [sys.executable, "-c", _NAME, *arguments], check=True, cwd=ROOT, env=environment(), capture_output=True, text=True
    )  # fmt: skip
    return [sys.executable, "-c", _LOAD, *(name for name in named.stderr.split() if name != "__main__")]


def taken(arguments: Sequence[str], goal: float, runs: int, folder: Path) -> dict[str, Any]:
    """Return the seconds of a command by what they are of. `folder`: where its plan may be saved."""
    words, arguments = " ".join(arguments), list(arguments)
    arguments = [*arguments, *(["-o", str(folder / "a.plan.json")] if arguments[0] == "plan" else [])]
    command, loads = [str(OPTIMIZE), *arguments], loading(arguments)
    timed(command, environment())
    walls, cpus = zip(*(timed(command, environment()) for _ in range(runs)), strict=True)
    imports = [timed(loads, environment())[1] for _ in range(runs)]
    empty = environment(PYTHONPYCACHEPREFIX=str(folder / "none"), PYTHONDONTWRITEBYTECODE="1")
    return {
        "what": words, "goal": goal, "wall": walls, "processor": cpus, "imports": imports, "uncompiled": [timed(command, empty)[1]],
    }  # fmt: skip


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """Give what is printed of one command."""
    share = statistics.median(found["imports"]) / statistics.median(found["processor"])
    for part in ("wall", "processor", "imports", "uncompiled"):
        yield figures(part, found[part], found["goal"]) + f"   {share:.0%} of the processor's" * (part == "imports")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-n", type=int, default=7, help="runs of each command")
    parser.add_argument("--keep", action="store_true", help="keep the figures for the page")
    asked = parser.parse_args()
    runs, load_before, found = asked.n, os.getloadavg()[0], []
    print(f"load before: {load_before:.1f} on {os.cpu_count()} cores; {runs} runs of each, one more to warm the disk")
    with tempfile.TemporaryDirectory() as folder:
        for arguments, goal in GOALS.items():
            print(f"optimize {' '.join(arguments)}")
            found.append(taken(arguments, goal, runs, Path(folder)))
            print("\n".join(lines(found[-1])), flush=True)
    if asked.keep:
        measured.write("planner-cold", "python -m benchmarks.cold_start --keep", found, load_before)


if __name__ == "__main__":
    main()
