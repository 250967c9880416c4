"""Every percent that is printed is one of the JSON's numbers: perplexity grows by expm1 of what log-perplexity rises by, everywhere."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from planner.choice.rule.words import grown_words
from planner.figures import apart, show
from tests.planner.conftest import run
from tests.planner.percents import percents, unexplained

_SPECS = {
    # Meets the goals; others are dominated by quality.
    "dominated": "model: Qwen2.5-32B-Instruct\ntarget: { gpu: rtx-4090 }\nworkload: { context: 32768, concurrency: 1 }\n"
    "goals: { quality: { max_perplexity_increase: 10% } }\n",
    # No goal on quality: its row is shown all the same. Losses are large enough for logarithm and growth to differ.
    "no goal": "model: Llama-3.1-8B-Instruct\ntarget: { gpu: rtx-4090 }\nworkload: { context: 8192, concurrency: 1 }\n"
    "passes: { quantize: { formats: [exl2-2.2, exl2-2.5, exl3-2.0, w4a16-g128], dense: false } }\n",
    "speed": "model: Llama-3.1-8B-Instruct\ntarget: { gpu: rtx-4090 }\nworkload: { context: 8192, concurrency: 4 }\n"
    "goals: { prefer: speed, quality: { max_perplexity_increase: 4% } }\n",
    # Missed by a little and by a lot.
    "missed": "model: Llama-3.2-1B-Instruct\ntarget: { gpu: rtx-4090 }\nworkload: { context: 4096, concurrency: 1 }\n"
    "goals: { quality: { max_perplexity_increase: 0.5% } }\npasses: { quantize: { formats: [w4a16-g128, exl2-2.0], dense: false } }\n",
    "too large": "model: Llama-3.3-70B-Instruct\ntarget: { gpu: rtx-4090 }\nworkload: { context: 8192, concurrency: 1 }\n"
    "goals: { quality: { max_perplexity_increase: 10% } }\n",
    "zeros": "model: Llama-3.1-8B-Instruct\ntarget: { gpu: rtx-4090 }\nworkload: { context: 4096, concurrency: 1 }\n"
    "goals: { prefer: size }\n"
    "passes: { prune: { sparse: { share: 50%, pattern: unstructured } }, quantize: { formats: [w4a16-g128] } }\n",
}  # fmt: skip


@pytest.fixture
def optimize(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    return lambda *args: run(monkeypatch, capsys, *args)


def _both(optimize: Any, *args: object) -> tuple[str, Any]:
    """What a command prints, and its JSON."""
    code, text, error = optimize(*args)
    again, out, _ = optimize(*args, "--json")
    assert code == again and code in (0, 3), error
    return text, json.loads(out)


@pytest.mark.parametrize("name", _SPECS)
def test_every_printed_percent_of_a_plan_is_in_its_json(name: str, optimize: Any, tmp_path: Path) -> None:
    spec, saved = tmp_path / "s.yaml", tmp_path / "s.plan.json"
    spec.write_text(_SPECS[name])
    text, document = _both(optimize, "plan", spec, "-o", saved)
    assert percents(text) and unexplained(text, document) == []
    text, answer = _both(optimize, "explain", spec)
    assert unexplained(text, answer) == []
    for candidate in answer["candidates"]:
        assert unexplained(candidate["message"], candidate) == []
    if saved.exists():
        text, document = _both(optimize, "show", saved)
        assert percents(text) and unexplained(text, document) == []
        text, document = _both(
            optimize, "explain", saved, "why not w4a16-g128" if name == "dominated" else "what if 48GB"
        )
        assert unexplained(text, document) == []


def test_every_printed_percent_of_a_check_and_of_a_difference_is_in_its_json(optimize: Any, tmp_path: Path) -> None:
    text, document = _both(
        optimize, "check", "--model", "Llama-3.1-8B-Instruct", "--gpu", "RTX 4090", "--context", 4096
    )
    assert percents(text) and unexplained(text, document) == []
    saved = []
    for name in ("dominated", "no goal", "speed"):
        (tmp_path / "s.yaml").write_text(_SPECS[name])
        saved.append(tmp_path / f"{name}.plan.json")
        assert optimize("plan", tmp_path / "s.yaml", "-o", saved[-1])[0] == 0
    for old, new in pairwise(saved):
        text, document = _both(optimize, "diff", old, new)
        assert "perplexity: " in text and "log_ppl" not in text
        assert len(percents(text)) >= 2 and unexplained(text, document) == []


def test_a_wrong_unit_would_be_seen() -> None:
    reason = {"code": "dominated_by", "data": {"criterion": "quality", "value": 1.1839, "against": 0.083}}
    assert unexplained("perplexity +78.11 % against +7.97 %", reason) == ["+78.11", "+7.97"]
    assert unexplained(grown_words(1.1839, 0.083), reason) == []
    assert grown_words(1.1839, 0.083) == "perplexity +118 % against +8.30 %"


@pytest.mark.parametrize(
    ("one", "other", "unit", "shown"),
    [
        (0.0001, 0.0002, "%", ("+0.01 %", "+0.02 %")),
        (0.00001, 0.00002, "%", ("+0.001 %", "+0.002 %")),
        (0.1000001, 0.1, "%", ("+10.00001 %", "+10.00000 %")),
        (2501.0, 2500.0, "ms", ("2.501 s", "2.500 s")),
        (20.01, 20.0, "tok/s", ("20.01 tok/s", "20 tok/s")),
        (3.0, 3.0, "tok/s", ("3 tok/s", "3 tok/s")),
        (19.5001, 19.5002, "GiB", ("19.5001 GiB", "19.5002 GiB")),
    ],
)
def test_figures_that_differ_are_shown_with_the_digits_that_tell_them_apart(
    one: float, other: float, unit: str, shown: tuple[str, str]
) -> None:
    assert apart(one, other, unit) == shown


@pytest.mark.parametrize(
    ("share", "shown"),
    [(0.0, "+0.00 %"), (0.0999, "+9.99 %"), (0.09999, "+10.0 %"), (math.expm1(0.7811), "+118 %"), (-0.012, "-1.20 %")],
)
def test_percents_have_three_digits(share: float, shown: str) -> None:
    assert show(share, "%") == shown
