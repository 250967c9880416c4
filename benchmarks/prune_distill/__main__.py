"""Prunes and distils SmolLM2 and holds what comes of it against stated goals.

    python -m benchmarks.prune_distill [STAGE ...]      exit code 1 where a goal is missed

Stages: prune, recovery, blockwise, forecasts; all by default. Two cores, fixed seeds; what was made is kept in the cache folder, so that a
run that was killed goes on and a second one only prints. Each stage says which processor time it took.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time

from benchmarks.prune_distill.bench import opened

STAGES = {
    "prune": "benchmarks.prune_distill.prune:lines", "recovery": "benchmarks.prune_distill.distill:recovery",
    "blockwise": "benchmarks.prune_distill.distill:blockwise", "forecasts": "benchmarks.prune_distill.distill:forecasts",
}  # fmt: skip


def main() -> int:
    """Run the stages that are asked for, print their lines, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("stages", nargs="*", choices=[*STAGES], default=[*STAGES])
    began, missed = time.monotonic(), 0
    with opened() as bench:
        for stage in parser.parse_args().stages:
            module, _, name = STAGES[stage].partition(":")
            worked = time.process_time()
            for line in getattr(importlib.import_module(module), name)(bench):
                print(line.text(), flush=True)
                missed += not line.met
            print(f"{stage}: {time.process_time() - worked:.0f} s of processor time", flush=True)
    print(f"{missed} goals missed; {time.monotonic() - began:.0f} s")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
