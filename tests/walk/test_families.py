"""Every family whose transformers class runs goes through the walk's adapter block by block as it does whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from passes.algorithms.method import method
from passes.base import Pass
from passes.blocks.decoded_weights import DecodedCheckpoint
from passes.blocks.decoder import Decoder
from passes.blocks.dense_model import DenseModel
from passes.blocks.model_class import SAME_CLASS, WITHOUT_CLASS
from passes.chain import rewrite
from passes.files.checkpoint import Checkpoint, Weights, write_shard
from passes.formats.awq import Awq
from passes.formats.compressed_tensors.floats import FloatQuantized
from passes.formats.compressed_tensors.integers import IntQuantized, PackQuantized
from passes.formats.format import Format
from passes.ir import catalog
from passes.ir.model import ModelIR
from passes.ir.sources import open_model
from passes.kv_cache import KVCachePass
from passes.measure.evaluate import evaluate
from passes.quantize.quantize import Quantize
from passes.walk.state import WalkState
from passes.walk.walk import Walk
from tests.walk.conftest import context
from tests.walk.families import FAMILIES, SEEING, save_seeing, save_tiny

pytestmark = pytest.mark.slow

CPU, FP32 = torch.device("cpu"), torch.float32
_ROUTED = ("mixtral", "qwen3_moe", "gpt_oss", "llama4_text")
IDS = torch.randint(3, 256, (4, 24), generator=torch.Generator().manual_seed(1))


def through(ir: ModelIR, weights: Weights, ids: torch.Tensor) -> torch.Tensor:
    """Logits of a batch that goes through the model block by block."""
    dense = DenseModel(ir, weights)
    decoder = Decoder(dense, FP32, CPU)
    [hidden] = decoder.embed([ids])
    for index in range(len(decoder)):
        with decoder.block(index, dense.block(index)) as layer:
            hidden = decoder.run(layer, index, hidden)
    with decoder.head():
        return decoder.logits(hidden)


def walked(source: Path, chain: tuple[Pass, ...], name: str, folder: Path) -> tuple[float, WalkState, Walk]:
    """KL of a walk's result against its source, what the walk reported, the walk."""
    ir, weights = open_model(source).ir, Checkpoint(source)
    target = rewrite(ir, chain)
    dense, run = DenseModel(ir, weights), context(folder, IDS)
    walk = Walk(dense, target, method(name), run, batch_tokens=2 * IDS.shape[1])
    state = walk.run()
    outer = [t.name for linear in ir.outer for t in linear.tensors()] + [t.name for t in ir.outer_tensors]
    write_shard(folder / "shards" / "model-00000.safetensors", weights.read(outer))
    result = DenseModel(ir, DecodedCheckpoint(Checkpoint(folder / "shards"), target, FP32))
    return evaluate(dense, result, run.part(folder / "evaluate")).kl, state, walk


@pytest.mark.parametrize("family", FAMILIES)
def test_block_by_block_computes_what_the_whole_model_computes(family: str, tmp_path: Path) -> None:
    model = save_tiny(family, tmp_path)
    with torch.no_grad():
        whole = model(IDS[:2], use_cache=False).logits
    torch.testing.assert_close(
        through(open_model(tmp_path).ir, Checkpoint(tmp_path), IDS[:2]), whole, atol=1e-3, rtol=1e-3
    )


@pytest.mark.parametrize("family", SEEING)
def test_decoders_of_models_that_see_are_walked_with_text(family: str, tmp_path: Path) -> None:
    model = save_seeing(family, tmp_path)
    with torch.no_grad():
        whole = model(input_ids=IDS[:2], use_cache=False).logits
    found = through(open_model(tmp_path).ir, Checkpoint(tmp_path), IDS[:2])
    torch.testing.assert_close(found, whole, atol=1e-3, rtol=1e-3)


def test_the_list_of_types_without_a_class_is_what_transformers_lacks() -> None:
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )

    known = {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, *SAME_CLASS}
    described = (catalog.entry(name).config for name in catalog.ids())
    kinds = {str(config["model_type"]) for config in described if "routed_expert_hidden_size" not in str(config)}
    assert kinds - known == WITHOUT_CLASS


