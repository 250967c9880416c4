"""The page as text: it needs nothing beside it, and nothing that others wrote is markup in it."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from planner.report.facts import Facts
from planner.report.page import page
from planner.report.view import view
from tests.planner.conftest import run

#: A megabyte and a half: what fits an e-mail.
_LARGEST = 1_500_000


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def tags(html: str) -> list[tuple[str, dict[str, str | None]]]:
    parser = _Tags()
    parser.feed(html)
    return parser.tags


def test_it_is_one_file_that_loads_nothing(made: Facts) -> None:
    html = page(view(made))
    assert len(html.encode()) < _LARGEST
    assert not re.search(r"https?://|@import|url\(", html)
    assert not [attributes for _, attributes in tags(html) if "src" in attributes or "style" in attributes]
    assert [a["href"] for t, a in tags(html) if t == "link"] == ["data:,"]


def test_every_section_is_there(made: Facts) -> None:
    ids = {attributes.get("id") for _, attributes in tags(page(view(made)))}
    assert {"story", "memory", "choices", "goals", "load", "work", "provenance", "candidates"} <= ids


def test_every_mark_of_a_chart_says_what_it_is_and_every_chart_is_a_table_too(made: Facts) -> None:
    found = tags(page(view(made)))
    marks = [attributes for _, attributes in found if attributes.get("role") == "img"]
    assert len(marks) > 50 and all(mark.get("aria-label") for mark in marks)
    assert sum(tag == "table" for tag, _ in found) >= 6
    assert all(attributes.get("scope") for tag, attributes in found if tag == "th")


def test_what_others_wrote_is_text(planned: Facts) -> None:
    hostile = "<script>alert(1)</script>\"'><img src=x>"
    laid = view(replace(planned, plan=replace(planned.plan, model=hostile), notes=(hostile,)))
    found = tags(page(laid))
    assert sum(tag == "script" for tag, _ in found) == 1
    assert not [tag for tag, _ in found if tag == "img"]


def test_a_plan_that_chose_nothing_has_a_page(planned: Facts) -> None:
    html = page(view(Facts(replace(planned.plan, chosen=None))))
    assert "Nothing among" in html and 'id="memory"' not in html


def test_the_command_writes_it(plan_file: Path, monkeypatch: Any, capsys: Any, tmp_path: Path) -> None:
    code, out, _ = run(monkeypatch, capsys, "report", plan_file, "-o", tmp_path / "page.html")
    assert code == 0 and "page.html" in out
    assert (tmp_path / "page.html").read_text().startswith("<!DOCTYPE html>")


@pytest.mark.parametrize("name", ["nothing.json", "spec.yaml"])
def test_what_is_no_plan_is_refused(name: str, monkeypatch: Any, capsys: Any, tmp_path: Path) -> None:
    (tmp_path / "spec.yaml").write_text("model: a")
    code, _, err = run(monkeypatch, capsys, "report", tmp_path / name)
    assert code == 2 and "plan" in err and "Traceback" not in err
