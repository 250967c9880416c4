"""Published start-ups that nothing was fitted to: how they are held against answers, and that each row says what was asked."""

import pytest

from benchmarks.first_contact import Contact, arguments, contact, load_rows, summary
from benchmarks.memory_rows import ROWS


def answer(value: float) -> dict[str, dict[str, dict[str, float]]]:
    said = {"value": value, "low": 0.9 * value, "high": 1.1 * value}
    return {"kv_cache": {"tokens": said}, "memory": {"kv_cache": {k: v * (1 << 30) for k, v in said.items()}}}


def test_tokens_are_compared_where_they_were_printed_and_gib_elsewhere() -> None:
    row = {"kv_cache_tokens": 1000, "available_kv_gib": 5.0, "loose": None}
    assert contact(row, answer(1050)).error == pytest.approx(0.05)
    assert contact(row, answer(1050)).held
    assert not contact(row, answer(2000)).held
    assert contact(row | {"kv_cache_tokens": None}, answer(4.0)).error == pytest.approx(-0.2)


def test_a_refusal_without_any_cache_is_measured_by_its_budget() -> None:
    row = {"kv_cache_tokens": None, "available_kv_gib": -1.0, "budget_gib": 5.0, "loose": None}
    assert Contact(row, -1.5, -2.0, 0.0, -1.0).error == pytest.approx(-0.1)


def test_the_summary_counts_what_intervals_hold() -> None:
    row = {"kv_cache_tokens": 100, "available_kv_gib": None, "loose": None}
    found = [contact(row, answer(value)) for value in (100, 105, 200)]
    assert summary("all", found) == "all: 3 rows, median 5.0%, 90 % 5.0%, held 0.67"


def test_rows_say_what_was_asked_and_are_not_those_of_the_fit() -> None:
    rows = load_rows()
    assert len({row["id"] for row in rows}) == len(rows) == 70
    fitted = ROWS.read_text(encoding="utf-8")
    for row in rows:
        assert row["source_url"].startswith(("https://", "github-index:file-id="))
        assert row["source_url"] not in fitted
        assert row["kv_cache_tokens"] or row["available_kv_gib"]
        asked = arguments(row)
        assert asked[asked.index("--") :][:3] == ["--", "vllm", "serve"]
