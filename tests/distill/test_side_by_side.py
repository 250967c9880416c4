"""Stages run side by side on a thread each, behind those that they go on from; what is broken stops what needs it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.prune_distill.__main__ import NEEDS, STAGES
from benchmarks.prune_distill.side_by_side import side_by_side

SCRIPT = """
import os, pathlib, sys, time
folder, stage, code = pathlib.Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
(folder / f"{stage}.began").write_text(f"{time.monotonic()} {os.environ['OMP_NUM_THREADS']}")
time.sleep(0.3)
(folder / f"{stage}.ended").write_text(str(time.monotonic()))
sys.exit(code)
"""


def commands(folder: Path, **codes: int) -> Callable[[str], Sequence[str]]:
    return lambda stage: [sys.executable, "-c", SCRIPT, str(folder), stage, str(codes.get(stage, 0))]


def test_a_stage_waits_for_what_it_needs_and_two_run_at_once(tmp_path: Path) -> None:
    began = time.monotonic()
    ended = side_by_side({"long": (), "first": (), "then": ("first",)}, commands(tmp_path, first=1), 2)
    assert ended == {"long": 0, "first": 1, "then": 0}  # a missed goal does not stop what goes on from a stage
    assert (tmp_path / "then.began").read_text().split()[1] == "1"
    assert float((tmp_path / "then.began").read_text().split()[0]) > float((tmp_path / "first.ended").read_text())
    assert float((tmp_path / "first.began").read_text().split()[0]) < float((tmp_path / "long.ended").read_text())
    assert time.monotonic() - began < 60


def test_what_is_broken_stops_what_needs_it(tmp_path: Path) -> None:
    assert side_by_side({"first": (), "then": ("first",), "last": ("then",)}, commands(tmp_path, first=3), 2) == {
        "first": 3,
        "then": 2,
        "last": 2,
    }
    assert not (tmp_path / "then.began").exists()


def test_every_stage_of_the_benchmark_is_begun_but_the_one_that_is_asked_for_by_name() -> None:
    assert {*STAGES} - {*NEEDS} == {"narrowed"} and {need for needs in NEEDS.values() for need in needs} <= {*STAGES}
