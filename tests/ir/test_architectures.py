"""Every family's description equals what its own code writes: tensor for tensor, name and shape."""

from __future__ import annotations

import re
from typing import Any

import pytest

from passes.errors import InputError
from passes.ir import catalog
from passes.ir.architectures import build_ir
from passes.ir.fields import Fields
from passes.ir.model import ModelIR
from tests.ir.reference import reduced, written_by_transformers

#: Tensors that are stored but that no count of parameters includes.
_BUFFERS = re.compile(
    r".*(e_score_correction_bias|layer_scalar|std_bias|std_scale|_min|_max|tid2eid|gate\.bias|router_bias)"
)

#: Counted by hand in the source; the difference is three biases of the vision tower that the hand count has twice.
_HAND_COUNTED = {"moonshotai/Kimi-VL-A3B-Instruct"}


def parameters(ir: ModelIR) -> int:
    """Parameters as publishers count them: without MTP heads and without buffers."""
    buffers = sum(
        count * sum(t.elements for t in block.tensors if _BUFFERS.fullmatch(t.name))
        for stack in ir.stacks
        if stack.name != "mtp"
        for block, count in stack.counts
    ) + sum(t.elements for t in ir.outer_tensors if _BUFFERS.fullmatch(t.name))
    mtp = sum(
        count * (sum(lin.weights for lin in block.linears) + sum(t.elements for t in block.tensors))
        + count * sum(lin.copies * lin.out_features for lin in block.linears if lin.bias)
        for stack in ir.stacks
        if stack.name == "mtp"
        for block, count in stack.counts
    )
    return ir.weights - buffers - mtp


COUNTED = {
    model: count
    for model in catalog.ids()
    if (count := catalog.entry(model).provenance.get("param_count_computed")) and model not in _HAND_COUNTED
}


@pytest.mark.parametrize("model", COUNTED)
def test_a_catalog_model_has_the_published_number_of_parameters(model: str) -> None:
    assert parameters(build_ir(catalog.entry(model).config, model)) == COUNTED[model]


def test_every_catalog_model_is_understood() -> None:
    for model in catalog.ids():
        ir = build_ir(catalog.entry(model).config, model)
        assert ir.tensor_bytes == sum(tensor.bytes for tensor in ir.tensors()) or ir.weights > 2e10, model


def test_ling_3_has_its_drafting_layer_too() -> None:
    ir = build_ir(catalog.entry("inclusionAI/Ling-3.0-flash").config, "inclusionAI/Ling-3.0-flash")
    assert ir.weights == 127_486_405_600  # all parameters of its repository


def test_kimi_k3_has_the_weights_its_name_says() -> None:
    ir = build_ir(catalog.entry("moonshotai/Kimi-K3").config, "moonshotai/Kimi-K3")
    assert ir.weights == pytest.approx(2.78e12, rel=0.01)  # "2.8T" by vLLM's recipe for it
    block = {tensor.name for linear in ir.decoder.block(1).linears for tensor in linear.tensors()}
    assert {"self_attn.g_proj.weight", "block_sparse_moe.routed_expert_up_proj.weight", "mlp_res_proj.weight"} <= block


def representatives() -> list[str]:
    """One model of every (architecture, text model_type) of the catalog that transformers has classes for."""
    found: dict[tuple[Any, ...], str] = {}
    for model in catalog.ids():
        config = catalog.entry(model).config
        text = config.get("text_config") or {}
        vision = config.get("vision_config") or {}
        extra = (
            bool(text.get("hidden_size_per_layer_input")),
            bool(text.get("enable_moe_block")),
            vision.get("model_type"),
        )
        latent = bool(config.get("moe_latent_size")), bool(config.get("indexer_types"))
        found.setdefault(
            (*config["architectures"], config["model_type"], text.get("model_type"), *extra, *latent), model
        )
    return sorted(found.values(), key=str.lower)


