"""The benchmark's page follows from the files of its stages; spreads are those of the sequences."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from benchmarks.prune_distill import results
from benchmarks.prune_distill.__main__ import STAGES
from benchmarks.prune_distill.bench import Figure, Line, grown, jackknife, ratio

PAGE = Path(__file__).parents[2] / "docs" / "pruning-results.md"


def test_the_page_is_what_the_stored_stages_say() -> None:
    """`python -m benchmarks.prune_distill.results > docs/pruning-results.md` writes it anew."""
    assert PAGE.read_text(encoding="utf-8") == results.page(results.stored())


def document(model: str, *lines: Line) -> dict[str, object]:
    return {
        "model": model, "stage": "compensation", "lines": [asdict(line) for line in lines], "seconds": 600.0, "processor_seconds": 1100.0,
        "reused": False, "threads": 1, "cores": 2, "code": "abc1234", "versions": {"torch": "2.11.0"},
    }  # fmt: skip


def test_a_figure_stands_beside_its_spread_its_goal_and_what_it_took() -> None:
    page = results.page(
        [
            document(
                "gemma3",
                Line("left", Figure(0.4, 0.03), "of the rise", 0.5),
                Line("failed", Figure(2.0), "of 5", 1),
                Line("told", Figure(57.0), "%"),
            )
        ]
    )
    assert "| what | Gemma 3 270M | goal |\n|---|---|---|" in page
    assert "| left | 0.4 ± 0.03 of the rise: met | at most 0.5 |" in page
    assert "| failed | 2 of 5: **missed** | at most 1 |" in page and "| told | 57 % |  |" in page
    assert (
        "* Gemma 3 270M, cut by activation: 10.0 minutes on 1 thread of 2 cores (1,100 s of processor time); commit abc1234, torch 2.11.0."
        in page
    )
    assert "**Gemma 3 270M**: 1 of 2 goals met, missed: compensation: failed (2 of 5, 1 at most)." in page


def test_models_stand_beside_each_other_and_a_figure_that_one_lacks_is_left_out() -> None:
    left = Line("left", Figure(0.4, 0.03), "of the rise", 0.5)
    page = results.page(
        [
            document("smollm2", left, Line("by hessian", Figure(53.0), "%")),
            document("gemma3", Line("left", Figure(0.6, 0.1), "of the rise", 0.5)),
        ]
    )
    assert "| what | SmolLM2 | Gemma 3 270M | goal |" in page
    assert "| left | 0.4 ± 0.03 of the rise: met | 0.6 ± 0.1 of the rise: **missed** | at most 0.5 |" in page
    assert "| by hessian | 53 % | – |  |" in page
    raw = [
        Line(f"cut by {name} over cut by random", Figure(0.1), "of the rise", 0.8) for name in ("fisher", "activation")
    ]
    page = results.page([document("smollm2", raw[0]), document("gemma3", raw[1])])
    assert "| the chosen cut over cut by random | 0.1 of the rise: met | 0.1 of the rise: met | at most 0.8 |" in page


def test_the_goals_that_are_met_are_counted() -> None:
    page = results.page([document("smollm2", Line("left", Figure(0.4, 0.03), "of the rise", 0.5))])
    assert "**SmolLM2**: 1 of 1 goals met, none missed." in page


def test_every_stage_has_a_title() -> None:
    assert {each["stage"] for each in results.stored()} <= {*results.TITLES} == {*STAGES, "whole"}


def test_a_spread_is_the_standard_error_over_sequences() -> None:
    rises = torch.randn(16, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.1 + 0.3
    mean = jackknife(lambda found: float(found[0].mean()), [rises])
    assert mean.value == pytest.approx(float(rises.mean()))
    assert mean.error == pytest.approx(float(rises.std()) / 4)
    assert grown(rises).value == pytest.approx(100 * (float(rises.mean().exp()) - 1))
    assert ratio(rises, rises) == Figure(1.0, 0.0)  # what is the same on every sequence spreads nothing
