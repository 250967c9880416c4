"""vLLM's rules by version and runner, against what its source and start-ups say."""

from __future__ import annotations

from dataclasses import asdict, replace

import pytest

from passes.ir.sources import open_model
from planner.check import check
from targets.engines.engine import Parallel, Scheduler, Settings, find_engine
from targets.engines.features import Features
from targets.engines.vllm.memory.activations import captured_graphs
from targets.engines.vllm.rules.runner import named_classes, subtracts_graphs, uses_v2_runner
from targets.engines.vllm.rules.shards import shard_reasons
from targets.engines.vllm.rules.versions import NEWEST, parse_version, rules_for
from targets.gpu import find_gpu
from targets.workload import Workload


def test_a_version_is_read_to_its_patch() -> None:
    assert parse_version("0.20.1rc2") == (0, 20, 1) and parse_version("v0.20") > parse_version("0.20.2")
    assert not rules_for("0.20.0")[0].tokens_from_concurrency and rules_for("0.20.1")[0].tokens_from_concurrency
    assert rules_for("0.20")[0].tokens_from_concurrency


def test_a_version_that_is_not_known_yet_is_said() -> None:
    newer = f"{NEWEST[0]}.{NEWEST[1] + 1}.0"
    rules, note = rules_for(newer)
    assert note is not None and newer in note and rules_for(f"{NEWEST[0]}.{NEWEST[1]}.2")[1] is None
    assert rules.null_block


@pytest.mark.parametrize(
    ("model", "since"),
    [
        ("Qwen/Qwen3-8B", "0.22.0"), ("meta-llama/Llama-3.1-8B-Instruct", "0.23.0"), ("microsoft/phi-4", "0.25.0"),
        ("Qwen/Qwen3-30B-A3B", "0.29.0"), ("Qwen/Qwen3.5-27B", "0.29.0"),
    ],
)  # fmt: skip
def test_the_second_runner_took_over_by_family(model: str, since: str) -> None:
    ir = open_model(model).ir
    order = ("0.21.0", "0.22.0", "0.23.0", "0.24.0", "0.25.0", "0.28.0", "0.29.0")
    assert [uses_v2_runner(ir, rules_for(version)[0]) for version in order] == [version >= since for version in order]


def test_graphs_are_subtracted_by_runner() -> None:
    dense, experts = (open_model(name).ir for name in ("meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen3-30B-A3B"))
    seen = {
        v: [subtracts_graphs(ir, rules_for(v)[0]) for ir in (dense, experts)]
        for v in ("0.19.0", "0.20.0", "0.26.0", "0.29.0")
    }
    assert seen == {"0.19.0": [False, False], "0.20.0": [True, True], "0.26.0": [False, True], "0.29.0": [True, True]}


def test_captured_sizes() -> None:
    """`_set_cudagraph_sizes` as read: 51 + 51 at 1,024 sequences, 51 + 35 at 256; 67 to 0.11.0, 83 on B200 from 0.28."""
    old, middle, new = (rules_for(version)[0] for version in ("0.11.0", "0.26.0", "0.28.0"))
    assert [captured_graphs(sequences, 90, middle) for sequences in (1024, 256, 1)] == [102, 86, 3]
    assert captured_graphs(1024, 90, old) == 2 * 67
    assert [captured_graphs(1024, 100, rules) for rules in (middle, new)] == [102, 2 * 83]


def test_up_to_0_11_0_a_package_decides_what_the_sampler_takes() -> None:
    """The interval holds both: start-ups of 0.11.0 were seen with and without the sort (polyserve on an L4, vllm-project/vllm#27508)."""
    ir, card = open_model("Qwen/Qwen2.5-7B-Instruct").ir, find_gpu("L4")
    peaks = {}
    for version in ("0.11.0", "0.11.1", "0.17.0"):
        settings = Settings(version=version, max_num_seqs=256)
        peaks[version] = find_engine("vllm").memory(ir, card, settings, Workload(32768)).memory.activations
    either, sorts, unsorted = peaks.values()
    assert unsorted.value < either.value < sorts.value
    assert either.low < unsorted.value and sorts.value < either.high


def test_the_start_up_that_was_measured_on_an_h100() -> None:
    """vLLM 0.26.0 printed 462,944 KV tokens, Llama-3.1-8B in bf16, defaults, context 8192."""
    settings = Settings(version="0.26.0")
    kv = check(
        "meta-llama/Llama-3.1-8B-Instruct", "H100 SXM", "vllm", settings=settings, context=8192
    ).document.kv_cache
    assert kv is not None and kv.tokens.value == pytest.approx(462_944, rel=0.005)
    assert kv.tokens.low <= 462_944 <= kv.tokens.high


@pytest.mark.parametrize(
    ("model", "tp", "code"),
    [
        ("microsoft/Phi-3-medium-4k-instruct", 4, "tp_does_not_divide_kv_heads"),
        ("Qwen/Qwen2.5-1.5B-Instruct", 6, "tp_does_not_divide_rows"),
        ("microsoft/phi-4", 5, "tp_does_not_divide_vocabulary"),
        ("meta-llama/Llama-3.1-8B-Instruct", 3, "tp_does_not_divide_heads"),
        ("meta-llama/Llama-3.1-8B-Instruct", 16, None),
    ],
)
def test_what_a_degree_must_divide(model: str, tp: int, code: str | None) -> None:
    codes = [reason.code for reason in shard_reasons(open_model(model).ir, Parallel(tp=tp))]
    assert code in codes if code else codes == []


