"""Pages hold what benchmarks kept, and the site says where that is of other files than are here."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import results, stored_tables

KEPT = sorted(path.stem for path in results.KEPT.glob("*.json"))
PAGES = {path.name: path.read_text(encoding="utf-8") for path in sorted(results.DOCS.rglob("*.md"))}


def test_pages_hold_the_tables_that_benchmarks_kept() -> None:
    """`python -m benchmarks.results` writes them."""
    for name, page in PAGES.items():
        assert results.filled(page) == page, f"{name} holds other tables than were kept: python -m benchmarks.results"


@pytest.mark.parametrize("name", stored_tables.tables())
def test_pages_say_of_the_stored_fits_what_these_say_themselves(name: str) -> None:
    """`python -m benchmarks.stored_tables && python -m benchmarks.results` after a new fit."""
    text, files = stored_tables.tables()[name]
    result = results.kept(name)
    assert result.text == text
    assert set(result.found_with) == {str(file.relative_to(results.ROOT)) for file in files} and not result.changed


@pytest.mark.parametrize("name", KEPT)
def test_every_kept_result_stands_on_a_page_and_says_what_it_was_found_with(name: str) -> None:
    result = results.kept(name)
    assert any(f"<!-- results: {name} -->" in page for page in PAGES.values())
    assert result.text and result.found_with and result.made_by.startswith("python -m benchmarks.")
    assert all((results.ROOT / file).exists() for file in result.found_with)


def test_the_site_says_what_has_changed_since(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(results, "ROOT", tmp_path)
    monkeypatch.setattr(results, "KEPT", tmp_path)
    (tmp_path / "fit.json").write_text("1")
    results.keep("speed", "python -m benchmarks.x --keep", (tmp_path / "fit.json",), "| a |\n")
    page = "Errors.\n\n<!-- results: speed -->\nold\n<!-- end of results -->\n\nMore.\n"
    assert results.filled(results.filled(page)) == results.filled(page).replace("old", "| a |")
    assert results.told(page) == "Errors.\n\n\n| a |\n\n*Made by `python -m benchmarks.x --keep`.*\n\n\nMore.\n"
    (tmp_path / "fit.json").write_text("2")
    assert "Changed since it was made: `fit.json`." in results.told(page)
