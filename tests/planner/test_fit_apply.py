"""The rates of apply's work: what tells two kinds apart, and a file of them that the planner reads."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.fit_apply import SHAPES, Bench, as_text, measured, two_rates
from planner import apply_cost
from planner.apply_cost import rates_of
from targets.quantity import Basis


def test_two_kinds_are_told_apart_by_shapes() -> None:
    rows = [(1e9, 100.0), (4e9, 100.0), (1e9, 700.0), (9e9, 300.0)]
    each = (2e-12, 5e-6)
    found = two_rates(rows, [first * each[0] + second * each[1] for first, second in rows])
    assert found == pytest.approx(each)
    assert two_rates(rows, [second * 1e-6 for _, second in rows]) == pytest.approx((0.0, 1e-6), abs=1e-15)


@pytest.mark.slow
def test_what_is_measured_is_what_the_planner_reads() -> None:
    tiny = Bench(torch.device("cpu"), torch.float32, SHAPES["tiny"], 0.0)
    stored = json.loads(Path(apply_cost.__file__).with_name("apply_rates.json").read_text(encoding="utf-8"))
    figures = measured(tiny, "two cores")
    assert figures.keys() == rates_of("card").by_kind.keys()
    assert all(
        value > 0 for figure in figures.values() for value in figure.values() if isinstance(value, float) if value
    )
    assert all(Basis(figure["basis"]) is Basis.MEASURED for figure in figures.values())
    for kind in ("processor", "card"):
        for name, figure in stored[kind].items():
            if name in figures:
                assert figure.keys() == figures[name].keys(), (kind, name)
    assert json.loads(as_text(stored)) == stored
    assert json.loads(as_text({"card": figures})) == {"card": figures}
