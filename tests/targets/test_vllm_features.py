"""Adapters, drafts, offload and encoders in the memory of a rank, by vLLM's own shapes."""

from __future__ import annotations

from typing import Any

import pytest

from passes.ir.sources import open_model
from targets.engines.engine import MemoryEstimate, Parallel, Settings, find_engine
from targets.engines.features import Adapters, Drafting, Features
from targets.gpu import find_gpu
from targets.workload import Workload

GIB = 1 << 30
LLAMA = "meta-llama/Llama-3.1-8B-Instruct"


def memory(model: str, tp: int = 1, context: int = 8192, **features: Any) -> MemoryEstimate:
    settings = Settings(version="0.33", parallel=Parallel(tp=tp), features=Features(**features))
    return find_engine("vllm").memory(open_model(model).ir, find_gpu("H200"), settings, Workload(context))


def weights(model: str, tp: int = 1, **features: Any) -> float:
    return memory(model, tp, **features).memory.weights.value


def test_adapters_take_both_halves_of_every_matrix() -> None:
    """Llama 3.1 8B, rank 16: q 4096→4096, k, v →1024, o, gate, up →14336, down, embedding and head of 128,256 (`lora/layers/`)."""
    layer = (4096 + 4096) * 2 + 2 * (4096 + 1024) + 3 * (4096 + 14336)
    elements = 16 * (32 * layer + 2 * (128_256 + 4096))
    grown = weights(LLAMA, adapters=Adapters(16, 2)) - weights(LLAMA)
    assert grown == pytest.approx(2 * 2 * elements)


def test_tensor_parallel_cuts_one_half_of_an_adapter_and_sharding_both() -> None:
    half = weights(LLAMA, 2, adapters=Adapters(64, 4)) - weights(LLAMA, 2)
    whole = weights(LLAMA, adapters=Adapters(64, 4)) - weights(LLAMA)
    sharded = weights(LLAMA, 2, adapters=Adapters(64, 4, sharded=True)) - weights(LLAMA, 2)
    assert sharded < half < whole
    assert half > whole / 2


def test_a_draft_model_takes_its_weights_and_its_cache() -> None:
    draft = open_model("meta-llama/Llama-3.2-1B-Instruct").ir
    drafting = Drafting("draft_model", 3, draft=draft)
    plain, drafted = memory(LLAMA), memory(LLAMA, drafting=drafting)
    assert drafted.memory.weights.value - plain.memory.weights.value == pytest.approx(2 * 1_235_814_400, rel=0.01)
    assert drafted.kv.bytes_per_token - plain.kv.bytes_per_token == 16 * 2 * 8 * 64 * 2


def test_drafting_from_the_text_takes_nothing() -> None:
    assert weights(LLAMA, drafting=Drafting("ngram", 3)) == weights(LLAMA)


def test_layers_for_drafting_are_counted_when_they_draft() -> None:
    model = "deepseek-ai/DeepSeek-V3"
    plain, drafted = memory(model, 8), memory(model, 8, drafting=Drafting("mtp", 1, own=True))
    assert drafted.memory.weights.value > plain.memory.weights.value + GIB
    assert drafted.kv.bytes_per_token == plain.kv.bytes_per_token / 61 * 62


def test_a_head_that_nobody_knows_is_assumed() -> None:
    estimate = memory(LLAMA, drafting=Drafting("eagle3", 3, assumed=True)).memory.weights
    assert estimate.basis == "assumed"
    assert 0.4 * GIB < estimate.value - weights(LLAMA) < 1.5 * GIB


def test_offloaded_weights_leave_the_card() -> None:
    assert weights(LLAMA) - weights(LLAMA, offload_bytes=4 * GIB) == 4 * GIB
    assert weights(LLAMA, offload_bytes=100 * GIB) > 0


def test_whole_prompts_take_the_activations_of_a_step_of_the_whole_context() -> None:
    """Without chunked prefill a step holds a prompt of any length that is promised (vLLM's `EngineArgs`, by its defaults)."""

    def activations(context: int, **features: Any) -> float:
        return memory(LLAMA, context=context, **features).memory.activations.value

    settings = Settings(version="0.33", max_num_batched_tokens=65_536)
    set_so = find_engine("vllm").memory(open_model(LLAMA).ir, find_gpu("H200"), settings, Workload(65_536))
    assert activations(65_536, whole_prompts=True) == set_so.memory.activations.value > activations(65_536)
    assert activations(1024, whole_prompts=True) == activations(1024)


def test_encoders_are_left_out_or_held_whole() -> None:
    model = "Qwen/Qwen2.5-VL-7B-Instruct"
    assert weights(model) - weights(model, text_only=True) > 1.2 * GIB
    assert weights(model, 2, whole_encoders=True) > weights(model, 2) + 0.5 * GIB
    assert memory(model, profiles_media=False).memory.activations.value < memory(model).memory.activations.value


def test_encoders_go_when_nothing_is_let_in_that_they_read() -> None:
    """A kind that no limit names is let in: Qwen2.5-VL takes videos too, Gemma 3 pictures alone."""
    qwen, gemma = "Qwen/Qwen2.5-VL-7B-Instruct", "google/gemma-3-12b-it"
    none = (("image", 0), ("video", 0))
    assert weights(qwen, media=none) == weights(qwen, text_only=True) < weights(qwen, media=none[:1]) == weights(qwen)
    assert weights(gemma, media=none[:1]) == weights(gemma, text_only=True) < weights(gemma)


def test_graphs_are_left_out_or_fewer() -> None:
    assert memory(LLAMA, graphs=False).memory.cuda_graphs.value == 0
    assert memory(LLAMA, largest_graph=64).memory.cuda_graphs.value < memory(LLAMA).memory.cuda_graphs.value


def test_the_cache_is_spread_over_ranks() -> None:
    plain, spread = memory("deepseek-ai/DeepSeek-V3", 8), memory("deepseek-ai/DeepSeek-V3", 8, context_parallel=8)
    assert spread.kv.tokens.value == pytest.approx(8 * plain.kv.tokens.value, rel=0.01)


def test_a_cache_of_so_many_blocks() -> None:
    assert memory(LLAMA, cache_blocks=1000).kv.tokens.value == 16_000
    assert [r.code for r in memory(LLAMA, cache_blocks=10_000_000).reasons] == ["cache_blocks_do_not_fit"]


def test_states_follow_prefix_caching_and_their_type() -> None:
    model = "Qwen/Qwen3.5-27B"
    assert memory(model, prefix_caching=False).kv.tokens.value > memory(model).kv.tokens.value
    assert memory(model, state_bytes=2).kv.bytes_per_sequence < memory(model).kv.bytes_per_sequence


def test_what_pools_samples_nothing() -> None:
    assert memory(LLAMA, pools=True).memory.activations.value <= memory(LLAMA).memory.activations.value
