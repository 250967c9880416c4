"""Prunes and distils SmolLM2 and holds what comes of it against stated goals.

    python -m benchmarks.prune_distill [STAGE ...]      exit code 1 where a goal is missed

Stages: prune, distill; both by default. Two cores, fixed seeds; what was made is kept in the cache folder, so that a run that was killed
goes on and a second one only prints.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time

from benchmarks.prune_distill.bench import opened

STAGES = ("prune", "distill")


def main() -> int:
    """Run the stages that are asked for, print their lines, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("stages", nargs="*", choices=STAGES, default=STAGES)
    began, missed = time.monotonic(), 0
    with opened() as bench:
        for stage in parser.parse_args().stages:
            for line in importlib.import_module(f"benchmarks.prune_distill.{stage}").lines(bench):
                print(line.text(), flush=True)
                missed += not line.kept
    print(f"{missed} goals missed; {time.monotonic() - began:.0f} s")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
