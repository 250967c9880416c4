"""Already quantized checkpoints: understood from config.json, sized from their headers, whatever made them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from passes.errors import InputError
from passes.formats.awq import Awq
from passes.formats.compressed_tensors.floats import FloatQuantized
from passes.formats.compressed_tensors.integers import IntQuantized, PackQuantized
from passes.formats.dense import Dense
from passes.formats.fp4 import Nvfp4
from passes.formats.gptq import Gptq
from passes.formats.opaque import OpaqueFormat
from passes.formats.published import Published
from passes.formats.tensor import Tensor
from passes.ir import catalog
from passes.ir.architectures import build_ir
from passes.ir.fields import Fields
from passes.ir.model import Role
from passes.ir.quant_config.gptq import format_of, rules
from passes.ir.quant_config.read import quantized
from passes.ir.quant_config.write import quantization_config
from passes.ir.sources import open_model
from passes.quantize.mixed import groups
from passes.quantize.quantize import Quantize
from tests.ir.checkpoints import TINY, write_described
from tests.ir.test_reconcile import opened

#: A model wide enough for every group size.
WIDE = TINY | {"hidden_size": 256, "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2}


def compressed(form: str, weights: dict[str, Any], inputs: dict[str, Any] | None = None) -> dict[str, Any]:
    """A compressed-tensors config of one group."""
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }


CONFIGS: dict[str, tuple[dict[str, Any], Any]] = {
    "gptq": ({"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}, Gptq(4, 128)),
    "gptq-v2": (
        {"quant_method": "gptq", "bits": 8, "group_size": 64, "sym": True, "desc_act": True, "checkpoint_format": "gptq_v2"},
        Gptq(8, 64, True, True, 2),
    ),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True}, Awq(64)),
    "int4": (
        compressed("pack-quantized", {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 64, "symmetric": True}),
        PackQuantized(4, 64, True, "F16"),
    ),
    "int8": (
        compressed("int-quantized", {"num_bits": 8, "type": "int", "strategy": "channel"}, {"num_bits": 8, "dynamic": True}),
        IntQuantized("F16"),
    ),
    "fp8": (
        compressed("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}, {"num_bits": 8, "dynamic": True}),
        FloatQuantized(-1, None, "F16"),
    ),
    "nvfp4": (
        compressed("nvfp4-pack-quantized", {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16}),
        Nvfp4(activations=False),
    ),
    "fp8-block": ({"quant_method": "fp8", "weight_block_size": [128, 128]}, Published("fp8-block", 128)),
    "fp8-static": ({"quant_method": "fp8", "activation_scheme": "static"}, Published("fp8-static")),
    "fbgemm": ({"quant_method": "fbgemm_fp8"}, Published("fp8-row")),
    "modelopt-fp8": ({"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head"]}, Published("fp8-static")),
    "modelopt-nvfp4": ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, Published("nvfp4-modelopt")),
    "bitsandbytes": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, Published("nf4")),
}  # fmt: skip


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_says_how_every_matrix_is_stored_and_headers_confirm_it(tmp_path: Path, name: str) -> None:
    settings, form = CONFIGS[name]
    config = WIDE | {"quantization_config": settings}
    described = quantized(build_ir(config, name))
    assert described.quant_method == settings["quant_method"]
    assert {lin.storage for lin in described.decoder.block(0).linears} == {form}
    assert all(lin.storage.label == "fp16" for lin in described.outer)
    source = opened(write_described(tmp_path / name, config, list(described.tensors())))
    assert source.ir.decoder.block(0).linears == described.decoder.block(0).linears


def test_matrices_that_the_config_ignores_stay_dense() -> None:
    settings = {"quant_method": "awq", "bits": 4, "group_size": 64, "modules_to_not_convert": ["down_proj", "layers.1"]}
    ir = quantized(build_ir(WIDE | {"quantization_config": settings}, "awq"))
    assert {lin.role: lin.storage.label for lin in ir.decoder.block(0).linears}[Role.DOWN] == "fp16"
    assert {lin.storage.label for lin in ir.decoder.block(0).linears if lin.role is Role.UP} == {"awq-4-g64"}
    assert {lin.storage.label for lin in ir.decoder.block(1).linears} == {"fp16"}


@pytest.mark.parametrize("pattern", ["re:.*down_proj", "*.down_proj", "model.layers.*.mlp.down_proj"])
def test_ignore_lists_are_read_in_every_dialect(pattern: str) -> None:
    settings = CONFIGS["int4"][0] | {"ignore": ["lm_head", pattern]}
    ir = quantized(build_ir(WIDE | {"quantization_config": settings}, "ignoring"))
    dense = {lin.role for block in ir.decoder.classes for lin in block.linears if lin.storage.label == "fp16"}
    assert dense == {Role.DOWN}


def test_headers_win_where_a_matrix_was_left_dense_without_a_word(tmp_path: Path) -> None:
    config = WIDE | {"quantization_config": CONFIGS["gptq"][0]}
    tensors = [
        t for t in quantized(build_ir(config, "x")).tensors() if not t.name.startswith("model.layers.0.mlp.up_proj")
    ]
    tensors.append(Tensor("model.layers.0.mlp.up_proj.weight", "F16", (512, 256)))
    ir = opened(write_described(tmp_path / "mixed", config, tensors)).ir
    assert {lin.storage.label for lin in ir.decoder.block(0).linears if lin.role is Role.UP} == {"fp16"}


def exl2(name: str, rows: int, inputs: int, bits: int) -> list[Tensor]:
    """One EXL2 matrix of a single width in groups of 64, as ExLlamaV2's converter lays it out."""
    groups = inputs // 64
    return [
        Tensor(f"{name}.q_weight", "I32", (inputs * bits // 32, rows)), Tensor(f"{name}.q_scale", "I32", (groups, rows // 8)),
        Tensor(f"{name}.q_scale_max", "F16", (groups,)), Tensor(f"{name}.q_groups", "I16", (2 * groups,)),
        Tensor(f"{name}.q_invperm", "I32", (inputs,)),
    ]  # fmt: skip


def exl3(name: str, rows: int, inputs: int, bits: int) -> list[Tensor]:
    """One EXL3 matrix."""
    return [
        Tensor(f"{name}.trellis", "I16", (inputs // 16, rows // 16, 16 * bits)), Tensor(f"{name}.suh", "F16", (inputs,)),
        Tensor(f"{name}.svh", "F16", (rows,)),
    ]  # fmt: skip


@pytest.mark.parametrize("make", [exl2, exl3])
def test_formats_whose_widths_only_the_headers_know(tmp_path: Path, make: Any) -> None:
    config = WIDE | {"quantization_config": {"quant_method": make.__name__, "bits": 4.0, "head_bits": 6}}
    dense = build_ir(config, "exl")
    tensors = []
    for tensor in dense.tensors():
        stem, _, _ = tensor.name.rpartition(".")
        if len(tensor.shape) == 2 and "embed" not in stem:
            tensors += make(stem, *tensor.shape, 5 if ".0." in stem else 3)
        else:
            tensors.append(tensor)
    ir = opened(write_described(tmp_path / "exl", config, tensors)).ir
    assert ir.quant_method == make.__name__
    assert len(ir.decoder.classes) == 2
    storages = {type(lin.storage) for lin in (*ir.decoder.block(0).linears, ir.outer[-1])}
    assert storages == {OpaqueFormat}
    assert ir.decoder.block(0).linears[0].storage.bits_per_weight(256, 256) > 5


def test_gpt_oss_keeps_its_experts_in_blocks_and_scales(tmp_path: Path) -> None:
    config = catalog.entry("openai/gpt-oss-20b").config | {
        "num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"], "num_local_experts": 4,
        "hidden_size": 64, "intermediate_size": 64, "vocab_size": 128, "torch_dtype": "bfloat16",
    }  # fmt: skip
    described = quantized(build_ir(config, "oss"))
    by_name = {tensor.name: tensor for tensor in described.tensors()}
    blocks = by_name["model.layers.0.mlp.experts.gate_up_proj_blocks"]
    assert (blocks.dtype, blocks.shape) == ("U8", (4, 128, 2, 16))
    assert by_name["model.layers.0.mlp.experts.gate_up_proj_scales"].shape == (4, 128, 2)
    assert by_name["model.layers.0.mlp.experts.gate_up_proj_bias"].shape == (4, 128)
    opened(write_described(tmp_path / "oss", config, list(described.tensors())))


def test_a_bank_of_experts_may_be_quantized_whole(tmp_path: Path) -> None:
    config = catalog.entry("Qwen/Qwen3-VL-30B-A3B-Thinking-FP8").config
    text = config["text_config"] | {"num_hidden_layers": 1, "num_experts": 4, "vocab_size": 128}
    small = config | {"text_config": text, "vision_config": config["vision_config"] | {"depth": 1}}
    tensors = []
    for tensor in build_ir(small, "vl").tensors():
        if ".mlp.experts." not in tensor.name:
            tensors.append(tensor)
            continue
        experts, inputs, outputs = tensor.shape
        tensors.append(Tensor(tensor.name, "F8_E4M3", tensor.shape))
        tensors.append(Tensor(f"{tensor.name}_scale_inv", "F32", (experts, -(-inputs // 128), -(-outputs // 128))))
    ir = opened(write_described(tmp_path / "vl", small, tensors)).ir
    assert {lin.storage.label for lin in ir.decoder.block(0).linears if lin.copies > 1} == {"fp8-8.00"}


def test_published_sizes_of_catalog_models() -> None:
    """GiB that vLLM printed for the loaded weights (vllm_memory_logs); the rest is what the engine adds."""
    for model, gib in (
        ("TheBloke/CodeLlama-34B-Instruct-AWQ", 17.056),
        ("openai/gpt-oss-120b", 61.29),
        ("RedHatAI/Llama-3.3-70B-Instruct-FP8-dynamic", 67.72),
    ):
        assert open_model(model).ir.tensor_bytes / 2**30 == pytest.approx(gib, rel=0.01)


@pytest.mark.parametrize(
    "settings", [{"quant_method": "aqlm"}, {"bits": 4}, {"quant_method": "modelopt", "quant_algo": "W9"}]
)
def test_a_quantization_that_is_not_understood_fails_closed(settings: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"understood|quant_method"):
        quantized(build_ir(WIDE | {"quantization_config": settings}, "odd"))


def mixed_options(method: str) -> tuple[Any, ...]:
    if method == "gptq":
        return (Gptq(4, 32), Gptq(8, 64), Dense("F16"))
    return (PackQuantized(4, 32, True, "F16"), IntQuantized("F16"), Dense("F16"))


@pytest.mark.parametrize("method", ["gptq", "compressed-tensors"])
@pytest.mark.parametrize("family", ["dense", "experts"])
def test_formats_that_differ_by_matrix_are_read_as_they_were_written(method: str, family: str) -> None:
    """Every matrix in one of three formats; the config that is written says which."""
    config = WIDE if family == "dense" else small_mixtral()
    dense = build_ir(config, family)
    members = [names for names, _ in groups(dense, mixed_options(method))]
    assigned = [(name, mixed_options(method)[n % 3]) for n, names in enumerate(members) if n % 3 for name in names]
    stored = Quantize("gptq", mixed_options(method)[0], tuple(assigned)).rewrite(dense)
    written = quantization_config(stored)
    read = quantized(build_ir(config | {"quantization_config": written}, family))
    for layer in range(len(dense.decoder.layers)):
        assert read.decoder.block(layer).linears == stored.decoder.block(layer).linears


def small_mixtral() -> dict[str, Any]:
    return {
        "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_size": 64, "intermediate_size": 64,
        "num_local_experts": 4, "num_experts_per_tok": 2, "num_hidden_layers": 4, "num_attention_heads": 2,
        "num_key_value_heads": 2, "vocab_size": 128,
        "torch_dtype": "float16", "max_position_embeddings": 128,
    }  # fmt: skip


def test_rules_match_what_engines_ask_for() -> None:
    """vLLM looks a fused module or a bank up by its own name (`gptq_utils.get_dynamic_override`)."""
    eight = Gptq(8, 64)
    names = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.experts.{e}.up_proj", "mlp.down_proj")
    written = rules((f"model.layers.{layer}.", name, eight) for layer in (3, 12) for name in names)
    find = format_of(Gptq(4, 64), Fields(written, "model", "dynamic"))
    for name in ("self_attn.qkv_proj", "self_attn.k_proj", "mlp.experts", "mlp.experts.7.up_proj", "mlp.down_proj"):
        assert find(f"model.layers.12.{name}").bits == find(f"language_model.model.layers.3.{name}").bits == 8
        assert find(f"model.layers.13.{name}").bits == find(f"model.layers.1.{name}").bits == 4
    assert find("model.layers.3.mlp.gate_up_proj").bits == 4
