"""The cache that a checkpoint asks for: taken by vLLM's `auto` from the version that reads it, never over what was asked for."""

from __future__ import annotations

from dataclasses import replace

import pytest

from passes.ir.model import KVCache
from passes.ir.sources import open_model
from planner.check import check
from targets.engines.engine import Parallel, Settings
from targets.engines.vllm.rules.checkpoint_cache import as_cached
from targets.engines.vllm.rules.versions import rules_for

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


@pytest.mark.parametrize(("method", "declared", "version", "kept"), [
    ("modelopt", "nvfp4", "0.19.1", "auto"), ("modelopt_fp4", "nvfp4", "0.20.2", "nvfp4"),
    ("compressed-tensors", "fp8", "0.14.1", "auto"), ("compressed-tensors", "fp8", "0.15.1", "fp8"), ("fp8", "fp8", "0.33.0", "auto"),
])  # fmt: skip
def test_the_type_is_taken_by_method_and_version(method: str, declared: str, version: str, kept: str) -> None:
    ir = replace(open_model("Qwen/Qwen3-8B").ir, quant_method=method, kv_cache=KVCache(declared=declared))
    assert as_cached(ir, rules_for(version)[0]).kv_cache.dtype == kept


def test_latent_caches_do_not_go_through_what_takes_compressed_tensors_type() -> None:
    ir = replace(open_model(_KIMI).ir, quant_method="compressed-tensors")
    assert as_cached(ir, rules_for(None)[0]).kv_cache.dtype == "auto"
