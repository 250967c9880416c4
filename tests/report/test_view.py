"""The view model: what stands on the page, without a page."""

from __future__ import annotations

from dataclasses import replace

import pytest

from planner.report.bits import bits_map
from planner.report.candidates import choices
from planner.report.facts import Facts
from planner.report.goals import goal_rows, kept
from planner.report.load import load_table
from planner.report.memory import memory_bar
from planner.report.record import provenance, work
from planner.report.scale import linear, logarithmic
from planner.report.story import story


def test_three_sentences_say_what_why_and_what_it_gives(planned: Facts) -> None:
    what, why, gives = story(planned)
    assert "Llama-3.1-8B-Instruct is served by vllm" in what and "one" in what
    assert f"out of {planned.plan.searched:,} candidates" in why
    assert (
        "of memory are used" in gives
        and "met less surely than the 80% asked: TTFT" in gives
        and "2 of 3 goals" in gives
    )
    assert all(sentence.endswith(".") and sentence.count(". ") == 0 for sentence in (what, why, gives))


def test_a_goal_that_is_met_less_surely_than_is_asked_is_told_with_its_odds(planned: Facts) -> None:
    chosen = planned.plan.decision
    first, *others = chosen.goals
    goals = (replace(first, met=True, odds=0.11), *(replace(goal, met=True, odds=0.99) for goal in others))
    *_, gives = story(Facts(replace(planned.plan, chosen=replace(chosen, goals=goals))))
    asked = planned.plan.spec.confidence("confidence")
    assert f"met less surely than the {asked:.0%} asked: {first.said} with odds of 11%" in gives
    assert f"{len(others)} of {len(goals)} goals" in gives and "all" not in gives


def test_where_nothing_was_chosen_the_nearest_is_told(planned: Facts) -> None:
    said = story(Facts(replace(planned.plan, chosen=None)))
    assert said[0].startswith("Nothing among") and planned.plan.rejected[0].candidate in said[1]


def test_the_terms_of_memory_stand_beside_each_other_and_add_up(planned: Facts) -> None:
    bar, chosen = memory_bar(planned), planned.plan.decision
    assert bar is not None
    for left, right in zip(bar.terms, bar.terms[1:], strict=False):
        assert right.at == pytest.approx(left.at + left.width, abs=0.02)
    held = chosen.memory.total.value - chosen.capacity.needed_bytes + chosen.memory.kv_cache.value  # type: ignore[union-attr]
    assert sum(term.width for term in bar.terms) == pytest.approx(
        100 * held / planned.plan.lock.gpu.memory_bytes, abs=0.5
    )
    assert {"weights", "KV cache in use", "activations", "runtime"} <= {term.name for term in bar.terms}


def test_every_design_is_a_row_once_with_its_reasons(planned: Facts) -> None:
    laid = choices(planned)
    names = [row.name for row in laid.rows]
    assert len(names) == len(set(names)) and len(names) >= len(planned.verdicts)
    assert [row.standing for row in laid.rows].count("chosen") == 1 and laid.rows[0].standing == "chosen"
    near = [row.name for row in laid.rows if row.standing == "near"]
    assert set(near) <= {rejected.candidate for rejected in planned.plan.rejected} and 1 < len(near) <= 3
    assert all(row.reasons for row in laid.rows if row.standing == "lost")


def test_better_points_lie_lower_and_faster_ones_to_the_right(planned: Facts) -> None:
    laid = choices(planned)
    speed, memory = laid.charts
    for chart, figure in ((speed, "rate"), (memory, "bytes")):
        points = sorted(chart.points, key=lambda point: point.x)
        figures = [getattr(laid.rows[point.row], figure) for point in points]
        places = [point.x for point in points]
        assert all(a <= b or x == y for a, b, x, y in zip(figures, figures[1:], places, places[1:], strict=False))
    best = min(speed.points, key=lambda point: laid.rows[point.row].loss)
    assert best.y == max(point.y for point in speed.points)
    assert memory.limit is not None
    assert speed.points[-1].row == 0  # the chosen one is drawn over the others


def test_goals_show_their_interval_and_beside_it_what_was_measured(planned: Facts, made: Facts) -> None:
    before, after = goal_rows(planned), goal_rows(made)
    assert [row.name for row in before] == ["TTFT", "decode", "perplexity"]
    assert all(row.measured is None for row in before)
    assert all(row.predicted.low <= row.predicted.value <= row.predicted.high for row in before)
    measured = next(row for row in after if row.name == "perplexity").measured
    assert measured is not None and measured.said == "+0.40 % (+0.10 % … +0.70 %)"
    certified = kept(made)
    assert certified is not None and certified.holds
    assert kept(planned) is None