@pytest.mark.parametrize("family", ["gemma2", "gemma4_text", "phi3", "opt", "falcon", *_ROUTED])
def test_eight_bits_are_nearly_lossless_whatever_the_family(family: str, tmp_path: Path) -> None:
    """A matrix fed with the wrong inputs, stored under a wrong name or twice rounded would show."""
    save_tiny(family, tmp_path / "source")
    chain = (Quantize("gptq", PackQuantized(8, 32)), KVCachePass("fp8", True))
    kl, state, _ = walked(tmp_path / "source", chain, "gptq", tmp_path / "walk")
    # A router may pick another expert after the least change; dense models have no such cliffs.
    assert kl < (0.05 if family in _ROUTED else 1e-3)
    assert all(loss == loss for report in state.reports for loss in report.losses.values())


@pytest.mark.parametrize("form", [PackQuantized(4, 32), FloatQuantized(0, static=True)], ids=lambda form: form.label)
def test_experts_that_no_token_reached_are_rounded_and_named(form: Format, tmp_path: Path) -> None:
    save_tiny("qwen3_moe", tmp_path / "source")
    shard = tmp_path / "source" / "model.safetensors"
    tensors = load_file(shard)
    for layer in range(2):
        # Equal logits: every token goes to the same two experts.
        tensors[f"model.layers.{layer}.mlp.gate.weight"].zero_()
    save_file(tensors, shard)
    chain = (Quantize("gptq", form),)
    _, state, _ = walked(tmp_path / "source", chain, "gptq", tmp_path / "walk")
    unseen = [(report.block, name) for report in state.reports for name in report.unseen]
    stored = Checkpoint(tmp_path / "walk" / "shards")
    assert len(unseen) == 2 * 2 * 3
    for block, name in unseen:
        scale = f"model.layers.{block}.{name}.weight_scale"
        assert bool(stored.read([scale])[scale].isfinite().all())
        if form.static_inputs:
            # The inputs of an expert that was never asked are taken to be as large as those of the others.
            experts = [f"model.layers.{block}.mlp.experts.{n}.{name.rpartition('.')[2]}.input_scale" for n in range(4)]
            read = stored.read(experts)
            number = int(name.split(".")[2])
            assert read[experts[number]] == max(read.values())


#: What takes a group's scales over: Gemma's norms are 1 + w; OLMo 2 has none before; Falcon's norm has other readers.
FOLDS = {
    "llama": {"self_attn.q_proj": "norm", "mlp.gate_proj": "norm", "mlp.down_proj": "rows"},
    "gemma2": {"self_attn.q_proj": "norm_plus_one", "mlp.gate_proj": "norm_plus_one", "mlp.down_proj": "rows"},
    "phi3": {"self_attn.qkv_proj": "norm", "mlp.gate_up_proj": "norm"},
    "olmo2": {"mlp.down_proj": "rows"},
    "falcon": {},
    "opt": {"self_attn.q_proj": "norm", "self_attn.out_proj": "rows", "fc1": "norm", "fc2": "rows"},
}


@pytest.mark.parametrize("family", FOLDS)
def test_folds_are_found_on_the_block_itself(family: str, tmp_path: Path) -> None:
    save_tiny(family, tmp_path / "source")
    kl, _, walk = walked(
        tmp_path / "source", (Quantize("smoothquant", IntQuantized()),), "smoothquant", tmp_path / "walk"
    )
    for folds in walk._found_folds.values():
        assert {group: fold.kind for group, fold in folds.items()} == FOLDS[family]
    assert kl < 0.01


def test_awq_stores_scaled_weights_that_compute_the_same(tmp_path: Path) -> None:
    save_tiny("llama", tmp_path / "source")
    kl, _, _ = walked(tmp_path / "source", (Quantize("awq", Awq(32)),), "awq", tmp_path / "awq")
    plain, _, _ = walked(tmp_path / "source", (Quantize("rtn", Awq(32)),), "rtn", tmp_path / "rtn")
    assert kl < plain


def test_gemma_4_with_experts_beside_its_mlp_is_walked(tmp_path: Path) -> None:
    experts = {"enable_moe_block": True, "num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 32}
    model = save_tiny("gemma4_text", tmp_path / "source", **experts)
    with torch.no_grad():
        whole = model(IDS[:2], use_cache=False).logits
    source = tmp_path / "source"
    torch.testing.assert_close(through(open_model(source).ir, Checkpoint(source), IDS[:2]), whole, atol=1e-3, rtol=1e-3)
    chain = (Quantize("gptq", PackQuantized(8, 32)), KVCachePass("fp8", True))
    assert walked(source, chain, "gptq", tmp_path / "walk")[0] < 0.05
