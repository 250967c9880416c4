"""EXL2 end to end: measured once, allocated within the budget, written and read back, behind depth pruning too."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from passes.assemble import differences
from passes.calibration import TextSource
from passes.checkpoint import Checkpoint
from passes.decoded import DecodedCheckpoint
from passes.execute import execute
from passes.ir.model import ModelIR
from passes.job import Job
from passes.kv_cache import KVCachePass
from passes.prune.depth import DepthPrune
from passes.quantize.exl2_pass import QuantizeExl2, budget_bytes, resolved_bytes
from passes.sensitivity import measure


@pytest.fixture
def job(llama: Path, llama_ir: ModelIR, tmp_path: Path) -> Job:
    text = tmp_path / "text.txt"
    text.write_text("A quick brown fox jumps over the lazy dog; it is seldom seen to rest. " * 40)
    return Job(
        llama_ir, llama, (QuantizeExl2(5.5), KVCachePass("q4")), tmp_path / "out", tmp_path / "work",
        calibration=TextSource(str(text), 8, 32), evaluation=TextSource("python-reference", 4, 32),
    )  # fmt: skip


def test_more_bits_cost_less(llama: Path, llama_ir: ModelIR, tokens: torch.Tensor, tmp_path: Path) -> None:
    for layer in measure(llama_ir, Checkpoint(llama), tokens, tmp_path, torch.float32, torch.device("cpu")):
        for errors in (layer.attention, layer.mlp):
            assert errors[0] > 2 * errors[6] > 8 * errors[-1] > 0


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
