"""The page in Chromium: it opens, hovers, filters, goes by keyboard, prints, fits a phone, and the console stays empty."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from planner.report.facts import Facts
from planner.report.page import page
from planner.report.view import View, view
from tests.conftest import missing


@pytest.fixture(scope="module")
def laid(mixed: Facts) -> View:
    return view(mixed)


@pytest.fixture(scope="module")
def seen(laid: View, browser_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    file = tmp_path_factory.mktemp("page") / "page.html"
    file.write_text(page(laid), encoding="utf-8")
    drive = Path(__file__).with_name("drive.py")
    done = subprocess.run(
        [browser_python, drive, file], capture_output=True, text=True, check=False, timeout=120, cwd=file.parent
    )
    if "Executable doesn't exist" in done.stderr:
        missing("no chromium on PATH", "`make browser` installs it")
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_it_opens_without_a_word_on_the_console_and_asks_for_nothing(seen: Any, laid: View) -> None:
    assert seen["trouble"] == []
    assert seen["title"] == laid.title


def test_every_term_of_memory_is_told_on_hover(seen: Any, laid: View) -> None:
    assert laid.memory is not None
    assert seen["terms"] == [f"{term.name}: {term.said}; {term.note}" for term in laid.memory.terms]
    assert seen["left"] is None
    assert seen["tapped"].startswith("weights: ")


def test_bits_of_a_layer_are_told_on_hover(seen: Any) -> None:
    assert seen["bits"] == "q_proj, layer 0: 16.0 bits a weight (bf16)"


def test_points_are_told_and_filtered(seen: Any, laid: View) -> None:
    rows, points = laid.choices.rows, [point for chart in laid.choices.charts for point in chart.points]
    assert seen["chosen"].startswith(rows[0].said)
    assert seen["points"] == seen["again"] == len(points)
    with_awq = [row for row in rows if "awq" in f"{row.name} {row.reasons}".lower()]
    assert seen["said"] == f"{len(with_awq)} of {len(rows)}"
    assert 0 < seen["filtered"] < len(points)
    assert seen["standing"] == sum(rows[point.row].standing != "lost" for point in points)


def test_the_keyboard_goes_from_point_to_point(seen: Any, laid: View) -> None:
    assert seen["stops"] == len(laid.choices.charts)
    assert seen["focused"].startswith("Chosen: ")
    assert seen["moved"] not in (None, seen["focused"])
    assert seen["closed"] is None


def test_it_is_read_in_the_dark_in_print_on_a_phone_and_without_a_script(seen: Any, laid: View) -> None:
    assert seen["ground"]["light"] != seen["ground"]["dark"]
    assert seen["printed"]["filter"] is False and seen["printed"]["bytes"] > 20_000
    assert seen["wide"] == {"desk": False, "phone": False}
    assert seen["bare"] == len(laid.choices.rows) == len(seen["reasons"])