def test_states_need_a_block_for_every_sequence() -> None:
    def stops(version: str, sequences: int | None = None) -> bool:
        settings = Settings(version=version, gpu_memory_utilization=0.95, max_num_seqs=sequences)
        found = check("Qwen/Qwen3.8-27B", "RTX PRO 6000", "vllm", settings=settings)
        codes = [reason.code for reason in found.document.reasons]
        assert found.fits == ("too_few_state_blocks" not in codes)
        return not found.fits

    assert stops("0.27.0")
    assert not stops("0.18.0") and not stops("0.27.0", 16)


def test_a_card_without_bfloat16_computes_in_float16() -> None:
    small = "Qwen/Qwen2.5-1.5B-Instruct"
    free = check(small, "T4", "vllm", context=4096)
    asked = check(small, "T4", "vllm", context=4096, dtype="bfloat16")
    older = check(small, "T4", "vllm", context=4096, settings=Settings(version="0.8.5"))
    assert free.fits and any("float16" in note for note in free.document.notes)
    assert [[r.code for r in each.document.reasons] for each in (asked, older)] == [["bf16_needs_sm80"]] * 2


def test_batch_defaults_followed_the_cards_name_then_its_memory() -> None:
    """`engine/arg_utils.py` of the wheels: H100 and H200 by name to 0.8.4, then 70 GiB but no A100, and no GB10."""
    vllm, workload = find_engine("vllm"), Workload(context=8192)
    steps = {
        (card, version): vllm.scheduler(find_gpu(card), Settings(version=version), workload)
        for card in ("L40S", "A100 SXM4 80GB", "H100 SXM", "B200 SXM", "GB10")
        for version in ("0.7.3", "0.8.3", "0.8.4", "0.8.5", "0.9.0", "0.28.0", "0.33.0")
    }
    small, large = Scheduler(2048, 256), Scheduler(8192, 1024)
    told = {card: [step for (name, _), step in steps.items() if name == card] for card, _ in steps}
    v0 = Scheduler(8192, 256)
    assert told["L40S"] == [v0, small, small, small, small, small, small]
    assert told["A100 SXM4 80GB"] == [v0, small, small, small, small, small, small]
    assert told["H100 SXM"] == [v0, large, large, large, large, large, large]
    assert told["B200 SXM"] == [v0, small, small, large, large, Scheduler(16384, 1024), Scheduler(16384, 1024)]
    assert told["GB10"] == [v0, small, small, small, small, small, small]


def test_patch_levels_as_their_wheels_have_them() -> None:
    """Each was read by `benchmarks.read_vllm_wheels` in the version that brought it and in the one before."""
    turned = {
        "mla": ("0.7.0", "0.7.1"), "hybrid_groups": ("0.9.0", "0.9.1"), "names_dtypes": ("0.9.0", "0.9.1"),
        "states_for_graphs": ("0.19.1", "0.20.0"),
    }  # fmt: skip
    for field, (before, since) in turned.items():
        seen = [asdict(rules_for(version)[0])[field] for version in (before, since)]
        assert seen == [False, True], field
    assert [rules_for(version)[0].online_fp8 for version in ("0.30.0", "0.31.0")] == ["fp8", "fp8_per_tensor"]
    assert ["gemma3_text" in rules_for(version)[0].no_float16 for version in ("0.10.1", "0.10.2")] == [False, True]


def test_the_second_runner_names_models_with_media_too() -> None:
    assert "KimiK3ForConditionalGeneration" in named_classes(rules_for("0.27.1")[0])
    assert named_classes(rules_for("0.23.0")[0]) == {"Qwen3ForCausalLM", "LlamaForCausalLM", "MistralForCausalLM"}
    assert named_classes(rules_for("0.21.0")[0]) == named_classes(rules_for(None)[0]) == frozenset()


@pytest.mark.parametrize(
    ("card", "version", "gib"),
    [("H100", "0.25.1", 61.29), ("B200", "0.25.1", 68.6), ("B200", "0.27.0", 65.97), ("RTX PRO 6000", "0.33.0", 65.97)],
)
def test_experts_in_blocks_are_padded_as_the_kernel_of_a_card_has_them(card: str, version: str, gib: float) -> None:
    # Source: printed on H100 and, by Marlin's kernels, 65.97; B200 as oracle/mxfp4.py rounds up.
    ir = open_model("openai/gpt-oss-120b").ir
    estimate = find_engine("vllm").memory(ir, find_gpu(card), Settings(version), Workload(8192))
    assert estimate.memory.weights.value / 2**30 == pytest.approx(gib, rel=8e-3)


def test_a_step_holds_a_block_where_prompts_are_cut_at_blocks() -> None:
    """vllm#36734: Qwen3.5-122B-A10B-GPTQ-Int4 on two cards, 0.17.1: "block_size (2096) must be <= max_num_batched_tokens (2048)"."""

    def codes(
        version: str, caches: bool | None, tokens: int | None = None, model: str = "Qwen/Qwen3.5-122B-A10B-GPTQ-Int4"
    ) -> list[str]:
        settings = Settings(version=version, parallel=Parallel(2), max_num_seqs=16, max_num_batched_tokens=tokens)
        settings = replace(settings, features=Features(prefix_caching=caches))
        return [reason.code for reason in check(model, "A100 80GB", "vllm", settings=settings, context=131_072).said]

    assert codes("0.17.1", True) == ["block_larger_than_step"]
    assert codes("0.17.1", True, 2096) == codes("0.17.1", None) == codes("0.28.0", True) == []
    assert codes("0.17.1", True, 512, "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16") == []
