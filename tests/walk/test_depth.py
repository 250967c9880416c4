"""Depth pruning: fewer blocks, the cheapest ones, one graph with quantization behind it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from passes.blocks.dense_model import DenseModel
from passes.blocks.renumbered import RenumberedWeights
from passes.chain import from_json, rewrite
from passes.files.checkpoint import Checkpoint
from passes.formats.compressed_tensors.integers import PackQuantized
from passes.ir.architectures import build_ir
from passes.ir.model import ModelIR
from passes.ir.sources import open_model
from passes.kv_cache import KVCachePass
from passes.prune.config import with_fewer_layers
from passes.prune.depth import DepthPrune, candidates
from passes.prune.influence import choose_blocks
from passes.quantize.quantize import Quantize
from passes.run.assemble import differences
from passes.run.execute import execute
from passes.run.job import Job
from passes.text.source import TextSource
from tests.walk.conftest import BLOCKS, context, save_tiny_llama
from tests.walk.families import save_tiny
from tests.walk.test_families import through

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
        "eos_token_id": [1, 2, 3],
        "text_config": {"num_hidden_layers": 3, "kinds": [1, 2, 3]},
        "vision_config": {"num_hidden_layers": 3, "kinds": [1, 2, 3]},
    }
    assert with_fewer_layers(config, (0, 2), 3) == {
        "num_hidden_layers": 2, "layer_types": ["a", "c"], "eos_token_id": [1, 2, 3],
        "text_config": {"num_hidden_layers": 2, "kinds": [1, 3]},
        "vision_config": {"num_hidden_layers": 3, "kinds": [1, 2, 3]},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"n_layer": 4}, {"n_layer": 2}),
        ({"n_layers": 4}, {"n_layers": 2}),
        ({"num_layers": 4}, {"num_layers": 2}),
        ({"text_config": {"hidden_size": 8}}, {"text_config": {"hidden_size": 8, "num_hidden_layers": 2}}),
        ({"num_hidden_layers": 4, "first_k_dense_replace": 2}, {"num_hidden_layers": 2, "first_k_dense_replace": 1}),
        ({"num_hidden_layers": 4, "num_kv_shared_layers": 3}, {"num_hidden_layers": 2, "num_kv_shared_layers": 1}),
        ({"num_hidden_layers": 4, "moe_layers": [0, 1, 2, 3]}, {"num_hidden_layers": 2, "moe_layers": [0, 1]}),
        (
            {"n_layer": 4, "linear_attn_config": {"full_attn_layers": [4], "kda_layers": [1, 2, 3]}},
            {"n_layer": 2, "linear_attn_config": {"full_attn_layers": [2], "kda_layers": [1]}},
        ),
        ({"n_layer": 4, "hybrid_override_pattern": "M-*E"}, {"n_layer": 2, "hybrid_override_pattern": "ME"}),
        (
            {"n_layer": 4, "num_nextn_predict_layers": 1, "compress_ratios": [0, 4, 8, 16, 32]},
            {"n_layer": 2, "num_nextn_predict_layers": 1, "compress_ratios": [0, 16, 32]},
        ),
        (
            {"n_layer": 4, "model_type": "smollm3", "no_rope_layer_interval": 4},
            {"n_layer": 2, "model_type": "smollm3", "no_rope_layer_interval": 4, "no_rope_layers": [1, 0]},
        ),
    ],
)  # fmt: skip
def test_the_count_stands_under_the_families_own_name_and_layers_are_renumbered(
    before: dict[str, object], after: dict[str, object]
) -> None:
    assert with_fewer_layers(before, (0, 3), 4) == after


#: Families that count their layers under other names, and families whose layers are of several kinds; layers, and how they differ.
_COUNTED = ("bloom", "mpt", "gptj")
_KINDS = {
    "gemma2": 6, "gemma3_text": 12, "gpt_oss": 6, "qwen3_next": 8, "exaone4": 8, "deepseek_v3": 5, "glm4_moe": 5, "smollm3": 8,
    "qwen3_5_text": 8, "kimi_linear": 8,
}  # fmt: skip
#: What the layers' numbers say where these are left out, as in files of older releases.
_BY_NUMBER = ("layer_types", "no_rope_layers")


def _saved(family: str, folder: Path) -> object:
    layers = _KINDS.get(family, 5)
    changes: dict[str, object] = {"num_hidden_layers": layers}
    if family in _COUNTED:
        changes["n_layers" if family == "mpt" else "n_layer"] = layers
    if family == "kimi_linear":
        own = {"head_dim": 16, "num_heads": 4, "short_conv_kernel_size": 4}
        changes["linear_attn_config"] = own | {"full_attn_layers": [4, 8], "kda_layers": [1, 2, 3, 5, 6, 7]}
    model = save_tiny(family, folder, **changes)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    left_out = () if family == "gpt_oss" else _BY_NUMBER  # whose files have always had the list
    path.write_text(json.dumps({key: value for key, value in config.items() if key not in left_out}))
    return model


@pytest.mark.parametrize("family", [*_COUNTED, *_KINDS])
def test_without_a_block_every_family_computes_what_the_other_blocks_compute(family: str, tmp_path: Path) -> None:
    model: Any = _saved(family, tmp_path)
    ir, weights = open_model(tmp_path).ir, Checkpoint(tmp_path)
    assert DepthPrune(2).illegal(ir) == ()
    dropped = candidates(ir.decoder)[1]
    one = DepthPrune(1, (dropped,))
    assert one.illegal(ir) == ()
    ids = torch.randint(3, 256, (2, 24), generator=torch.Generator().manual_seed(1))
    pruned = one.dense(DenseModel(ir, weights), context(tmp_path, ids))
    assert torch.allclose(through(pruned.ir, pruned.weights, ids), _without(model, dropped, ids), atol=2e-4)


def _without(model: Any, dropped: int, ids: torch.Tensor) -> torch.Tensor:
    """Logits of the whole model where one block hands its input through."""
    decoder = model.get_decoder()
    layers = next(each for each in decoder.modules() if isinstance(each, torch.nn.ModuleList))

    def through(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        given = args[0] if args else kwargs["hidden_states"]
        return (given, *output[1:]) if isinstance(output, tuple) else given

    handle = layers[dropped].register_forward_hook(through, with_kwargs=True)
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits
    handle.remove()
    return logits


@pytest.mark.parametrize("family", ["bloom", "gemma2", "deepseek_v3"])
def test_blocks_are_measured_among_the_commonest_kind_and_the_result_is_built(family: str, tmp_path: Path) -> None:
    _saved(family, tmp_path / "model")
    ir, weights = open_model(tmp_path / "model").ir, Checkpoint(tmp_path / "model")
    tokens = torch.randint(3, 256, (4, 24), generator=torch.Generator().manual_seed(1))
    dropped = choose_blocks(2, DenseModel(ir, weights), context(tmp_path / "chosen", tokens))
    assert set(dropped) <= set(candidates(ir.decoder))
    pruned, least = DepthPrune(2, dropped).rewrite(ir), DepthPrune(2).rewrite(ir)
    assert pruned.tensor_bytes == least.tensor_bytes
    values = {key: value for key, value in pruned.config.items() if key != "model_type"}
    config = AutoConfig.for_model(pruned.model_type, **values)
    built = AutoModelForCausalLM.from_config(config)
    stored = {each.data_ptr(): each.numel() for each in built.state_dict().values()}
    assert sum(stored.values()) == pruned.weights


@pytest.mark.parametrize(
    ("model", "count", "code", "remedy"),
    [
        ("google/gemma-2-9b-it", 30, "prune_depth_unequal", "drop 1 to 20 blocks"),
        ("Llama-3-8B", 31, "prune_depth_count", "drop 1 to 30 blocks"),
    ],
)
def test_a_refusal_names_a_count_that_can_go(model: str, count: int, code: str, remedy: str) -> None:
    ir = open_model(model).ir
    (reason,) = DepthPrune(count).illegal(ir)
    assert (reason.code, reason.remedy) == (code, remedy)
    assert DepthPrune(int(remedy.split()[3])).illegal(ir) == ()


def test_layers_that_no_config_places_are_refused_with_another_pruning() -> None:
    ir = open_model("Qwen3-30B-A3B").ir
    other = build_ir(dict(ir.config) | {"decoder_sparse_step": 2}, "every other layer has experts")
    (reason,) = DepthPrune(1).illegal(other)
    assert reason.code == "prune_depth_layout" and reason.remedy and "intermediate" in reason.remedy


def test_what_predicts_further_tokens_stays_behind_the_last_block() -> None:
    ir = open_model("deepseek-ai/DeepSeek-V3").ir
    one = DepthPrune(5, (10, 11, 12, 13, 14))
    names = {tensor.name.split(".")[2] for tensor in one.rewrite(ir).tensors() if ".layers." in tensor.name}
    assert names == {str(layer) for layer in range(57)}
    (stack,) = (each for each in one.rewrite(ir).stacks if each.name == "mtp")
    name = stack.layer_prefix(0) + "enorm.weight"
    asked: list[str] = []

    class Asked:
        def __contains__(self, name: str) -> bool:
            asked.append(name)
            return True

        def read(self, names: Iterable[str]) -> dict[str, torch.Tensor]:
            raise AssertionError(names)

    assert name in RenumberedWeights(Asked(), ir, one.kept(61)) and asked == ["model.layers.61.enorm.weight"]


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


def test_a_model_without_blocks_is_written_for_tools_as_it_is_described(
    llama: Path, llama_ir: ModelIR, tokens: torch.Tensor, tmp_path: Path
) -> None:
    source, run = DenseModel(llama_ir, Checkpoint(llama)), context(tmp_path, tokens)
    assert source.folder(run) == llama
    pruned = DepthPrune(2, (1, 2)).dense(source, run)
    folder = pruned.folder(run)
    assert differences(folder, pruned.ir) == [] and (folder / "tokenizer.json").exists()
    assert torch.equal(
        through(open_model(folder).ir, Checkpoint(folder), tokens), through(pruned.ir, pruned.weights, tokens)
    )
    assert pruned.folder(run) == folder and [step.reused for step in run.steps.finished] == [False, True]


def test_a_block_that_does_nothing_is_the_one_to_drop(tmp_path: Path, tokens: torch.Tensor) -> None:
    model = save_tiny_llama(tmp_path / "idle")
    tensors = load_file(model / "model.safetensors")
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        tensors[f"model.layers.2.{name}.weight"].zero_()
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    idle = DenseModel(open_model(model).ir, Checkpoint(model))
    assert choose_blocks(1, idle, context(tmp_path / "chosen", tokens)) == (2,)


def test_prune_quantize_and_kv_cache_are_one_graph(llama: Path, llama_ir: ModelIR, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("A quick brown fox jumps over the lazy dog; it is seldom seen to rest. " * 40)
    chain = (DepthPrune(1), Quantize("gptq", PackQuantized(4, 32)), KVCachePass("fp8", True))
    job = Job(
        llama_ir, llama, chain, tmp_path / "out", tmp_path / "work",
        calibration=TextSource(str(text), 8, 32), evaluation=TextSource("python-reference", 4, 32),
    )  # fmt: skip
    outcome = execute(job)
    assert differences(job.out, rewrite(llama_ir, chain)) == []
    resolved = outcome.passes[0]
    assert isinstance(resolved, DepthPrune) and resolved.blocks is not None and resolved.blocks[0] in (1, 2)
    assert from_json(json.loads((job.out / "tightfit.json").read_text())["passes"]) == outcome.passes
    assert AutoModelForCausalLM.from_pretrained(job.out).config.num_hidden_layers == BLOCKS - 1
    assert all(step.reused for step in execute(job).steps)
