"""Stages end alone: what crashes, hangs or lacks a tool takes no other with it, and what is finished is not run again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.on_card.stages import STAGES
from benchmarks.on_card.staging import LIMIT_S, Setup, Stage, cause, run_all, run_stage

FAKES = "tests.on_card.fakes"
FINE = Stage("fine", f"{FAKES}:fine", {"number": 7})


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(tmp_path / "work", "tiny")


def test_a_stage_that_breaks_takes_no_other_with_it(setup: Setup, tmp_path: Path) -> None:
    stages = (
        Stage("broken", f"{FAKES}:broken"), Stage("lacks", f"{FAKES}:lacks"), Stage("crashes", f"{FAKES}:crashes"),
        Stage("unknown", f"{FAKES}:nothing_of_that_name"), FINE,
    )  # fmt: skip
    said: list[str] = []
    found = run_all(stages, setup, tmp_path / "out", say=said.append)["stages"]
    assert {name: record["status"] for name, record in found.items()} == {
        "broken": "failed", "lacks": "skipped", "crashes": "failed", "unknown": "failed", "fine": "ok"
    }  # fmt: skip
    assert found["broken"]["reason"] == "ValueError: this went wrong"
    assert found["broken"]["found"] == {"before": 1}
    assert "raise ValueError" in "\n".join(found["broken"]["log"])
    assert found["lacks"]["reason"] == "the tool is not there"
    assert found["fine"]["found"] == {"number": 7, "shape": "tiny", "headline": "number 7"}
    assert json.loads((tmp_path / "out" / "on_card.json").read_text())["stages"] == found
    assert json.loads((setup.work / "stages" / "fine.json").read_text()) == found["fine"]
    assert len(said) == len(stages) and "number 7" in said[-1]


def test_a_stage_that_hangs_is_ended_with_all_that_it_started(setup: Setup) -> None:
    for limit_s in (
        2.0,
        8.0,
        32.0,
        128.0,
    ):  # until it is enough for the stage to begin, on a machine as busy as it may be
        record = run_stage(Stage("hangs", f"{FAKES}:hangs", limit_s=limit_s), setup)
        assert record["status"] == "timeout"
        if "child" in record["found"]:
            break
    assert _ended(record["found"]["child"]) and _ended(record["found"]["own"])


def test_a_run_that_is_killed_takes_its_stage_with_it(setup: Setup) -> None:
    program = (
        "from pathlib import Path; from benchmarks.on_card.staging import *; "
        f"run_stage(Stage('hangs', '{FAKES}:hangs'), Setup(Path({str(setup.work)!r}), 'tiny'))"
    )
    run = subprocess.Popen([sys.executable, "-c", program])
    notes = setup.work / "stages" / "hangs.notes"
    while not notes.exists():
        assert run.poll() is None, "it ended before its stage began"
        time.sleep(0.1)
    started = json.loads(notes.read_text())
    run.kill()
    run.wait()
    assert _ended(started["own"])
    # What it started in a session of its own ends when the next stage begins.
    run_stage(FINE, setup)
    assert _ended(started["child"])


def _ended(process: int) -> bool:
    """Whether a process that was told to end does so; asked for minutes, which a busy machine may take."""
    for _ in range(1200):
        if not _alive(process):
            return True
        time.sleep(0.1)
    return False


def _alive(process: int) -> bool:
    """Whether a process runs; one that ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_what_is_finished_is_not_run_again(setup: Setup, tmp_path: Path) -> None:
    broken, out = Stage("broken", f"{FAKES}:broken"), tmp_path / "out"
    first = run_all((FINE, broken), setup, out)["stages"]
    # As on a machine where the output folder is emptied between two calls.
    (out / "on_card.json").unlink()
    second = run_all((FINE, broken), setup, out)["stages"]
    assert second["fine"] == first["fine"]
    assert second["broken"]["began"] != first["broken"]["began"]
    again = run_all((FINE,), setup, out, again=True)["stages"]
    assert again["fine"]["began"] != first["fine"]["began"]
    larger = run_all((FINE,), Setup(setup.work, "8b"), out)["stages"]
    assert larger["fine"]["found"]["shape"] == "8b"


def test_the_cause_of_a_failure_is_the_last_line_that_names_an_error() -> None:
    assert cause("Traceback\n  x\nValueError: wrong\n  remedy\n") == "ValueError: wrong"
    assert cause("no error named\nends here\n") == "ends here"
    assert cause("") == "it printed nothing"


def test_every_stage_names_a_function_and_ends_within_two_minutes() -> None:
    root = Path(__file__).parents[2]
    for stage in STAGES:
        module, _, name = stage.function.partition(":")
        source = (root / f"{module.replace('.', os.sep)}.py").read_text()
        assert f"def {name}(setup: Setup, note: Notes" in source, stage.name
        assert stage.limit_s <= LIMIT_S < 120
    assert len({stage.name for stage in STAGES}) == len(STAGES)