def test_speed_that_verify_measured_stands_beside_what_was_predicted(made: Facts, verified: Facts) -> None:
    assert [row.measured for row in goal_rows(made) if row.name != "perplexity"] == [None, None]
    measured = {row.name: row.measured.said for row in goal_rows(verified) if row.measured is not None}
    assert measured["TTFT"] == "700 ms" and measured["decode"] == "50 tok/s"
    promised = kept(verified)
    assert promised is not None and promised.checks[-1].name == "TTFT, ms" and promised.holds
    table = load_table(verified)
    assert table is not None
    assert [said for chart in table.charts for *_, said in chart.measured] == [
        "p50 at 4, measured: 650 ms", "p95 at 4, measured: 900 ms", "p50 at 4, measured: 19 ms", "p95 at 4, measured: 25 ms",
    ]  # fmt: skip


def test_another_load_than_the_plans_is_no_measurement_of_its_goals(verified: Facts) -> None:
    assert verified.verified is not None
    timing = verified.verified.loads[0]
    other = replace(verified.verified, loads=(replace(timing, load=replace(timing.load, concurrency=9)),))
    rows = goal_rows(replace(verified, verified=other))
    assert all(row.measured is None for row in rows if row.name != "perplexity")


def test_latency_is_drawn_over_the_load_with_the_one_that_was_asked(planned: Facts) -> None:
    table = load_table(planned)
    assert table is not None
    assert [row[0] for row in table.rows] == ["1", "2", "4", "8", "16"]
    for chart in table.charts:
        half, most = chart.curves
        assert (half.name, most.name) == ("p50", "p95")
        assert all(a[1] >= b[1] for a, b in zip(half.dots, most.dots, strict=True))  # p95 is no lower on the page
        assert chart.asked == half.dots[2][0]


def test_bits_are_mapped_where_layers_differ(planned: Facts, mixed: Facts) -> None:
    assert bits_map(planned) is None  # all layers are alike
    drawn = bits_map(mixed)
    assert drawn is not None and len(drawn.layers) == 32
    name, cells = drawn.rows[0]
    assert name == "q_proj" and cells[0] is not None and cells[1] is not None
    assert cells[0].bits == 16 > cells[1].bits and cells[0].shade == 1


def test_a_plan_that_waits_for_its_bits_shows_none(planned: Facts) -> None:
    waiting = replace(planned.plan, chosen=replace(planned.plan.decision, state="bounded"))
    assert bits_map(replace(planned, plan=waiting)) is None


def test_the_work_is_expected_or_as_it_was(planned: Facts, made: Facts) -> None:
    expected, taken = work(planned), work(made)
    assert expected is not None and not expected.measured and expected.steps
    assert taken is not None and taken.measured and taken.said == "The work took 50 s."
    assert [step.name for step in taken.steps] == ["walk", "evaluate (kept from before)"]


def test_everything_the_lock_holds_is_told(planned: Facts) -> None:
    told = dict(provenance(planned))
    assert told["Plan (sha256)"] == planned.plan.digest
    assert {f"Data: {name}" for name in planned.plan.lock.data} <= told.keys()


def test_a_plan_that_left_its_place_is_told_of_as_it_is(planned: Facts, tmp_path) -> None:  # type: ignore[no-untyped-def]
    from planner.plan.document import portable
    from planner.plan.saved import save
    from planner.report.facts import facts_of

    save(portable(planned.plan), tmp_path / "plan.json")
    facts = facts_of(tmp_path / "plan.json")
    assert not facts.verdicts and not facts.loads
    assert "left the place" in facts.notes[0]
    assert len(choices(facts).rows) >= 4


@pytest.mark.parametrize(("unit", "high"), [("tok/s", 43.0), ("B", 24 * 2.0**30), ("ms", 3900.0), ("%", 0.07)])
def test_ticks_are_few_round_and_inside(unit: str, high: float) -> None:
    axis = linear("", unit, [high], (0, 100))
    assert 2 <= len(axis.ticks) <= 9
    assert all(0 <= tick.at <= 100 for tick in axis.ticks)
    assert axis.ticks[0].said == "0"


def test_a_logarithmic_axis_keeps_what_lies_outside_at_its_ends() -> None:
    axis = logarithmic("", "%", [0.0, 0.01, 1e9], (100, 0), (1e-3, 10))
    assert axis.at(0.0) == 100 or axis.at(1e-3) < 100
    assert axis.at(1e9) == axis.at(14)
    assert axis.at(0.01) > axis.at(0.1)
    assert 2 <= len(axis.ticks) <= 12
