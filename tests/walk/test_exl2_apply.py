"""EXL2 end to end: measured once, allocated within the budget, written and read back, behind depth pruning too."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from passes.blocks.decoded_weights import DecodedCheckpoint
from passes.blocks.dense_model import DenseModel
from passes.files.checkpoint import Checkpoint
from passes.ir.model import ModelIR
from passes.ir.sources import open_model
from passes.kv_cache import KVCachePass
from passes.prune.depth import DepthPrune
from passes.quantize.exl2 import QuantizeExl2, budget_bytes, resolved_bytes
from passes.quantize.exl2_errors import measure, saved_errors
from passes.quantize.format_names import pass_named
from passes.run.assemble import differences
from passes.run.execute import execute
from passes.run.job import Job
from passes.text.source import TextSource
from tests.walk.conftest import context, save_family, save_tiny_llama

pytestmark = pytest.mark.slow


@pytest.fixture
def job(llama: Path, llama_ir: ModelIR, tmp_path: Path) -> Job:
    text = tmp_path / "text.txt"
    text.write_text("A quick brown fox jumps over the lazy dog; it is seldom seen to rest. " * 40)
    return Job(
        llama_ir, llama, (QuantizeExl2(5.5), KVCachePass("q4")), tmp_path / "out", tmp_path / "work",
        calibration=TextSource(str(text), 8, 32), evaluation=TextSource("python-reference", 4, 32),
    )  # fmt: skip


def test_more_bits_cost_less(llama: Path, llama_ir: ModelIR, tokens: torch.Tensor, tmp_path: Path) -> None:
    measure(DenseModel(llama_ir, Checkpoint(llama)), context(tmp_path, tokens))
    for layer in saved_errors(tmp_path, len(llama_ir.decoder.layers)):
        for errors in (layer.attention, layer.mlp):
            assert errors[0] > 2 * errors[6] > 8 * errors[-1] > 0


@pytest.mark.parametrize(("family", "changes"), [("qwen2", {"num_key_value_heads": 1}), ("starcoder2", {})])
def test_biases_are_stored_as_readers_take_them(family: str, changes: dict[str, int], tmp_path: Path) -> None:
    """In fp16, padded to 32 outputs. ExLlamaV2 folds down's order into the outputs of gate and up but not into their biases, so where
    they have some the channels are stored in that order. A channel out of place would show in the divergence.
    """
    model, text = save_family(family, tmp_path / "model", **changes), TextSource("python-reference", 8, 64)
    job = Job(
        open_model(model).ir,
        model,
        (QuantizeExl2(6),),
        tmp_path / "out",
        tmp_path / "work",
        text,
        TextSource("self", 2, 64),
    )
    found = execute(job)
    assert found.measured is not None and found.measured.kl < 0.1
    stored = {tensor.name: tensor for tensor in Checkpoint(job.out).describe()}
    assert {tensor.dtype for name, tensor in stored.items() if name.endswith("proj.bias")} == {"F16"}
    if family == "qwen2":
        assert stored["model.layers.0.self_attn.k_proj.bias"].shape == (32,)
    else:
        order = Checkpoint(job.out).read(["model.layers.0.mlp.c_proj.q_invperm"])["model.layers.0.mlp.c_proj.q_invperm"]
        assert order.tolist() == list(range(len(order)))


@pytest.mark.parametrize("scheme", ["exl2-5.5", "nvfp4", "mxfp4", "gptq-4-g32-asym"])
def test_matrices_of_zeros_stay_zeros(scheme: str, tmp_path: Path) -> None:
    """Blocks that begin as the identity (LLaMA Pro) have such matrices: no scale follows from them, and no option costs anything."""
    model, text = save_tiny_llama(tmp_path / "model", blocks=2), TextSource("python-reference", 8, 64)
    weights = load_file(model / "model.safetensors")
    zeros = [f"model.layers.1.{name}.weight" for name in ("self_attn.o_proj", "mlp.down_proj")]
    save_file(weights | {name: torch.zeros_like(weights[name]) for name in zeros}, model / "model.safetensors")
    one = pass_named(scheme)
    assert one is not None
    ir, out = open_model(model).ir, tmp_path / "out"
    found = execute(Job(ir, model, (one,), out, tmp_path / "work", text, TextSource("self", 2, 64)))
    decoded = DecodedCheckpoint(Checkpoint(out), found.target, torch.float32).read(zeros)
    assert all(bool((weight == 0).all()) for weight in decoded.values())


def test_exl2_is_measured_allocated_and_written(job: Job) -> None:
    outcome = execute(job)
    resolved = outcome.passes[0]
    assert isinstance(resolved, QuantizeExl2) and resolved.resolved
    assert resolved_bytes(job.source, resolved.choices) <= budget_bytes(job.source, 5.5)
    assert differences(job.out, outcome.target) == []
    config = json.loads((job.out / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "exl2" and config["rope_theta"] > 0
    assert {"lm_head.q_weight", "model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.q_invperm"} <= set(
        Checkpoint(job.out).names
    )
    head = DecodedCheckpoint(Checkpoint(job.out), outcome.target, torch.float32).read(["lm_head.weight"])[
        "lm_head.weight"
    ]
    embedding = Checkpoint(job.out).read(["model.embed_tokens.weight"])["model.embed_tokens.weight"]
    assert head.shape == embedding.shape
    assert float((head - embedding).norm() / embedding.norm()) < 0.05
    assert all(step.reused for step in execute(job).steps)


def test_the_measurement_serves_every_budget_and_more_bits_are_better(job: Job) -> None:
    kl = []
    for number, bpw in enumerate((4.0, 5.0, 7.0)):
        outcome = execute(replace(job, passes=(QuantizeExl2(bpw, 8),)))
        step = next(step for step in outcome.steps if step.name == "measure EXL2")
        assert step.reused == (number > 0)
        kl.append(outcome.measured.kl)
    assert kl == sorted(kl, reverse=True)


def test_the_headline_chain_runs(job: Job) -> None:
    outcome = execute(replace(job, passes=(DepthPrune(1), QuantizeExl2(5.5), KVCachePass("q4"))))
    assert [type(one) for one in outcome.passes] == [DepthPrune, QuantizeExl2, KVCachePass]
    assert len(outcome.target.decoder.layers) == len(job.source.decoder.layers) - 1
    assert differences(job.out, outcome.target) == []