#: Architectures without a class in transformers, or whose class writes other names than the repositories have; with the reason.
NO_REFERENCE = {
    "InternLM2ForCausalLM": "code in the repository only",
    "DeciLMForCausalLM": "code in the repository only",
    "Phi3VForCausalLM": "code in the repository only",
    "MiMoForCausalLM": "code in the repository only",
    "KimiVLForCausalLM": "code in the repository only",
    "KimiVLForConditionalGeneration": "code in the repository only",
    "KimiK3ForConditionalGeneration": "not understood",
    "MiniMaxM3ForCausalLM": "only the multimodal class exists",
    "BaichuanForCausalLM": "code in the repository only",
    "QWenLMHeadModel": "code in the repository only",
    "DeepseekV4ForCausalLM": "transformers writes a `model.` prefix that the repositories do not have",
    "Step3p7FlashForCausalLM": "only the multimodal class exists",
    "Step3p5ForCausalLM": "only the multimodal class exists",
    "MistralLarge3ForCausalLM": "code in vLLM only",
    "BailingMoeV2ForCausalLM": "code in the repository only",
    "BailingMoeV3ForCausalLM": "what is left of a group attends in vLLM and not there; whole groups are in test_families.py",
    "ChatGLMModel": "code in the repository only",
    "ExaoneForCausalLM": "code in the repository only",
    "InternLM3ForCausalLM": "code in the repository only",
    "GPT2LMHeadModel": "files hold its matrices transposed; see test_families.py",
    "InternS1ForConditionalGeneration": "code in the repository only",
    "InternS2PreviewForConditionalGeneration": "code in the repository only",
    "Qwen3_5MoeForCausalLM": "repositories stack the experts, transformers writes them apart",
    "Qwen3_5MoeForConditionalGeneration": "repositories stack the experts, transformers writes them apart",
    "KimiK25ForConditionalGeneration": "transformers' reverse renaming mangles the decoder's layers",
}

#: Renames that transformers would do on writing but that the repositories on the Hub do not show.
_HUB = (
    (
        re.compile(
            r"^vision_tower\.(?=embeddings\.p(atch_embedding|osition_embedding)\.|embeddings\.class|encoder\.layers|p(re|ost)_lay|head\.)"
        ),
        "vision_tower.vision_model.",
    ),
    (re.compile(r"(model\.layers\.\d+)\.block_sparse_moe\.((gate|up|down)_proj)"), r"\1.mlp.\2"),
)


def on_the_hub(names: dict[str, tuple[int, ...]], config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """transformers' names as the repositories have them."""
    for pattern, target in _HUB:
        names = {pattern.sub(target, name): shape for name, shape in names.items()}
    if config["model_type"] == "bloom":
        names = {name.removeprefix("transformer."): shape for name, shape in names.items()}
    if (
        config["model_type"] == "qwen3_vl_moe"
    ):  # stored [experts, in, out]; the meta device cannot show the transposition
        names = {
            name: (shape[0], shape[2], shape[1]) if ".mlp.experts." in name else shape for name, shape in names.items()
        }
    return names


@pytest.mark.parametrize(
    "model", [m for m in representatives() if catalog.entry(m).config["architectures"][0] not in NO_REFERENCE]
)
def test_names_and_shapes_are_those_of_transformers(model: str) -> None:
    config = reduced(catalog.entry(model).config)
    expected = on_the_hub(written_by_transformers(config), config)
    ir = build_ir(config, model)
    described = {tensor.name: tensor.shape for tensor in ir.tensors() if not re.match(r"mtp\.", tensor.name)}
    layers = ir.decoder.first_index + len(ir.decoder.layers)
    described = {name: shape for name, shape in described.items() if not re.match(rf"model\.layers\.{layers}\.", name)}
    assert described == expected


@pytest.mark.parametrize("absent", [None, False])
def test_a_part_that_a_config_writes_as_false_is_absent(absent: object) -> None:
    fields = Fields({"audio_config": absent}, "x", "config.json")
    assert not fields.inside("audio_config", {}).values
    with pytest.raises(InputError, match="'audio_config'"):
        fields.inside("audio_config")
    with pytest.raises(InputError, match=r"'audio_config' should be an object, found 1\.5"):
        Fields({"audio_config": 1.5}, "x", "config.json").inside("audio_config", {})
