"""What is written into `quantization_config` is read back as it was stored, and stays the same to the byte."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from passes.errors import InputError, TightfitError
from passes.formats.awq import Awq
from passes.formats.compressed_tensors.floats import FloatQuantized
from passes.formats.compressed_tensors.integers import IntQuantized, PackQuantized
from passes.formats.exllama.exl3 import Exl3
from passes.formats.format import Format
from passes.formats.fp4 import Mxfp4, Nvfp4
from passes.formats.gptq import Gptq
from passes.ir.architectures import build_ir
from passes.ir.model import ModelIR, Role
from passes.ir.quant_config.patterns import compiled
from passes.ir.quant_config.quant_config import QUANT_CONFIGS, QuantConfig, quant_config
from passes.ir.quant_config.read import quantized
from passes.ir.quant_config.write import quantization_config
from passes.kv_cache import KVCachePass
from passes.quantize.quantize import Quantize

_BASE = {
    "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2,
    "vocab_size": 256, "torch_dtype": "float16", "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
}  # fmt: skip
#: Plain, with fused matrices, with experts apart, with banks of experts.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"architectures": ["LlamaForCausalLM"], "model_type": "llama"},
    "phi3": {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "num_key_value_heads": 4},
    "mixtral": {
        "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2,
    },
    "qwen3_moe": {
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "num_experts": 4, "num_experts_per_tok": 2,
        "moe_intermediate_size": 256, "head_dim": 64,
    },
}  # fmt: skip
_SIZES = st.sampled_from((-1, 32, 64, 128))
FORMATS: st.SearchStrategy[Format] = st.one_of(
    st.builds(Gptq, st.sampled_from((2, 3, 4, 8)), _SIZES, st.booleans(), st.booleans(), st.sampled_from((1, 2))),
    st.builds(Awq, st.sampled_from((32, 64, 128))),
    st.builds(PackQuantized, st.sampled_from((4, 8)), _SIZES, st.booleans(), st.just("F16")),
    st.builds(IntQuantized, st.just("F16"), st.booleans()),
    st.builds(FloatQuantized, st.sampled_from((-1, 0)), st.none(), st.just("F16"), st.booleans()),
    st.just(FloatQuantized(-1, (128, 128), "F16")),
    st.builds(Nvfp4, st.booleans()),
    st.just(Mxfp4()),
)


def model(family: str, **changes: Any) -> ModelIR:
    return build_ir(_BASE | FAMILIES[family] | changes, family)


@given(st.sampled_from(list(FAMILIES)), FORMATS, st.booleans())
@settings(deadline=None, max_examples=200)
def test_every_family_is_read_back_as_it_was_stored(family: str, form: Format, scales: bool) -> None:
    dense, chain = model(family), [Quantize("gptq", form), *([KVCachePass("fp8", scales=True)] if scales else [])]
    stored = dense
    for pass_ in chain:
        assume(not pass_.illegal(stored))
        stored = pass_.rewrite(stored)
    written = json.loads(json.dumps(quantization_config(stored)))
    read = quantized(model(family, quantization_config=written))
    assert read.quant_method == form.quant_method
    for layer in range(len(dense.decoder.layers)):
        assert read.decoder.block(layer).linears == stored.decoder.block(layer).linears
    assert read.outer == stored.outer


_GOLDEN = json.loads(Path(__file__).with_name("quantization_configs.json").read_text())
_WRITTEN: dict[str, tuple[str, Format]] = {
    "gptq": ("llama", Gptq(4, 128)), "gptq-asym-v2": ("llama", Gptq(8, -1, False, True, 2)), "awq": ("llama", Awq(64)),
    "pack": ("mixtral", PackQuantized(4, 64)), "int8": ("phi3", IntQuantized()), "fp8-block": ("llama", FloatQuantized(-1, (128, 128))),
    "fp8-static": ("qwen3_moe", FloatQuantized(0, static=True)), "nvfp4": ("llama", Nvfp4()), "mxfp4": ("llama", Mxfp4()),
}  # fmt: skip


@pytest.mark.parametrize("name", _WRITTEN)
def test_what_is_written_stays_the_same_to_the_byte(name: str) -> None:
    family, form = _WRITTEN[name]
    assert json.dumps(quantization_config(Quantize("gptq", form).rewrite(model(family)))) == json.dumps(_GOLDEN[name])


def test_scales_of_the_cache_alone_stay_the_same_to_the_byte() -> None:
    stored = KVCachePass("fp8", scales=True).rewrite(model("llama"))
    assert json.dumps(quantization_config(stored)) == json.dumps(_GOLDEN["scales"])


@pytest.mark.parametrize(
    "forms", [(Awq(64), Awq(32)), (Awq(64), Gptq(4, 64)), (Gptq(4, 64), PackQuantized()), (Exl3(4.0),)]
)
def test_formats_that_no_one_config_describes_are_refused(forms: tuple[Format, ...]) -> None:
    dense = model("llama", hidden_size=512)
    prefix = dense.decoder.layer_prefix(0)
    assigned = ((f"{prefix}mlp.down_proj", forms[-1]),)
    with pytest.raises(TightfitError, match="cannot hold these formats together"):
        quantization_config(Quantize("gptq", forms[0], assigned).rewrite(dense))


@pytest.mark.parametrize("method", QUANT_CONFIGS.names())
def test_the_table_names_what_is_there(method: str) -> None:
    assert isinstance(quant_config(method, model("llama")), QuantConfig)


def test_an_unknown_method_is_an_error_with_a_remedy() -> None:
    with pytest.raises(InputError, match="quant_method 'aqlm' is not understood"):
        quant_config("aqlm", model("llama"))


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+$", "(a|aa)+$", "(.|.)*x", ".*.*.*.*x", "(.*)(.*)(.*)(.*)x", "(?:.?){40}x", "(a{1,9}){1,9}", "(?=(.*a)*)b", "(x+x+)+y",
        "(", "a**",
    ],
)  # fmt: skip
def test_a_pattern_that_may_match_for_ever_is_refused(pattern: str) -> None:
    with pytest.raises(InputError, match=r"quantization_config: .*(take for ever|should be a regular expression)"):
        compiled(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        r".*self_attn.*", r"model\.layers\.\d+\.mlp\.experts\.\d+\..*", r".*attn.*(q|k|v|o)_proj.*", r"(?!.*(mlp|attn)).*",
        r"^(?:model\.)?layers\.(?:[0-9]|1[0-9])\..*$", r".*\.(0|1|2|3|10|11)\..*(gate|up)_proj.*", r"(\d{1,3}\.){2}x",
    ],
)  # fmt: skip
def test_patterns_that_people_write_are_taken(pattern: str) -> None:
    assert compiled(pattern).pattern == pattern


def test_a_plain_name_of_compressed_tensors_means_that_module_alone() -> None:
    leaves = quant_config("compressed-tensors", model("llama")).leaves
    gate, child = "model.layers.0.mlp.gate", "model.layers.0.mlp.gate.proj"
    assert leaves(gate)(gate) and leaves(gate)("language_model." + gate)
    assert not leaves(gate)(child) and not leaves("mlp.gate")(gate) and not leaves("mlp")(gate)
    assert leaves("re:.*mlp.*")(child) and leaves("lm_head")("lm_head")


@pytest.mark.parametrize(
    ("entry", "apart"),
    [
        ("lm_head", False), ("self_attn", False), ("model.layers.*.mlp", False), ("model.layers.1.mlp.down_proj", True),
        ("re:.*down_proj", True), ("model.layers.[12].mlp", True), ("model.layers.(1|2).mlp", True), ("layers.1", True),
    ],
)  # fmt: skip
def test_layers_are_told_apart_where_an_entry_may_mean_some_only(entry: str, apart: bool) -> None:
    config = quant_config("gptq", model("llama"))
    assert config.tells_layers_apart({"bits": 4, "group_size": 128, "modules_to_not_convert": [entry]}) == apart
    assert config.tells_layers_apart({"bits": 4, "dynamic": {f"-:{entry}": {}}})


@pytest.mark.parametrize("entry", ["model.layers.1.mlp.down_proj", "model.layers.*.mlp.down_proj"])
def test_what_an_entry_leaves_dense_is_dense_in_the_layers_that_it_means(entry: str) -> None:
    settings = {"quant_method": "gptq", "bits": 4, "group_size": 32, "modules_to_not_convert": [entry]}
    stored = quantized(model("llama", quantization_config=settings))
    down = [next(lin for lin in stored.decoder.block(i).linears if lin.role is Role.DOWN) for i in range(3)]
    assert [not linear.storage.is_quantized for linear in down] == [
        entry.startswith("model.layers.*"),
        True,
        entry.startswith("model.layers.*"),
    ]
