"""What vLLM's profile run and its estimate of graphs take, as start-ups that nothing is fitted to have printed it."""

import pytest

from benchmarks import first_contact, fit_memory
from passes.ir.sources import open_model
from targets.engines.vllm.memory.activations import Profile, cuda_graphs, overhead, peak_bytes
from targets.engines.vllm.memory.activations import fit as stored_fit
from targets.engines.vllm.memory.parameters import rotary_bytes
from targets.engines.vllm.rules.versions import rules_for

GIB = 1 << 30
QWEN = "Qwen/Qwen3.5-9B"


def test_drafted_tokens_are_checked_beside_the_logits_they_come_from() -> None:
    """vLLM 0.27's `_dummy_sampler_run`: 26 bytes of a row and entry of the vocabulary where tokens are drafted, else 14; V2 has its own."""
    ir, constants = open_model(QWEN).ir, stored_fit()["activation"]

    def peak(version: str, drafts: bool) -> float:
        profile = Profile(2048, 1024, 1, 1, eager=False, drafts=drafts)
        return peak_bytes(ir, profile, rules_for(version)[0], constants)

    more = peak("0.27.1", True) - peak("0.27.1", False)
    assert more == pytest.approx(1024 * ir.vocab_size * 12, rel=0.02)
    assert peak("0.29.0", True) == peak("0.29.0", False)


def test_the_first_graphs_take_a_share_however_few_there_are() -> None:
    """Qwen3.6-35B-A3B with 4 graphs on 0.20: an estimate of 0.39 GiB; Qwen3.5-9B with 86 on 0.19: 0.78."""
    ir, rules = open_model("Qwen/Qwen3.6-35B-A3B").ir, rules_for("0.20.0")[0]
    few, many = (
        cuda_graphs(ir, Profile(4096, sequences, 1, 1, eager=False, largest_graph=largest), rules)
        for sequences, largest in ((1, 4), (256, 512))
    )
    assert 0.15 < few.value / GIB < 0.45 and few.high / GIB > 0.39
    assert 0.5 < many.value / GIB < 0.8


@pytest.mark.parametrize(("model", "mib"), [("Qwen/Qwen3-VL-2B-Instruct", 256), ("Qwen/Qwen2.5-VL-7B-Instruct", 125)])
def test_positions_of_three_axes_have_tables_four_times_as_long(model: str, mib: int) -> None:
    assert rotary_bytes(open_model(model).ir) == mib << 20


def test_what_others_hold_of_a_card_counts_up_to_0_8() -> None:
    ir, profile = open_model("meta-llama/Llama-3.1-8B-Instruct").ir, Profile(8192, 256, 1, 1, eager=False)

    def wide(version: str) -> float:
        taken = overhead(ir, profile, rules_for(version)[0]).subtracted
        return (taken.high - taken.value) / GIB

    assert wide("0.8.5") - wide("0.9.0") == pytest.approx(1.1, abs=0.05)


def test_an_eager_start_is_no_better_known_than_others() -> None:
    ir, rules = open_model(QWEN).ir, rules_for("0.20.0")[0]
    eager, graphs = (
        overhead(ir, Profile(2048, 256, 1, 1, eager=eager, capability=89), rules).activations for eager in (True, False)
    )
    assert eager.value < graphs.value
    assert eager.high - eager.low == pytest.approx(graphs.high - graphs.low)


def test_ends_of_intervals_know_strangers_of_which_nothing_is_unexplained(monkeypatch: pytest.MonkeyPatch) -> None:
    row = {
        "gpu": "L40S",
        "gpus": 1,
        "vllm_version": "0.20.0",
        "command": "a",
        "source_url": "s",
        "loose": None,
        "unexplained": None,
    }
    rows = [
        row,
        {**row, "unexplained": "why"},
        {**row, "loose": "flags"},
        {**row, "vllm_version": "0.7.0"},
        {**row, "gpu": "GB10"},
    ]
    monkeypatch.setattr(first_contact, "load_rows", lambda: rows)
    monkeypatch.setattr(first_contact, "ask", lambda row: first_contact.Contact(row, 110.0, 90.0, 120.0, 100.0, 7.0))
    fit_memory.strangers.cache_clear()
    assert [
        (each.regime, each.source, each.contact.missing_bytes) for each in fit_memory.strangers() if each.tells
    ] == [("other", "s", 70.0)]
    fit_memory.strangers.cache_clear()
