"""Prunes and distils SmolLM2 and holds what comes of it against stated goals.

    python -m benchmarks.prune_distill [STAGE ...] [--blocks N]      exit code 1 where a goal is missed

Stages: prune, recovery, blockwise, forecasts; all by default. Seconds of processor time of a run from nothing, on two cores that other jobs shared:
1,283, 1,146, 1,461, the text before the first stage and what else is measured once some 850, forecasts 580 in a run before: more than the 4,800 that forty
minutes of two cores are. A run from beginning to end on two quiet cores was not timed. Fixed seeds; what was made is kept in the cache folder, so
that a run that was killed goes on and a second one only prints. What each stage found is kept in `benchmarks/data/prune_distill/`, from which
`python -m benchmarks.prune_distill.results` makes the page. `--blocks`: of the model only the first so many, to see that a stage runs and
what it will take; its figures mean nothing and are not kept.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time

from benchmarks.prune_distill import results
from benchmarks.prune_distill.bench import opened

STAGES = {
    "prune": "benchmarks.prune_distill.prune:measured", "recovery": "benchmarks.prune_distill.distill:recovery",
    "blockwise": "benchmarks.prune_distill.distill:blockwise", "forecasts": "benchmarks.prune_distill.distill:forecasts",
}  # fmt: skip


def main() -> int:
    """Run the stages that are asked for, print their lines, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("stages", nargs="*", help=f"of {', '.join(STAGES)}; all by default")
    parser.add_argument(
        "--blocks", type=int, help="of the model only the first so many; nothing is kept of what is found"
    )
    asked = parser.parse_args()
    if unknown := [stage for stage in asked.stages if stage not in STAGES]:  # argparse's `choices` refuse none at all
        parser.error(f"no stage {unknown[0]!r}: {', '.join(STAGES)}")
    began, missed = time.monotonic(), 0
    with opened(blocks=asked.blocks) as bench:
        for stage in asked.stages or STAGES:
            module, _, name = STAGES[stage].partition(":")
            worked, steps, found = time.process_time(), len(bench.run.steps.finished), []
            for line in getattr(importlib.import_module(module), name)(bench):
                print(line.text(), flush=True)
                found.append(line)
            worked = time.process_time() - worked
            print(f"{stage}: {worked:.0f} s of processor time", flush=True)
            missed += sum(not line.met for line in found)
            if not asked.blocks:
                print(f"kept in {results.keep(stage, found, bench.run.steps.finished[steps:], worked)}")
    print(f"{missed} goals missed; {time.monotonic() - began:.0f} s")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
