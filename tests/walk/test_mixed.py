"""Bits where they matter: estimated costs rank what is measured, budgets hold, the resolved plan is never above the bounded one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from passes.blocks.dense_model import DenseModel
from passes.chain import from_json, rewrite, to_json
from passes.files.checkpoint import Checkpoint
from passes.formats.compressed_tensors.integers import PackQuantized
from passes.formats.dense import Dense
from passes.ir.model import ModelIR
from passes.ir.sources import open_model
from passes.measure.fisher import option_costs
from passes.quantize.format_names import pass_named
from passes.quantize.mixed import QuantizeMixed, groups, quantized_weights
from passes.run.assemble import differences
from passes.run.execute import execute
from passes.run.job import Job
from passes.text.source import TextSource
from tests.walk.conftest import context
from tests.walk.families import save_tiny

CPU, FP32 = torch.device("cpu"), torch.float32
Costs = dict[str, tuple[float, ...]]
OPTIONS = (PackQuantized(4, 32), PackQuantized(8, -1), Dense("F32"))


@pytest.fixture(scope="module")
def costs(llama: Path, llama_ir: ModelIR, tokens: torch.Tensor, tmp_path_factory: pytest.TempPathFactory) -> Costs:
    return option_costs(
        DenseModel(llama_ir, Checkpoint(llama)), OPTIONS, context(tmp_path_factory.mktemp("fisher"), tokens)
    )


def test_every_matrix_has_a_cost_for_every_option(llama_ir: ModelIR, costs: Costs) -> None:
    assert set(costs) == {name for names, _ in groups(llama_ir, OPTIONS) for name in names}
    assert all(four > eight > dense == 0 for four, eight, dense in costs.values())


def test_the_estimate_is_the_divergence_of_a_small_change(llama: Path, tokens: torch.Tensor, costs: Costs) -> None:
    """Each matrix alone at 8 bits: the measured KL, against the estimate, over all matrices."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(llama, dtype=FP32).eval()
    with torch.no_grad():
        reference = torch.log_softmax(model(tokens).logits, -1)
    measured, estimated = [], []
    for name, (_, cost, _) in costs.items():
        weight = model.get_submodule(name).weight
        dense = weight.data.clone()
        scale = dense.abs().amax(1, keepdim=True) / 127.5
        weight.data = (dense / scale).round() * scale
        with torch.no_grad():
            changed = torch.log_softmax(model(tokens).logits, -1)
        weight.data = dense
        measured.append(float((reference.exp() * (reference - changed)).sum(-1).mean()))
        estimated.append(cost)
    ranks = torch.tensor([measured, estimated]).argsort(1).argsort(1).float()
    assert float(torch.corrcoef(ranks)[0, 1]) > 0.8


@pytest.mark.parametrize("bpw", [4.6, 5.0, 6.5, 9.0])
def test_a_budget_holds_before_and_after_measuring(llama_ir: ModelIR, costs: Costs, bpw: float) -> None:
    bounded = QuantizeMixed(OPTIONS, bpw)
    resolved = bounded.allocated(llama_ir, costs)
    sizes = [one.rewrite(llama_ir).tensor_bytes for one in (bounded, resolved)]
    assert not bounded.resolved and resolved.resolved
    assert sizes[1] <= sizes[0]
    rest = llama_ir.tensor_bytes - sum(sizes[2] for _, sizes in groups(llama_ir, OPTIONS))
    assert sizes[0] - rest <= bpw * quantized_weights(llama_ir) / 8
    assert from_json(to_json([resolved])) == (resolved,)


def test_tied_layers_are_alike_and_within_the_budget(llama_ir: ModelIR, costs: Costs) -> None:
    bounded = QuantizeMixed(OPTIONS, 6.5)
    tied = bounded.allocated(llama_ir, costs, tied=True)
    kinds = {name.split(".", 3)[3]: form for name, form in tied.assigned or ()}
    layers = len(llama_ir.decoder.layers)
    assert kinds and len(tied.assigned or ()) == len(kinds) * layers
    assert tied.rewrite(llama_ir).tensor_bytes <= bounded.rewrite(llama_ir).tensor_bytes


def test_apply_resolves_and_stores_it(llama: Path, llama_ir: ModelIR, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("some matrices bear rounding worse than others, and they are given more bits. " * 200)
    chain = (QuantizeMixed(OPTIONS, 6.0),)
    job = Job(llama_ir, llama, chain, tmp_path / "out", tmp_path / "work", TextSource(str(text), 8, 64))
    outcome = execute(job)
    [one] = outcome.passes
    assert isinstance(one, QuantizeMixed) and one.resolved
    assert not differences(job.out, rewrite(llama_ir, outcome.passes))
    assert [step.reused for step in execute(job).steps] == [True] * len(outcome.steps)


def test_experts_share_one_format(tmp_path: Path, tokens: torch.Tensor) -> None:
    save_tiny("qwen3_moe", tmp_path / "source")
    ir = open_model(tmp_path / "source").ir
    costs = option_costs(
        DenseModel(ir, Checkpoint(tmp_path / "source")), OPTIONS, context(tmp_path / "f", tokens[:, :24])
    )
    one = replace(QuantizeMixed(OPTIONS, 7.0)).allocated(ir, costs)
    assert one.illegal(ir) == () and one.rewrite(ir).tensor_bytes > 0


def test_budgets_below_the_narrowest_format_are_refused(llama_ir: ModelIR) -> None:
    [reason] = QuantizeMixed(OPTIONS, 3.0).illegal(llama_ir)
    assert reason.code == "mixed_bpw_too_low" and "at least 4." in (reason.remedy or "")


def test_the_name_users_write() -> None:
    found = pass_named("mixed-5.0-g64-w8a8")
    assert isinstance(found, QuantizeMixed) and [form.label for form in found.palette] == [
        "w4a16-g64",
        "w8a8",
        "bf16",
    ]
