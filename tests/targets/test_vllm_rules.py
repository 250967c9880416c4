"""vLLM's rules by version and runner, against what its source and start-ups say."""

from __future__ import annotations

import pytest

from passes.ir.sources import open_model
from planner.check import check
from targets.engines.engine import Parallel, Settings
from targets.engines.vllm.memory.activations import captured_graphs
from targets.engines.vllm.rules.runner import subtracts_graphs, uses_v2_runner
from targets.engines.vllm.rules.shards import shard_reasons
from targets.engines.vllm.rules.versions import NEWEST, parse_version, rules_for


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
    """Section 1.3 of `_set_cudagraph_sizes` as read: 51 + 51 at 1,024 sequences, 51 + 35 at 256."""
    assert [captured_graphs(sequences) for sequences in (1024, 256, 1)] == [102, 86, 3]


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
