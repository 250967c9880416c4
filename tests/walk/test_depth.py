"""Depth pruning: fewer blocks, the cheapest ones, one graph with quantization behind it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from passes import graph
from passes.assemble import differences
from passes.calibration import TextSource
from passes.checkpoint import Checkpoint
from passes.execute import execute
from passes.formats.compressed_tensors import PackQuantized
from passes.ir.model import ModelIR
from passes.ir.sources import open_model
from passes.job import Job
from passes.kv_cache import KVCachePass
from passes.prune.depth import DepthPrune, pruned_config
from passes.prune.influence import RenumberedWeights, choose_blocks
from passes.quantize.quantize import Quantize
from tests.walk.conftest import BLOCKS, save_tiny_llama

FP32, CPU = torch.float32, torch.device("cpu")


def test_the_description_loses_whole_blocks(llama_ir: ModelIR) -> None:
    pruned = DepthPrune(1, (2,)).rewrite(llama_ir)
    assert len(pruned.decoder.layers) == BLOCKS - 1 and pruned.config["num_hidden_layers"] == BLOCKS - 1
    per_block = (llama_ir.tensor_bytes - pruned.tensor_bytes, llama_ir.weights - pruned.weights)
    again = DepthPrune(2, (0, 1)).rewrite(llama_ir)
    assert (llama_ir.tensor_bytes - again.tensor_bytes, llama_ir.weights - again.weights) == tuple(
        2 * x for x in per_block
    )


def test_config_lists_with_an_entry_a_layer_are_cut() -> None:
    config = {
        "num_hidden_layers": 3,
        "layer_types": ["a", "b", "c"],
        "text_config": {"num_hidden_layers": 3, "kinds": [1, 2, 3]},
    }
    assert pruned_config(config, (0, 2)) == {
        "num_hidden_layers": 2, "layer_types": ["a", "c"], "text_config": {"num_hidden_layers": 2, "kinds": [1, 3]},
    }  # fmt: skip


def test_kept_blocks_keep_their_weights(llama: Path, llama_ir: ModelIR) -> None:
    one = DepthPrune(2, (1, 2))
    view = RenumberedWeights(Checkpoint(llama), llama_ir, one.kept(BLOCKS))
    last = "mlp.up_proj.weight"
    assert torch.equal(
        view.read([f"model.layers.1.{last}"])[f"model.layers.1.{last}"],
        Checkpoint(llama).read([f"model.layers.3.{last}"])[f"model.layers.3.{last}"],
    )
    assert "model.norm.weight" in view and "model.layers.1.mlp.up_proj.weight" in view


@pytest.mark.parametrize(
    "bad", [DepthPrune(0), DepthPrune(BLOCKS - 1), DepthPrune(2, (1,)), DepthPrune(1, (9,)), DepthPrune(2, (1, 1))]
)
def test_impossible_choices_are_refused(bad: DepthPrune, llama_ir: ModelIR) -> None:
    assert bad.illegal(llama_ir)


def test_a_block_that_does_nothing_is_the_one_to_drop(tmp_path: Path, tokens: torch.Tensor) -> None:
    model = save_tiny_llama(tmp_path / "idle")
    tensors = load_file(model / "model.safetensors")
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        tensors[f"model.layers.2.{name}.weight"].zero_()
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    assert choose_blocks(open_model(model).ir, Checkpoint(model), 1, tokens, FP32, CPU) == (2,)


def test_prune_quantize_and_kv_cache_are_one_graph(llama: Path, llama_ir: ModelIR, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("A quick brown fox jumps over the lazy dog; it is seldom seen to rest. " * 40)
    chain = (DepthPrune(1), Quantize("gptq", PackQuantized(4, 32)), KVCachePass("fp8", True))
    job = Job(
        llama_ir, llama, chain, tmp_path / "out", tmp_path / "work",
        calibration=TextSource(str(text), 8, 32), evaluation=TextSource("python-reference", 4, 32),
    )  # fmt: skip
    outcome = execute(job)
    assert differences(job.out, graph.rewrite(llama_ir, chain)) == []
    resolved = outcome.passes[0]
    assert isinstance(resolved, DepthPrune) and resolved.blocks is not None and resolved.blocks[0] in (1, 2)
    assert graph.from_json(json.loads((job.out / "tightfit.json").read_text())["passes"]) == outcome.passes
    assert AutoModelForCausalLM.from_pretrained(job.out).config.num_hidden_layers == BLOCKS - 1
    assert all(step.reused for step in execute(job).steps)
