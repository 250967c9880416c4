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


#: Bytes of a token: 61 layers with an indexer's keys (132), latents in 16 bits, packed with scales (`fp8_ds_mla`), bare in FP8 and FP4.
_HALVES, _PACKED, _BARE, _FOUR = (61 * (latent + 132) for latent in (1152, 656, 576, 352))


@pytest.mark.parametrize(("gpu", "tp", "version", "asked", "bytes_per_token"), [
    ("H200 SXM", 8, "0.11.0", "auto", _PACKED), ("H200 SXM", 8, "0.13.0", "auto", _HALVES), ("H200 SXM", 8, "0.13.0", "fp8", _PACKED),
    ("H200 SXM", 8, None, "fp8", _PACKED), ("H200 SXM", 8, None, "fp8_ds_mla", _PACKED), ("H200 SXM", 8, None, "bfloat16", _HALVES),
    ("B200 SXM", 8, "0.16.0", "fp8", _PACKED), ("B200 SXM", 8, "0.18.1", "fp8", _BARE), ("B200 SXM", 4, "0.18.1", "fp8", _PACKED),
    ("B200 SXM", 8, "0.22.1", "fp8", _BARE), ("B200 SXM", 8, None, "nvfp4_ds_mla", _FOUR),
    ("RTX PRO 6000 Blackwell Server Edition", 8, "0.24.0", "auto", _PACKED),
])  # fmt: skip
def test_attention_that_picks_tokens_packs_its_entries_by_card_and_version(
    gpu: str, tp: int, version: str | None, asked: str, bytes_per_token: int
) -> None:
    settings = Settings(version=version, parallel=Parallel(tp))
    answer = check("deepseek-ai/DeepSeek-V3.2", gpu, context=4096, settings=settings, kv_cache_dtype=asked).document
    assert answer.kv_cache.bytes_per_token == bytes_per_token
    assert any("where nothing is set" in note for note in answer.notes) == (
        asked == "auto" and bytes_per_token == _PACKED
    )


def test_packed_types_are_for_attention_that_picks_tokens_alone() -> None:
    settings = Settings(parallel=Parallel(8))
    for model, gpu, dtype in (
        ("deepseek-ai/DeepSeek-V3", "H200 SXM", "fp8_ds_mla"), ("Qwen/Qwen3-32B", "H200 SXM", "fp8_ds_mla"),
        ("deepseek-ai/DeepSeek-V3.2", "H200 SXM", "nvfp4_ds_mla"),
    ):  # fmt: skip
        codes = [
            reason.code
            for reason in check(model, gpu, context=4096, settings=settings, kv_cache_dtype=dtype).document.reasons
        ]
        assert "kv_dtype_without_backend" in codes, (model, dtype)


def test_glm_s_cache_is_in_fp8_on_data_center_blackwell_and_its_shared_indexers_had_caches_of_their_own() -> None:
    def told(gpu: str, version: str | None) -> tuple[float, float]:
        document = check(
            "zai-org/GLM-5.2-FP8", gpu, context=4096, settings=Settings(version=version, parallel=Parallel(8))
        ).document
        return document.kv_cache.bytes_per_token, document.memory.weights.value

    full, layers = 21, 78
    assert told("B200 SXM", "0.32.0")[0] == layers * 576 + full * 132
    shared, weights = told("H200 SXM", "0.24.0")
    own, more = told("H200 SXM", "0.23.0")
    assert (shared, own) == (layers * 1152 + full * 132, layers * (1152 + 132))
    assert 0.9e9 < more - weights < 1.2e9  # 57 indexers: 0.98 GB by sgl-project/sglang#30531
