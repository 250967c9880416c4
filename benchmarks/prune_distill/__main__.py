"""Prunes and distils a real model and holds what comes of it against stated goals.

    python -m benchmarks.prune_distill [STAGE ...] [--model smollm2|gemma3] [--work FOLDER] [--blocks N]      exit code 1: a goal is missed

Stages: blockwise, importance, recovery, compensation, forecasts. Without one the texts are made, then all of these, two at a time with a thread
each (`benchmarks.prune_distill.side_by_side`), in at most forty minutes on two quiet cores (what a run took stands on the page). By name
alone: narrowed, distillation of the narrower model, behind compensation. Fixed seeds; what
was made is kept in `--work`, by default in the cache folder, so that a run that was killed goes on and a second one only prints: a run
from nothing wants an empty folder. What each stage found is kept in `benchmarks/data/prune_distill/`, from which
`python -m benchmarks.prune_distill.results` makes the page. `--blocks`: of the model only the first so many, to see that a stage runs and
what it will take; its figures mean nothing and are not kept.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from benchmarks.prune_distill import results
from benchmarks.prune_distill.bench import WORK, Figure, Line, opened
from benchmarks.prune_distill.side_by_side import side_by_side
from benchmarks.prune_distill.subject import SUBJECTS, Subject

#: Where each stage is, and the stages whose steps it goes on from. In the order in which they are begun: the longest first.
STAGES = {
    "blockwise": "benchmarks.prune_distill.distill:blockwise", "importance": "benchmarks.prune_distill.prune:importance",
    "recovery": "benchmarks.prune_distill.distill:recovery", "compensation": "benchmarks.prune_distill.prune:compensation",
    "forecasts": "benchmarks.prune_distill.distill:forecasts", "narrowed": "benchmarks.prune_distill.distill:narrowed",
}  # fmt: skip
#: The stages that a whole run has.
NEEDS: Mapping[str, Sequence[str]] = {
    "blockwise": (), "importance": (), "recovery": ("importance",), "compensation": ("importance",), "forecasts": ("recovery",),
}  # fmt: skip


def main() -> int:
    """Run the stages that are asked for, print their lines, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("stages", nargs="*", help=f"of {', '.join(STAGES)}; {', '.join(NEEDS)} by default")
    parser.add_argument("--model", choices=SUBJECTS, default="smollm2")
    parser.add_argument(
        "--work", type=Path, default=WORK, help="where what is made is kept; a new folder for a run from nothing"
    )
    parser.add_argument(
        "--blocks", type=int, help="of the model only the first so many; nothing is kept of what is found"
    )
    asked = parser.parse_args()
    if unknown := [stage for stage in asked.stages if stage not in STAGES]:  # argparse's `choices` refuse none at all
        parser.error(f"no stage {unknown[0]!r}: {', '.join(STAGES)}")
    subject, missed = SUBJECTS[asked.model], 0
    if not asked.stages:
        return whole(subject, asked.work, asked.blocks)
    for stage in asked.stages:
        try:
            missed += alone(stage, subject, asked.work, asked.blocks)
        except Exception:
            logging.exception("%s broke off", stage)  # Python would end with 1, as what misses a goal does
            return 2
    return 1 if missed else 0


def alone(stage: str, subject: Subject, work: Path, blocks: int | None) -> int:
    """Run one stage in this process; return how many goals it misses."""
    (module, _, name), worked = STAGES[stage].partition(":"), time.process_time()
    with opened(subject, work, blocks) as bench:
        steps, found = len(bench.run.steps.finished), []
        for line in getattr(importlib.import_module(module), name)(bench):
            print(line.text(), flush=True)
            found.append(line)
        made = {step.key: step for step in bench.run.steps.finished[steps:]}.values()
        worked, seconds = time.process_time() - worked, sum(step.seconds for step in made)
        print(f"{stage}: {worked:.0f} s of processor time", flush=True)
        if blocks is None:
            spent = results.Spent(seconds, worked, torch.get_num_threads(), any(step.reused for step in made))
            print(f"kept in {results.keep(subject, stage, found, spent)}", flush=True)
    return sum(not line.met for line in found)


def whole(subject: Subject, work: Path, blocks: int | None) -> int:
    """Run all stages, two at a time, and judge what that took where it began with nothing; return the exit code."""
    began, anew = time.monotonic(), not (work.is_dir() and any(work.iterdir()))
    with opened(subject, work, blocks) as bench:
        bench.losses(bench.source)  # what several stages need is made before them
    texts = time.monotonic() - began
    print(f"texts and the model's own losses: {texts:.0f} s", flush=True)
    given = ["--model", subject.name, "--work", str(work), *(["--blocks", str(blocks)] if blocks is not None else [])]
    ended = side_by_side(
        NEEDS,
        lambda stage: [sys.executable, "-m", "benchmarks.prune_distill", stage, *given],
        len(os.sched_getaffinity(0)),
    )
    seconds, worked = time.monotonic() - began, time.process_time() + _of_children()
    line = Line(
        f"all stages{', from nothing' if anew else ''}",
        Figure(seconds / 60),
        "minutes",
        subject.minutes if anew else None,
    )
    print(
        f"{line.text()}\n{worked:.0f} s of processor time; missed or broken: {[each for each, code in ended.items() if code] or 'none'}"
    )
    if anew and blocks is None and max(ended.values()) <= 1:
        spent = results.Spent(seconds, worked, len(os.sched_getaffinity(0)), reused=False)
        print(f"kept in {results.keep(subject, 'whole', [line], spent)}")
    return max(0 if line.met else 1, *ended.values())


def _of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    sys.exit(main())
