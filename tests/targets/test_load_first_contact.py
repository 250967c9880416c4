"""Published runs of `vllm bench serve` that nothing was fitted to: how they are held against answers, what rows say."""

import pytest

from benchmarks.fit_speed import DATA
from benchmarks.load_first_contact import Contact, arguments, contacts, kind, load_rows, summaries

ROW = {
    "arrival": "closed",
    "clients": 4,
    "tpot_p50_ms": None,
    "tpot_ms": 20.0,
    "ttft_p50_ms": 100.0,
    "ttft_ms": 300.0,
    "tok_s": None,
}


def answer(**figures: float) -> dict[str, dict[str, dict[str, float]]]:
    return {"speed": {name: {"value": x, "low": 0.9 * x, "high": 1.1 * x} for name, x in figures.items()}}


def test_a_median_is_held_before_a_mean_and_what_was_not_published_is_left_out() -> None:
    found = contacts({"id": "a", **ROW}, answer(tpot_ms=21.0, ttft_ms=300.0, ttft_p50_ms=150.0))
    assert [(each.name, round(each.error, 3), each.held) for each in found] == [
        ("TPOT", 0.05, True),
        ("TTFT", 0.5, False),
    ]


def test_the_summary_tells_median_errors_and_held_intervals() -> None:
    found = [
        Contact({"id": name, "met_before": False, "loose": [], **ROW}, "TPOT", x, 0.9 * x, 1.1 * x, 10.0)
        for name, x in (("a", 10.0), ("b", 10.5), ("c", 20.0))
    ]
    lines = summaries(found).splitlines()
    assert lines[2] == "| all | 3 | 5.0 %, 0.67 of 3 | 0 rows | 0 rows |"
    assert lines[-1].startswith("| closed loops | 3 | 5.0 %") and len(lines) == 6


@pytest.mark.parametrize(
    ("of", "name"),
    [({"clients": 1}, "alone"), ({}, "closed loop"), ({"arrival": "burst"}, "burst"), ({"arrival": "rate"}, "rate")],
)
def test_rows_are_told_apart_by_how_requests_come(of: dict[str, object], name: str) -> None:
    assert kind({**ROW, **of}) == name


def test_rows_say_what_was_asked_and_are_not_those_of_any_fit() -> None:
    rows = load_rows()
    assert len({row["id"] for row in rows}) == len(rows) == 95
    fitted = "".join((DATA / name).read_text(encoding="utf-8") for name in ("serving_refs.jsonl", "speed_refs.jsonl"))
    for row in rows:
        assert row["source_url"].startswith("https://")
        assert row["source_url"] not in fitted
        assert any(row[name] for name in row if name.startswith(("ttft", "tpot", "tok_s")))
        asked = arguments(row)
        assert asked[asked.index("--") :][:3] == ["--", "vllm", "serve"]
        assert ("--request-rate" in asked) == (row["arrival"] != "closed")
        assert ("--max-concurrency" in asked) == (row["clients"] is not None)
