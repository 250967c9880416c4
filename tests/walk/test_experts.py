"""Expert pruning: REAP's figure against its definition, fewer experts in every layout, checkpoints that load as they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from passes.blocks.dense_model import DenseModel
from passes.blocks.stream import BlockStream
from passes.files.checkpoint import Checkpoint
from passes.ir.model import Role
from passes.ir.sources import open_model
from passes.prune.experts import ExpertPrune
from passes.prune.reap import saliency
from passes.walk.edit import BlockInputs
from tests.walk.conftest import context, save_family

IDS = torch.randint(3, 250, (8, 24), generator=torch.Generator().manual_seed(1))
FAMILIES = ("mixtral", "olmoe", "qwen3_moe", "qwen2_moe", "gpt_oss", "deepseek_v3", "qwen3_next", "llama4_text")


def dense_of(folder: Path) -> DenseModel:
    return DenseModel(open_model(folder).ir, Checkpoint(folder), (folder.name,))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layout_loads_with_exactly_the_predicted_tensors(family: str, tmp_path: Path) -> None:
    dense = dense_of(save_family(family, tmp_path / "source", torch.float32))
    pass_ = ExpertPrune(3)
    assert pass_.illegal(dense.ir) == ()
    (work := tmp_path / "work").mkdir()
    made = pass_.dense(dense, context(work, IDS))
    assert {t.name: t for t in made.ir.tensors()} == {t.name: t for t in Checkpoint(made.weights.folder).describe()}
    model: Any = AutoModelForCausalLM.from_pretrained(made.weights.folder)
    with torch.no_grad():
        assert bool(model(IDS).logits.isfinite().all())


@pytest.mark.parametrize("family", ["olmoe", "qwen2_moe"])
def test_an_expert_that_adds_nothing_goes_and_the_others_stay_as_they_were(family: str, tmp_path: Path) -> None:
    folder = save_family(family, tmp_path / "source", torch.float32)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for layer in model.model.layers:
            layer.mlp.experts.down_proj[1] = 0.0
    model.save_pretrained(folder)
    dense = dense_of(folder)
    (work := tmp_path / "work").mkdir()
    made = ExpertPrune(3).dense(dense, context(work, IDS))
    before, after = dense.block(0), made.block(0)
    assert made.ir.config["num_experts"] == 3
    assert torch.equal(after["mlp.gate.weight"], before["mlp.gate.weight"][[0, 2, 3]])
    for new, old in enumerate((0, 2, 3)):
        for part in ("gate_proj", "up_proj", "down_proj"):
            name = f"mlp.experts.{{}}.{part}.weight"
            assert torch.equal(after[name.format(new)], before[name.format(old)])
    assert all(torch.equal(after[name], before[name]) for name in before if "shared_expert" in name)


def test_the_figure_is_the_mean_of_router_weight_times_output_norm(tmp_path: Path) -> None:
    folder = save_family("olmoe", tmp_path / "source", torch.float32)
    dense = dense_of(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    layer, seen = model.model.layers[0].mlp, []
    layer.register_forward_pre_hook(lambda module, args: seen.append(args[0].detach()))
    with torch.no_grad():
        model(IDS)
        x_TD = seen[0].flatten(0, 1)
        scores = torch.softmax(x_TD @ layer.gate.weight.T, -1)
        shares, chosen = scores.topk(2, -1)
        wanted = []
        for expert in range(4):
            rows, places = torch.where(chosen == expert)
            gate, up = (x_TD[rows] @ layer.experts.gate_up_proj[expert].T).chunk(2, -1)
            made = (torch.nn.functional.silu(gate) * up) @ layer.experts.down_proj[expert].T
            wanted.append(float((made.norm(dim=-1) * shares[rows, places]).mean()))
    stream = BlockStream(dense, context(tmp_path / "work", IDS))
    block = next(stream.blocks(0))
    with block.loaded() as (replica, *_):
        down = next(lin for lin in dense.ir.decoder.block(0).linears if lin.role is Role.DOWN)
        found = saliency(BlockInputs(replica, stream.hidden, 1, lambda: (stream.hidden, 1)), down)
    assert found.tolist() == pytest.approx(wanted, rel=1e-4)


def test_what_a_model_lacks_is_refused_with_a_reason(tmp_path: Path) -> None:
    plain = open_model(save_family("llama", tmp_path / "plain", torch.float32)).ir
    mixture = open_model(save_family("olmoe", tmp_path / "mixture", torch.float32)).ir
    assert [reason.code for reason in ExpertPrune(3).illegal(plain)] == ["no_experts"]
    assert [reason.code for reason in ExpertPrune(1).illegal(mixture)] == ["experts_kept"]


def test_groups_of_a_router_stay_whole(tmp_path: Path) -> None:
    """DeepSeek V3's router takes the best two of each group's scores, and then of the best groups only."""
    ir = open_model(save_family("deepseek_v3", tmp_path / "source", torch.float32)).ir
    grouped = replace(ir, config={**ir.config, "n_group": 2, "topk_group": 1})
    assert ExpertPrune(2).illegal(ir) == ()
    assert [reason.code for reason in ExpertPrune(2).illegal(grouped)] == ["expert_groups"]
