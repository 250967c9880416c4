"""Zeros: as many as asked for and where they cost least, with the other weights making up for them, in one pass with rounding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from passes.algorithms.gptq import GptqOptions, gptq, sparse
from passes.algorithms.sparsity import Mask
from passes.base import Pass
from passes.blocks.decoded_weights import DecodedCheckpoint
from passes.blocks.dense_model import DenseModel
from passes.blocks.matrices import members
from passes.chain import illegal, method, rewrite
from passes.files.checkpoint import Checkpoint
from passes.formats.compressed_tensors.floats import FloatQuantized
from passes.formats.compressed_tensors.integers import PackQuantized
from passes.formats.format import Grid
from passes.ir.model import ModelIR
from passes.ir.sources import open_model
from passes.prune.sparse import Sparsify
from passes.quantize.format_names import pass_named
from passes.quantize.quantize import Quantize
from passes.run.assemble import differences
from passes.run.execute import execute
from passes.run.job import Job
from passes.text.source import TextSource
from passes.walk.walk import Walk
from planner import asked
from tests.walk.conftest import context
from tests.walk.families import save_tiny
from tests.walk.test_gptq import K, decode, loss, problem


@pytest.mark.parametrize("how", ["sparsegpt", "wanda"])
@pytest.mark.parametrize("run", [0, 4, 8])
def test_the_share_of_zeros_is_exact(how: str, run: int) -> None:
    weight, hessian = problem(0)
    found, _ = sparse(weight, hessian, GptqOptions(mask=Mask(how, 0.5, run)), "w")
    zeros = found == 0
    assert int(zeros.sum()) == found.numel() // 2
    if run:
        assert bool((zeros.reshape(-1, run).sum(1) == run // 2).all())
    elif how == "wanda":
        assert bool((zeros.sum(1) == K // 2).all())


@pytest.mark.parametrize("run", [0, 4])
def test_compensation_beats_dropping_and_knowing_inputs_beats_magnitude(run: int) -> None:
    weight, hessian = problem(1)
    results = [sparse(weight, hessian, GptqOptions(mask=Mask(how, 0.5, run)), "w")[0] for how in ("sparsegpt", "wanda")]
    results.append(weight * Mask("wanda", 0.5, run).wanda(weight, None))
    joint, wanda, magnitude = (loss(weight, result, hessian) for result in results)
    assert joint < wanda < magnitude


@pytest.mark.parametrize("symmetric", [True, False])
def test_zeros_and_rounding_in_one_pass_beat_one_after_the_other(symmetric: bool) -> None:
    weight, hessian = problem(0)
    grid, options = Grid(4, 32, symmetric), GptqOptions("static", mask=Mask("sparsegpt", 0.5, 4))
    joint = decode(gptq(weight, hessian, grid, torch.float32, options, "w")[0], 32)
    zeros = joint == 0
    assert bool((zeros.reshape(-1, 4).sum(1) >= 2).all())
    first, _ = sparse(weight, hessian, options, "w")
    after = decode(gptq(first, torch.eye(K), grid, torch.float32, GptqOptions("static"), "w")[0], 32)
    assert loss(weight, joint, hessian) < loss(weight, after, hessian)


@pytest.mark.parametrize(
    "chain",
    [(Sparsify("sparsegpt", 0.5, "2:4"), Quantize("gptq", PackQuantized(4, 32))), (Sparsify("wanda", 0.5, "2:4"),),
     (Sparsify("sparsegpt", 0.5, "2:4"), Quantize("gptq", FloatQuantized()))],
    ids=["with int4", "alone", "with fp8"],
)  # fmt: skip
def test_a_checkpoint_has_the_pattern_everywhere(
    chain: tuple[Pass, ...], llama: Path, llama_ir: ModelIR, tmp_path: Path
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("two of four stay, and those that stay make up for those that go. " * 200)
    job = Job(llama_ir, llama, chain, tmp_path / "out", tmp_path / "work", TextSource(str(text), 8, 64))
    outcome = execute(job)
    assert not differences(job.out, rewrite(llama_ir, chain))
    decoded = DecodedCheckpoint(Checkpoint(job.out), outcome.target, torch.float32)
    for layer in range(len(llama_ir.decoder.layers)):
        name = f"{llama_ir.decoder.layer_prefix(layer)}mlp.gate_proj.weight"
        assert bool(((decoded.read([name])[name] == 0).reshape(-1, 4).sum(1) >= 2).all())


@pytest.mark.parametrize("family", ["gpt_oss", "llama4_text", "phi3"])
def test_banks_and_fused_matrices_stay_whole_with_zeros_in_them(family: str, tmp_path: Path) -> None:
    """The result has the source's tensors; each expert's matrices in a bank have the pattern along their inputs."""
    save_tiny(family, tmp_path / "source")
    ir = open_model(tmp_path / "source").ir
    ids = torch.randint(3, 256, (4, 24), generator=torch.Generator().manual_seed(1))
    chain = (Sparsify("sparsegpt", 0.5, "2:4"),)
    source, run = DenseModel(ir, Checkpoint(tmp_path / "source")), context(tmp_path / "walk", ids)
    Walk(source, rewrite(ir, chain), method(chain), run).run()
    stored = DenseModel(ir, Checkpoint(tmp_path / "walk" / "shards"))
    for layer in range(len(ir.decoder.layers)):
        tensors = stored.block(layer)
        names = [linear.name for linear in members(ir.decoder.block(layer)) if linear.quantizable]
        assert names
        for name in names:
            assert bool(((tensors[f"{name}.weight"] == 0).reshape(-1, 4).sum(1) >= 2).all())


@pytest.mark.parametrize(
    ("scheme", "codes"),
    [
        ("awq-4-g32", ["zeros_need_gptq"]),
        ("exl2-5.5", ["zeros_need_gptq"]),
        ("rtn-4-g32", ["zeros_need_gptq"]),
        ("fp8", []),
        ("w8a8", []),
    ],
)
def test_a_plan_refuses_zeros_with_methods_that_choose_their_own_rounding(
    scheme: str, codes: list[str], llama_ir: ModelIR
) -> None:
    chain = (Sparsify("sparsegpt", 0.5, "2:4"), pass_named(scheme))
    assert [reason.code for reason in illegal(llama_ir, chain)] == codes
    assert [reason.code for reason in asked.rewrite(llama_ir, chain)[1]] == codes, (
        "the planner weighs what apply accepts"
    )


@pytest.mark.parametrize("scheme", ["gptq-4-g32-act", "gptq-4-g32", "fp8"])
def test_runs_of_four_stay_together_in_every_order_of_the_columns(scheme: str, llama: Path, tmp_path: Path) -> None:
    """2:4 means the four inputs that stand together on disk, also where groups follow the activation order."""
    chain, ir = (Sparsify("sparsegpt", 0.5, "2:4"), pass_named(scheme)), open_model(llama).ir
    text = TextSource("python-reference", 8, 64)
    found = execute(Job(ir, llama, chain, tmp_path / "out", tmp_path / "work", text, TextSource("self", 2, 64)))
    stored = DecodedCheckpoint(Checkpoint(tmp_path / "out"), found.target, torch.float32)
    for linear in ir.decoder.block(0).linears:
        [weight] = stored.read([f"{ir.decoder.layer_prefix(0)}{linear.name}.weight"]).values()
        assert bool(((weight == 0).reshape(-1, 4).sum(1) >= 2).all()), linear.name


def test_patterns_that_do_not_fit_are_refused(llama_ir: ModelIR) -> None:
    assert Sparsify("sparsegpt", 0.5, "2:4").illegal(llama_ir) == ()
    for wrong in (
        Sparsify("magic"),
        Sparsify(sparsity=1.5),
        Sparsify(pattern="4:2"),
        Sparsify(sparsity=0.3, pattern="2:4"),
    ):
        assert len(wrong.illegal(llama_ir)) == 1
