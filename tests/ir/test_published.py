"""Checkpoints as other tools publish them: what their configs say of each matrix, of the cache, of the head."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from passes.errors import InputError
from passes.formats.awq import Awq
from passes.formats.compressed_tensors.integers import PackQuantized
from passes.formats.format import Format
from passes.formats.gptq import Gptq
from passes.formats.published import Published
from passes.ir.architectures import build_ir
from passes.ir.model import ModelIR, Role
from passes.ir.quant_config.read import quantized
from passes.ir.sources import open_model
from tests.ir.checkpoints import TINY
from tests.ir.test_quantized import WIDE, compressed

_AO = {"_type": "Int4WeightOnlyConfig", "_data": {"group_size": 64}}
#: As transformers 5.23 writes it with torchao 0.18.
_AO_8DA4W = {
    "_type": "Int8DynamicActivationIntxWeightConfig", "_version": 2, "_data": {
        "act_mapping_type": {"_data": "ASYMMETRIC", "_type": "MappingType"}, "weight_dtype": {"_data": "int4", "_type": "torch.dtype"},
        "weight_granularity": {"_data": {"group_size": 64}, "_type": "PerGroup", "_version": 1},
        "intx_packing_format": {"_data": "UNPACKED_TO_INT8", "_type": "IntxPackingFormat"},
    },
}  # fmt: skip
CONFIGS: dict[str, tuple[dict[str, Any], Format | None]] = {
    "auto-round": ({"quant_method": "auto-round", "bits": 4, "group_size": 128, "sym": True}, Gptq(4, 128, indexed=False)),
    "auto-round awq": (
        {"quant_method": "auto-round", "bits": 4, "group_size": 128, "sym": False, "packing_format": "auto_round:auto_awq"}, Awq(128),
    ),
    "auto-round fp8": (
        {"quant_method": "auto-round", "bits": 8, "group_size": [128, 128], "data_type": "fp"}, Published("fp8-block", 128),
    ),
    "auto-round fp8 by rows": (  # `FP8_STATIC`, `FP8` and its own W8FP8: whole rows, or one number for all
        {"quant_method": "auto-round", "bits": 8, "group_size": -1, "data_type": "fp", "act_dynamic": True}, Published("fp8-row"),
    ),
    "auto-round fp8 by rows, static": (
        {"quant_method": "auto-round", "bits": 8, "group_size": -1, "data_type": "fp", "act_dynamic": False},
        Published("fp8-static-rows"),
    ),
    "auto-round fp8 of a tensor": (
        {"quant_method": "auto-round", "bits": 8, "group_size": 0, "data_type": "fp", "act_dynamic": False}, Published("fp8-static"),
    ),
    "auto-round mx": (
        {"quant_method": "auto-round", "bits": 8, "group_size": 32, "data_type": "mx_fp"}, Published("mxfp8"),
    ),
    "gptq in planes": ({"quant_method": "gptq", "bits": 5, "group_size": 64}, Published("planes5-gptq", 64)),
    "modelopt awq": ({"quant_method": "modelopt", "quant_algo": "W4A16_AWQ"}, Published("int4-awq-modelopt")),
    "quark": (
        {"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "fp8_e4m3", "qscheme": "per_tensor"},
                                                          "input_tensors": {"is_dynamic": False}}},
        Published("quark-fp8-static"),
    ),
    "quark int4": (
        {"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "int4", "qscheme": "per_group", "group_size": 64}}},
        Published("quark-int4", 64),
    ),
    "torchao": ({"quant_method": "torchao", "quant_type": {"default": _AO}}, Published("torchao-int4", 64)),
    "torchao of old": ({"quant_method": "torchao", "quant_type": "int8_weight_only"}, Published("torchao-int8")),
    "torchao 8da4w": (
        {"quant_method": "torchao", "quant_type": {"default": _AO_8DA4W}, "modules_to_not_convert": None,
         "include_input_output_embeddings": False},
        Published("torchao-intx", 64),
    ),
    "hqq of transformers": (
        {"quant_method": "hqq", "skip_modules": ["lm_head"], "quant_config": {
            "weight_quant_params": {"nbits": 3, "channel_wise": True, "group_size": 64, "optimize": True, "round_zero": True, "axis": 1,
                                    "view_as_float": False},
            "scale_quant_params": None, "zero_quant_params": None, "offload_meta": False}},
        Published("hqq-3", 64),
    ),
    "hqq": ({"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 4, "group_size": 64}}}, Published("hqq-4", 64)),
    "gemv": ({"quant_method": "awq", "bits": 4, "group_size": 64, "version": "gemv"}, Published("gemv-awq", 64)),
    "bitsandbytes": ({"quant_method": "bitsandbytes", "load_in_8bit": True}, Published("int8-bnb-stored")),
    "modelopt row": ({"quant_method": "modelopt", "quant_algo": "FP8_PER_CHANNEL_PER_TOKEN"}, Published("fp8-rows")),
    "modelopt a16": ({"quant_method": "modelopt", "quant_algo": "W4A16_NVFP4"}, Published("nvfp4-modelopt-a16")),
    "modelopt mxfp8": ({"quant_method": "modelopt", "quant_algo": "MXFP8"}, Published("mxfp8")),
}  # fmt: skip


def read(settings: dict[str, Any], **config: Any) -> ModelIR:
    return quantized(build_ir(WIDE | config | {"quantization_config": settings}, "published"))


def labels(ir: ModelIR, role: Role) -> list[str]:
    """How the matrices of a role are stored, layer by layer."""
    blocks = (ir.decoder.block(i) for i in range(len(ir.decoder.layers)))
    return [linear.storage.label for block in blocks for linear in block.linears if linear.role is role]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_tool_s_config_says_how_every_matrix_is_stored(name: str) -> None:
    settings, form = CONFIGS[name]
    ir = read(settings)
    assert {linear.storage for linear in ir.decoder.block(0).linears} == {form}
    assert all(linear.bytes > 0 for linear in ir.decoder.block(0).linears)


@pytest.mark.parametrize(
    "key", ["model.layers.0.mlp.down_proj", "layers.0.mlp.down_proj", r"model\.layers\.0\..*down_proj"]
)
def test_extra_config_leaves_a_matrix_at_16_bits_or_gives_it_others(key: str) -> None:
    settings = CONFIGS["auto-round"][0]
    assert labels(read(settings | {"extra_config": {key: {"bits": 16}}}), Role.DOWN) == ["fp16", "gptq-4-g128"]
    assert labels(read(settings | {"extra_config": {key: {"bits": 8}}}), Role.DOWN) == ["gptq-8-g128", "gptq-4-g128"]


def test_layers_of_a_mixture_are_read_by_name() -> None:
    named = {"model.layers.0.mlp.down_proj": {"quant_algo": "FP8"}, "model.layers.1.mlp": {"quant_algo": "NVFP4"}}
    ir = read({"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": named})
    assert labels(ir, Role.DOWN) == ["fp8-static", "nvfp4-modelopt"]
    assert labels(ir, Role.Q) == ["fp16", "fp16"]


def test_a_pattern_of_quark_s_layers_is_read_and_what_it_excludes_stays_dense() -> None:
    settings = CONFIGS["quark int4"][0] | {
        "layer_quant_config": {"*down_proj": {"weight": {"dtype": "int8", "qscheme": "per_channel"}}}, "exclude": ["re:.*q_proj"],
    }  # fmt: skip
    ir = read(settings)
    assert labels(ir, Role.DOWN) == ["quark-int8"] * 2 and labels(ir, Role.Q) == ["fp16"] * 2
    assert labels(ir, Role.UP) == ["quark-int4"] * 2


def test_modules_of_torchao_without_a_config_stay_dense() -> None:
    modules = {"_default": _AO, "model.layers.0.mlp.up_proj": None}
    settings = {"quant_type": {"default": {"_type": "ModuleFqnToConfig", "_data": {"module_fqn_to_config": modules}}}}
    assert labels(read({"quant_method": "torchao"} | settings), Role.UP) == ["fp16", "torchao-int4"]


def test_modules_of_torchao_are_named_as_either_config_names_them() -> None:
    modules = {"_default": _AO, "model.layers.0.mlp.up_proj": None, "re:.*layers\\.1.*down_proj": _AO_8DA4W}
    settings = {
        "quant_method": "torchao",
        "quant_type": {"default": {"_type": "FqnToConfig", "_data": {"fqn_to_config": modules}}},
    }
    assert labels(read(settings), Role.UP) == ["fp16", "torchao-int4"]
    assert labels(read(settings), Role.DOWN) == ["torchao-int4", "torchao-intx"]


def test_hqq_s_own_parameters_and_what_it_skips_are_read_by_name() -> None:
    parameters = {"self_attn.q_proj": 8, "mlp.up_proj": 4, "mlp.down_proj": 2}
    dynamic = {key: {"weight_quant_params": {"nbits": bits, "group_size": 64}} for key, bits in parameters.items()}
    ir = read({"quant_method": "hqq", "quant_config": dynamic, "skip_modules": ["layers.1.mlp"]})
    assert labels(ir, Role.Q) == ["hqq-8"] * 2 and labels(ir, Role.O) == ["fp16"] * 2
    assert labels(ir, Role.UP) == ["hqq-4", "fp16"] and labels(ir, Role.DOWN) == ["hqq-2", "fp16"]


def test_an_entry_of_awq_s_list_means_every_name_that_holds_it() -> None:
    ir = read({"quant_method": "awq", "bits": 4, "group_size": 64, "modules_to_not_convert": ["_proj.", "down"]})
    assert labels(ir, Role.DOWN) == ["fp16"] * 2 and labels(ir, Role.UP) == ["awq-4-g64"] * 2
    assert labels(read({"quant_method": "awq", "bits": 4, "group_size": 64, "modules_to_not_convert": None}), Role.DOWN)


@pytest.mark.parametrize("settings", [
    {"quant_method": "gptq", "bits": 9, "group_size": 128}, {"quant_method": "awq", "bits": 8},
    {"quant_method": "awq", "version": "marlin"},
    {"quant_method": "hqq", "quant_config": {"nbits": 5}}, {"quant_method": "torchao", "quant_type": "int3_weight_only"},
    {"quant_method": "quark", "global_quant_config": {"weight": {"dtype": "int3", "qscheme": "per_tensor"}}},
    {"quant_method": "modelopt", "quant_algo": "W2A8_AWQ"},
    {"quant_method": "auto-round", "bits": 3, "group_size": 32, "data_type": "nv_fp"},
])  # fmt: skip
def test_what_is_not_understood_is_named(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="is not understood"):
        read(settings)


def test_groups_that_name_matrices_leave_the_others_dense_and_groups_of_attention_store_nothing() -> None:
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 64}
    settings = compressed("pack-quantized", weights)
    settings["config_groups"]["group_0"]["targets"] = ["re:.*mlp.*"]
    settings["config_groups"]["group_1"] = {"targets": ["LlamaAttention"], "weights": None}
    ir = read(settings)
    assert labels(ir, Role.UP) == ["w4a16-g64"] * 2 and labels(ir, Role.Q) == ["fp16"] * 2
    assert PackQuantized(4, 64, True, "F16") in {linear.storage for linear in ir.decoder.block(0).linears}


def test_a_list_that_was_cut_short_leaves_the_parts_of_a_fused_matrix_alike() -> None:
    listed = ["model.layers.0.self_attn.q_proj", "...7 more entries dropped"]
    ir = read({"quant_method": "modelopt", "quant_algo": "NVFP4", "exclude_modules": listed})
    assert labels(ir, Role.V) == ["fp16", "nvfp4-modelopt"] and labels(ir, Role.O) == ["nvfp4-modelopt"] * 2
    assert (
        labels(read({"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": listed[:1]}), Role.V)[0]
        == "nvfp4-modelopt"
    )


_FLOAT8 = {"num_bits": 8, "type": "float", "dynamic": False}


@pytest.mark.parametrize(("settings", "declared"), [
    (CONFIGS["modelopt row"][0] | {"kv_cache_scheme": _FLOAT8}, "fp8"),
    (CONFIGS["modelopt row"][0] | {"kv_cache_quant_algo": "FP8"}, "fp8"),
    (CONFIGS["modelopt row"][0] | {"kv_cache_quant_algo": None}, None),
    ({"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}}, "fp8"),
    ({"quant_method": "compressed-tensors", "config_groups": {}, "kv_cache_scheme": _FLOAT8}, "fp8"),
    (CONFIGS["modelopt row"][0] | {"kv_cache_scheme": {"num_bits": [8], "type": "float"}}, None),
])  # fmt: skip
def test_the_type_of_the_cache_that_a_checkpoint_asks_for(settings: dict[str, Any], declared: str | None) -> None:
    assert read(settings).kv_cache.declared == declared


def test_a_quantized_head_is_read() -> None:
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 128, "lm_head": True}
    head = next(
        linear for linear in read(settings, vocab_size=512, tie_word_embeddings=False).outer if linear.role is Role.HEAD
    )
    assert head.storage.label == "gptq-4-g128"


def test_a_mixture_that_names_the_head_stores_it() -> None:
    named = {"lm_head": {"quant_algo": "W4A16_NVFP4"}, "model.layers.0.mlp.down_proj": {"quant_algo": "FP8"}}
    settings = {"quant_method": "modelopt", "quant_algo": "MIXED_PRECISION", "quantized_layers": named}
    outer = read(settings, vocab_size=512, tie_word_embeddings=False).outer
    assert [linear.storage.label for linear in outer if linear.role is Role.HEAD] == ["nvfp4-modelopt-a16"]


@pytest.mark.parametrize(
    ("targets", "label"), [(["re:.*lm_head"], "w4a16-g32"), (["lm_head"], "w4a16-g32"), (["Linear"], "fp16")]
)
def test_compressed_tensors_means_the_head_where_a_target_names_it(targets: list[str], label: str) -> None:
    settings = compressed(
        "pack-quantized", {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": True}
    )
    settings["config_groups"]["group_0"]["targets"] = targets
    settings["ignore"] = []
    outer = read(settings, vocab_size=512, tie_word_embeddings=False).outer
    assert [linear.storage.label for linear in outer if linear.role is Role.HEAD] == [label]


@pytest.mark.parametrize(("ending", "names"), [
    ("ForSequenceClassification", {"score": (3, 64)}), ("Model", {}),
    ("ForRewardModel", {"score.0": (64, 64), "score.2": (1, 64)}),
])  # fmt: skip
def test_a_known_body_may_have_another_head(ending: str, names: dict[str, tuple[int, int]]) -> None:
    config = TINY | {"architectures": [f"Llama{ending}"], "num_labels": 3, "hidden_size": 64}
    ir, body = build_ir(config, "headed"), build_ir(config | {"architectures": ["LlamaForCausalLM"]}, "body")
    own = {linear.name: (linear.out_features, linear.in_features) for linear in ir.outer if linear.role is Role.OTHER}
    assert own == names and ir.architecture == "LlamaForCausalLM"
    assert not [linear for linear in ir.outer if linear.role is Role.HEAD]
    assert ir.decoder == body.decoder


def test_what_makes_no_tokens_is_sized_and_not_planned(tmp_path: Path) -> None:
    config = TINY | {"architectures": ["LlamaForSequenceClassification"], "num_labels": 1}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="a classifier, which makes no tokens"):
        open_model(tmp_path).require_readable()


@pytest.mark.parametrize("dtype", ["torch.bfloat16", "bfloat16"])
def test_a_dtype_may_be_named_as_torch_names_it(dtype: str) -> None:
    assert build_ir(TINY | {"torch_dtype": dtype}, "old").dtype == "BF16"


def test_a_config_without_an_architecture_is_told_what_to_add() -> None:
    config = {key: value for key, value in TINY.items() if key != "architectures"} | {"model_type": "llama"}
    with pytest.raises(InputError) as error:
        build_ir(config, "nameless")
    assert '"architectures": ["LlamaForCausalLM"]' in (error.value.remedy or "")


@pytest.mark.parametrize(("file", "text", "said"), [
    ("adapter_config.json", '{"base_model_name_or_path": "org/base"}', r"adapter \(PEFT, such as LoRA\)"),
    ("model_index.json", "{}", "diffusers"), ("model.gguf", "", "a folder of GGUF files"),
])  # fmt: skip
def test_a_folder_that_is_no_model_is_named_for_what_it_is(tmp_path: Path, file: str, text: str, said: str) -> None:
    (tmp_path / file).write_text(text)
    with pytest.raises(InputError, match=said) as error:
        open_model(tmp_path)
    assert "org/base" in (error.value.remedy or "org/base") or file != "adapter_config.json"
