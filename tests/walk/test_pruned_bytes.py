"""A checkpoint of which something was taken out is an ordinary one: transformers loads it with nothing special, in exactly the bytes
that were predicted before it was made."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from passes import chain
from passes.base import Pass
from passes.blocks.dense_model import DenseModel
from passes.files.checkpoint import Checkpoint
from passes.ir.sources import open_model
from passes.prune.depth import DepthPrune
from passes.prune.experts import ExpertPrune
from passes.prune.width import WidthPrune
from tests.walk.conftest import context, save_family

IDS = torch.randint(3, 250, (8, 24), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("family", "passes"),
    [
        ("llama", (WidthPrune(96, 1),)), ("gemma3_text", (DepthPrune(1, (1,)), WidthPrune(64))),
        ("qwen2", (DepthPrune(1, (0,)), WidthPrune(96, 1, "fisher"))), ("qwen3_moe", (ExpertPrune(2),)),
    ],
)  # fmt: skip
def test_transformers_holds_exactly_the_predicted_bytes(family: str, passes: tuple[Pass, ...], tmp_path: Path) -> None:
    folder = save_family(family, tmp_path / "source", torch.bfloat16, num_hidden_layers=4)
    dense = DenseModel(open_model(folder).ir, Checkpoint(folder), (family,))
    predicted = chain.rewrite(dense.ir, passes)
    for number, pass_ in enumerate(passes):
        (work := tmp_path / str(number)).mkdir()
        dense = pass_.dense(dense, context(work, IDS))
    made = dense.folder(context(tmp_path, IDS))
    loaded: Any = AutoModelForCausalLM.from_pretrained(made, dtype="auto", output_loading_info=True)
    model, said = loaded
    assert not said["missing_keys"] and not said["unexpected_keys"] and not said["mismatched_keys"]
    assert sum(parameter.nbytes for parameter in model.parameters()) == predicted.tensor_bytes
    assert predicted.tensor_bytes == sum(tensor.bytes for tensor in Checkpoint(made).describe())
    assert bool(model(IDS).logits.isfinite().all())
