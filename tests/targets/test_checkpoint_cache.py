"""The cache that a checkpoint asks for: taken by vLLM's `auto` from the version that reads it, never over what was asked for."""

from __future__ import annotations

import pytest

from passes.ir.sources import open_model
from planner.check import check
from targets.engines.engine import Parallel, Settings

_KIMI, _FULL = "nvidia/Kimi-K2.5-NVFP4", 70_272.0


@pytest.mark.parametrize(("version", "asked", "bytes_per_token"), [
    (None, "auto", _FULL / 2), ("0.14.0", "auto", _FULL / 2), ("0.13.0", "auto", _FULL), ("0.13.0", "fp8", _FULL / 2),
])  # fmt: skip
def test_modelopt_s_type_is_taken_from_0_14_on(version: str | None, asked: str, bytes_per_token: float) -> None:
    settings = Settings(version=version, parallel=Parallel(8))
    answer = check(_KIMI, "B200", context=4096, settings=settings, kv_cache_dtype=asked).document
    assert answer.kv_cache.bytes_per_token == bytes_per_token
    assert any("asks for a KV cache in fp8" in note for note in answer.notes) == (asked == "auto")


def test_exllama_and_dense_checkpoints_have_nothing_declared() -> None:
    assert open_model("Qwen/Qwen3-8B").ir.kv_cache.declared is None
    assert open_model(_KIMI).ir.kv_cache.declared == "fp8"
