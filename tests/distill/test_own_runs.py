"""What distillation leaves is fitted to own runs as well; texts that judge share nothing with those that are looked at."""

from __future__ import annotations

from benchmarks.fit_recovery import own
from benchmarks.text import apart
from planner.quality.recovery import fit, left


def test_own_runs_are_among_what_the_forecast_is_fitted_to() -> None:
    figures = own()
    assert {tokens for _, tokens, _ in figures} >= {6_144, 24_576}
    for _, tokens, share in figures:
        known = fit()["methods"]["logits"]
        assert known["basis"] == "calibrated" and abs(left(tokens, "logits") / share - 1) < known["width"]


def test_the_law_of_tuned_blocks_goes_through_the_own_run() -> None:
    assert abs(left(65_536, "blockwise") - 0.3268 / 0.5083) < 1e-3


def test_documents_that_share_eight_words_in_a_row_with_what_judges_are_left_out() -> None:
    judging = "The quick brown fox jumps over the lazy dog and sleeps"
    seven, eight = (
        "A quick brown fox jumps over the lazy cat.",
        "It is said: QUICK brown fox\njumps over the lazy, dog!",
    )
    assert apart([seven, eight], [judging]) == [seven]
