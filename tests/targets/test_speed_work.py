"""Counting work: bytes and multiplications follow from the description alone."""

from __future__ import annotations

import pytest

from passes.ir.sources import open_model
from targets.engines.engine import find_engine
from targets.gpu import find_gpu
from targets.speed.card import card_of
from targets.speed.closed_loop import Loop, closed_loop
from targets.speed.rates import fitted_rates
from targets.speed.step import Step, distinct_experts, step_seconds
from targets.speed.work import Work, work_of


def weights_per_token(work: Work) -> float:
    return sum(m.weights for m in work.matmuls) + sum(e.weights * e.active / e.copies for e in work.experts)


def test_a_dense_model_multiplies_with_all_its_weights_but_the_embedding() -> None:
    ir = open_model("Qwen2.5-7B-Instruct").ir
    work = work_of(ir)
    assert weights_per_token(work) + work.head.weights == pytest.approx(
        ir.weights - ir.vocab_size * ir.hidden_size, rel=1e-4
    )


def test_tied_embeddings_serve_as_the_head() -> None:
    ir = open_model("HuggingFaceTB/SmolLM2-135M-Instruct").ir
    assert work_of(ir).head.weights == ir.vocab_size * ir.hidden_size


def test_experts_are_counted_once_a_layer_and_used_in_part() -> None:
    work = work_of(open_model("Qwen/Qwen3-30B-A3B").ir)
    (experts,) = work.experts
    assert (experts.copies, experts.active, experts.layers) == (128, 8, 48)
    assert 2.5e9 < weights_per_token(work) < 3.5e9


def test_a_latent_cache_is_one_for_all_heads() -> None:
    (attention,) = work_of(open_model("deepseek-ai/DeepSeek-V3").ir).attention
    assert attention.latent and attention.elements_per_token == 576
    # prompts run unfolded: 128 heads of 192-wide keys and 128-wide values
    assert attention.pair_flops == 2 * 128 * (192 + 128)


def test_a_block_of_a_mixer_or_of_experts_alone_is_half_a_layer() -> None:
    """Nemotron 3 Nano: 52 blocks, each with one all-reduce; Nemotron Super keeps feed-forward parts without attention."""
    nano = work_of(open_model("nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16").ir)
    assert (nano.layers, nano.expert_layers, nano.recurrent_layers) == (26, 23, 23)
    assert work_of(open_model("nvidia/Llama-3_3-Nemotron-Super-49B-v1").ir).layers == 49 + 31 / 2
    assert work_of(open_model("Qwen2.5-7B-Instruct").ir).layers == 28


def test_sparse_attention_computes_what_its_kernel_is_made_for() -> None:
    """A card of eight has 16 of 128 heads, its kernel 64; not told how many tokens are chosen, it attends to as many as may be."""
    work = work_of(open_model("deepseek-ai/DeepSeek-V3.2").ir)
    (attention,) = work.attention
    assert attention.sparse and attention.heads == 128 and attention.index_flops == 2 * 64 * 128
    assert not work_of(open_model("deepseek-ai/DeepSeek-V3").ir).attention[0].sparse
    engine, gpu = find_engine("vllm"), find_gpu("H200 SXM")

    def prompt_s(version: str | None, seen: float, tp: int) -> float:
        rates, card = fitted_rates("vllm", "9.0", version).rates, card_of(engine, gpu)
        none = step_seconds(work, card, rates, Step(0, 0.0, 8192, 0.0, 1), tp)
        return step_seconds(work, card, rates, Step(0, 0.0, 8192, seen, 1), tp) - none

    assert prompt_s(None, 200, 8) < 0.3 * prompt_s(None, 2048, 8)
    assert prompt_s("0.13.0", 200, 8) < 0.1 * prompt_s(
        None, 2048, 8
    )  # all but the indexer is computed whatever is seen
    assert prompt_s(None, 2048, 8) == pytest.approx(prompt_s(None, 2048, 2), rel=0.01)


def test_sliding_windows_bound_what_a_query_sees() -> None:
    windows = {kind.window for kind in work_of(open_model("openai/gpt-oss-120b").ir).attention}
    assert windows == {0, 128}


def test_distinct_experts_go_from_those_of_one_token_to_all() -> None:
    assert distinct_experts(128, 8, 1) == pytest.approx(8)
    assert distinct_experts(128, 8, 10_000) == pytest.approx(128)


def steady(step: Step) -> float:
    return 0.010 + 0.0001 * step.decode + 1e-5 * step.prefill


def loop(**changes: float) -> Loop:
    values = {
        "input_tokens": 1000.0, "output_tokens": 500.0, "clients": 16.0, "resident": 100.0, "budget": 8192.0, "cache_bytes": 2.0,
        "rounds": 10.0, "host_s": 0.0, "host_token_s": 0.0,
    }  # fmt: skip
    return Loop(**(values | changes))


def test_time_between_tokens_is_a_step_and_a_share_of_the_others_prefills() -> None:
    means = closed_loop(steady, loop())
    assert means.tpot_s == pytest.approx(0.0116 + 15 * 0.95 * 0.0099 / 499, rel=0.02)


def test_one_client_waits_for_nobody() -> None:
    means = closed_loop(steady, loop(clients=1))
    assert means.tpot_s == pytest.approx(0.0101)
    assert means.ttft_s == pytest.approx(0.020)


def test_littles_law_where_requests_do_not_fit() -> None:
    """Twice the clients that fit: each waits as long as it is served."""
    means = closed_loop(steady, loop(clients=32, resident=16))
    served = closed_loop(steady, loop(clients=16, resident=16))
    assert means.ttft_s == pytest.approx(2 * served.ttft_s + 499 * served.tpot_s)
    assert means.tpot_s == served.tpot_s


def test_prompts_beyond_the_budget_take_several_steps() -> None:
    short, long = (closed_loop(steady, loop(clients=1, input_tokens=i)).ttft_s for i in (8000.0, 16000.0))
    assert long == pytest.approx(short + 0.010 + 8000e-5, rel=0.05)
