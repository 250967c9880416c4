"""What long work says of itself where there is no terminal, and how it ends from outside."""

from __future__ import annotations

import re
import subprocess
import sys
from io import StringIO

import pytest
from rich.console import Console
from rich.text import Text

from passes.steps.progress import Progress
from planner.cli.progress import Course, Lines, _bars, left


def test_lines_say_step_count_pass_loss_and_what_is_left() -> None:
    said: list[str] = []
    lines = Lines(said.append)
    lines.report(Progress("walk", 0, 1, "", 0.0))
    for block in range(1, 31):
        lines.report(Progress("walk", block, 30, "quantize{gptq, w4a16-g64}, loss 0.25", 3.0 * block))
    assert said[0].strip() == "walk"
    assert said[1].split("  ")[1:] == ["walk 2/30", "6 s, about 84 s left", "quantize{gptq, w4a16-g64}, loss 0.25"]
    assert said[-1].split("  ")[1:3] == ["walk 30/30", "90 s"]
    assert len(said) == 16, "every other block: not more than a line in five seconds"


def test_what_is_kept_from_before_is_said_in_a_line_of_its_own() -> None:
    said: list[str] = []
    Lines(said.append).report(Progress("evaluation text", 1, 1, "", 93.4, kept=True))
    assert said == ["  evaluation text      kept from before, 93 s saved"] and len(said[0]) <= 60
    drawn = StringIO()
    with _bars(Console(file=drawn, force_terminal=True, width=60, highlight=False)) as report:
        report(Progress("evaluation text", 1, 1, "", 93.4, kept=True))
        report(Progress("walk", 1, 30, "", 3.0))
    assert "kept from before, 93 s saved" in drawn.getvalue()


def test_what_is_left_after_a_resume_counts_from_there() -> None:
    assert left(Progress("walk", 21, 30, "", 4.0), Progress("walk", 24, 30, "", 16.0)) == ", about 24 s left"
    assert left(Progress("walk", 1, 30, "", 3.0), Progress("walk", 1, 30, "", 3.0)) == ""


def test_what_is_left_is_not_said_where_it_has_run_out() -> None:
    course = Course()
    for second, done in enumerate((0, 100, 200, 271)):
        course.note(done, 272, float(second))
    assert course.left(3.0) is not None and course.left(3.005) is not None
    assert course.left(4.0) is None and course.left(58.0) is None, "55 s after two were left"
    slow = Course()
    for block in range(5):
        slow.note(block, 30, 10.0 * block)
    assert (slow.left(40.0), slow.left(47.0)) == (260.0, 253.0)
    assert Course().left(1.0) is None


def test_the_clock_of_a_full_bar_goes_on_until_the_next_step_begins() -> None:
    now = [0.0]
    drawn = StringIO()
    screen = Console(file=drawn, force_terminal=True, width=80, get_time=lambda: now[0])
    with _bars(screen) as report:
        for second, event in enumerate(((0, 1), (1, 2), (2, 2))):
            now[0] = float(second)
            report(Progress("llmcompressor", *event, "", now[0]))
        now[0] = 40.0
        report(Progress("assemble", 0, 1, "", 0.0))
    tool = [line for line in Text.from_ansi(drawn.getvalue()).plain.splitlines() if "llmcompressor" in line]
    assert "0:00:40 0:00:00" in tool[-1], tool[-1]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_the_first_signal_ends_and_those_after_it_do_not_cut_the_end_off(name: str) -> None:
    code = f"""
import os, signal
from planner.cli.interruption import Interrupted, interruptible
signal.signal(signal.{name}, signal.SIG_DFL)  # pytest itself may run where it is ignored
interruptible()
try:
    os.kill(os.getpid(), signal.{name})
except Interrupted as error:
    os.kill(os.getpid(), signal.SIGINT)
    print("tidied", error.exit_code)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["tidied", "130"] and not run.stderr


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    code = """
import os, signal
from planner.cli.interruption import interruptible
signal.signal(signal.SIGHUP, signal.SIG_IGN)
interruptible()
os.kill(os.getpid(), signal.SIGHUP)
print("nohup")
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "nohup\n"


@pytest.mark.parametrize("width", [60, 80])
def test_bars_keep_their_times_whatever_is_said_beside_them(width: int) -> None:
    written = StringIO()
    screen = Console(file=written, force_terminal=True, width=width)
    with _bars(screen) as report:
        report(Progress("evaluate", 17, 1076, "KL 0.0123 nats of 76 batches, four more of them to be evaluated", 3.0))
    lines = Text.from_ansi(written.getvalue()).plain.splitlines()
    bars = [line for line in lines if "evaluate" in line]
    assert bars
    assert all(re.search(r"\d:\d\d:\d\d (\d:\d\d:\d\d|-:--:--)", line) for line in bars)
