"""What vLLM refuses by exact version, card and format, as its source says: methods, kernels, KV types, dtypes, fused parts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from passes.errors import Reason
from passes.formats.compressed_tensors.integers import IntQuantized, PackQuantized
from passes.formats.dense import Dense
from passes.formats.format import Format
from passes.formats.fp4 import Nvfp4
from passes.formats.gptq import Gptq
from passes.formats.opaque import OpaqueFormat
from passes.formats.published import Published
from passes.ir.model import Block, Linear, ModelIR
from passes.ir.quant_config.read import quantized
from passes.ir.quant_config.write import quantization_config
from passes.ir.sources import open_model
from passes.kv_cache import KVCachePass
from passes.prune.width import WidthPrune
from passes.quantize.format_names import pass_named
from passes.quantize.quantize import Quantize
from targets.engines.engine import Parallel, Settings, find_engine
from targets.engines.vllm.engine import Vllm
from targets.gpu import find_gpu
from targets.workload import Workload

SMALL = "Qwen/Qwen2.5-1.5B-Instruct"
W4A8_FP8, W4A8_INT8 = PackQuantized(4, 128, inputs="fp8"), PackQuantized(4, -1, inputs="int8")


def held(model: str, form: Format, dtype: str = "BF16", method: str | None = None, least_copies: int = 1) -> ModelIR:
    """A model with every matrix that recipes quantize in one format; of experts alone where copies are asked for."""

    def store(linear: Linear) -> Linear:
        return replace(linear, storage=form) if linear.quantizable and linear.copies >= least_copies else linear

    def block(each: Block) -> Block:
        return each.map_linears(store)

    ir = open_model(model).ir
    return replace(ir.with_decoder(ir.decoder.map_blocks(block)), dtype=dtype, quant_method=method)


def reasons(ir: ModelIR, gpu: str, version: str | None = None, tp: int = 1, dtype: str | None = None) -> list[Reason]:
    settings = Settings(version, Parallel(tp=tp), dtype=dtype)
    return list(find_engine("vllm").illegal(ir, find_gpu(gpu), settings))


@pytest.mark.parametrize(
    ("form", "method", "gpu", "before", "since"),
    [
        (PackQuantized(4, 128), None, "T4", "0.11.2", "0.12.0"),
        (Nvfp4(activations=False), None, "T4", "0.15.1", "0.16.0"),
        (Published("fp8-static"), "fp8", "T4", "0.13.0", "0.14.1"),
        (Published("fp8-static"), "modelopt", "A100 SXM4 80GB", "0.26.0", "0.27.1"),
        (W4A8_INT8, None, "H100", "0.25.1", "0.26.0"),
        (W4A8_FP8, None, "H100", "0.9.2", "0.10.2"),
        (Gptq(4, 128), "gptq", "T4", None, "0.10.2"),
    ],
)
def test_a_method_is_read_on_a_card_from_a_version_on(
    form: Format, method: str | None, gpu: str, before: str | None, since: str
) -> None:
    ir = held(SMALL, form, "BF16" if form is W4A8_FP8 else "F16", method)
    assert reasons(ir, gpu, since) == []
    if before is not None:
        [refused] = reasons(ir, gpu, before)
        assert before in refused.message and refused.remedy


@pytest.mark.parametrize("gpu", ["A100 SXM4 80GB", "RTX 4090", "B200", "RTX PRO 6000"])
def test_fp8_activations_beside_four_bits_run_on_hopper_only(gpu: str) -> None:
    ir = held(SMALL, W4A8_FP8)
    assert [reason.code for reason in reasons(ir, gpu)] in (
        ["pack-quantized_needs_sm90"],
        ["pack-quantized_ends_at_sm90"],
    )
    assert reasons(ir, "H100") == []


@pytest.mark.parametrize(
    ("gpu", "legal"), [("T4", True), ("H100", True), ("B200", False), ("RTX 5090", False), ("GB10", False)]
)
def test_integers_times_integers_end_before_blackwell(gpu: str, legal: bool) -> None:
    found = reasons(held(SMALL, IntQuantized(), "F16"), gpu)
    assert [reason.code for reason in found] == ([] if legal else ["int-quantized_ends_at_sm90"])
    assert all("fp8" in (reason.remedy or "") for reason in found)


@pytest.mark.parametrize("model", ["deepseek-ai/DeepSeek-V3.2", "zai-org/GLM-5-FP8", "deepseek-ai/DeepSeek-V4-Flash"])
def test_sparse_attention_has_back_ends_on_few_cards(model: str) -> None:
    def codes(gpu: str, version: str) -> list[str]:
        return [reason.code for reason in reasons(open_model(model).ir, gpu, version)]

    assert "sparse_attention_without_backend" in codes("A100 SXM4 80GB", "0.33.0")
    assert "sparse_attention_without_backend" in codes("RTX PRO 6000", "0.23.0")
    assert codes("RTX PRO 6000", "0.33.0") == codes("H200", "0.33.0") == codes("B200", "0.33.0") == []


@pytest.mark.parametrize(
    ("gpu", "last_without", "first"),
    [("B200", "0.8.5", "0.9.0"), ("RTX 5090", "0.9.2", "0.10.0"), ("GB10", "0.9.2", "0.10.0")],
)
def test_wheels_have_code_for_blackwell_from_a_version_on(gpu: str, last_without: str, first: str) -> None:
    ir = open_model(SMALL).ir
    assert [reason.code for reason in reasons(ir, gpu, last_without)] == ["vllm_older_than_card"]
    assert reasons(ir, gpu, first) == []


def test_integers_of_experts_have_a_kernel_of_their_own() -> None:
    assert reasons(held("Qwen/Qwen3-30B-A3B", IntQuantized(), least_copies=2), "B200") == []


@pytest.mark.parametrize(
    ("form", "dtype", "legal", "refused", "code"),
    [
        (PackQuantized(4, 256), "BF16", "0.23.0", "0.22.1", "dtype_without_kernel"),
        (PackQuantized(4, 256), "F16", "0.10.2", None, None),
        (PackQuantized(4, 16), "F16", "0.20.2", None, None),
        (PackQuantized(8, 128, symmetric=False), "F16", "0.23.0", "0.22.1", "no_kernel_for_integers"),
        (Gptq(4, 128, symmetric=False), "F16", "0.21.0", "0.22.1", "no_kernel_for_integers"),
        (Gptq(2, 128), "F16", "0.21.0", "0.22.1", "no_kernel_for_integers"),
        (Gptq(4, 256), "F16", "0.21.0", "0.32.0", "group_size_without_kernel"),
    ],
)
def test_kernels_for_integers_by_version(
    form: Format, dtype: str, legal: str, refused: str | None, code: str | None
) -> None:
    ir = held("Llama-3.1-8B-Instruct", form, dtype)
    assert reasons(ir, "RTX 4090", legal) == []
    if refused is not None:
        [reason] = reasons(ir, "RTX 4090", refused)
        assert reason.code == code and reason.remedy and "engine: {name: vllm" in reason.remedy


@pytest.mark.parametrize(
    ("dtype", "tp", "version", "legal"),
    [
        ("BF16", 2, "0.6.4", False),
        ("BF16", 1, "0.6.4", True),
        ("F16", 2, "0.6.4", True),  # ExLlama's kernel
        ("BF16", 2, "0.24.0", True),  # zero-padded
    ],
)
def test_marlin_took_inputs_of_a_rank_in_multiples_of_128(dtype: str, tp: int, version: str, legal: bool) -> None:
    found = reasons(held("Qwen/Qwen2-72B-Instruct", PackQuantized(4, 64), dtype), "A100 SXM4 80GB", version, tp)
    assert [reason.code for reason in found] == ([] if legal else ["shape_without_kernel"])
    if not legal:
        assert "14,784" in found[0].message
        assert all(way in (found[0].remedy or "") for way in ("0.23", "float16", "fewer cards"))


def test_groups_in_activation_order_left_in_0_30() -> None:
    ir = held(SMALL, Gptq(4, 128, desc_act=True), "F16")
    assert reasons(ir, "RTX 4090", "0.29.0") == []
    [reason] = reasons(ir, "RTX 4090", "0.30.0")
    assert reason.code == "group_order_unsupported" and "0.29" in (reason.remedy or "")


def test_the_wheels_have_no_code_for_volta_since_0_20() -> None:
    ir = open_model(SMALL).ir
    assert reasons(ir, "V100", "0.19.1") == []
    [reason] = reasons(ir, "V100")
    assert "7.5" in reason.message and "0.19" in (reason.remedy or "")


@pytest.mark.parametrize(
    ("dtype", "gpu", "version", "legal"),
    [
        ("fp8", "RTX 4090", "0.8.5", True),
        ("fp8", "RTX 3090", "0.11.2", False),
        ("fp8", "RTX 3090", "0.24.0", True),
        ("fp8", "T4", None, False),
        ("fp8_e5m2", "T4", "0.20.2", True),
        ("int8_per_token_head", "RTX 3090", "0.20.2", True),
        ("int8_per_token_head", "RTX 3090", "0.19.1", False),
        ("fp8_per_token_head", "RTX 3090", "0.20.2", False),
        ("int4_per_token_head", "RTX 4090", "0.25.1", True),
        ("nvfp4", "RTX 5090", "0.31.0", False),
        ("nvfp4", "RTX 5090", "0.32.0", True),
        ("nvfp4_4over6", "B200", "0.28.0", True),
    ],
)
def test_types_of_the_cache_by_version_and_card(dtype: str, gpu: str, version: str | None, legal: bool) -> None:
    ir = KVCachePass(dtype).rewrite(held("Llama-3.1-8B-Instruct", Dense("F16"), "F16"))
    assert [reason.code for reason in reasons(ir, gpu, version)] == ([] if legal else ["kv_dtype_without_backend"])


def test_fp8_caches_of_ampere_are_flashinfers() -> None:
    latent = KVCachePass("fp8").rewrite(open_model("deepseek-ai/DeepSeek-V2-Lite").ir)
    odd = KVCachePass("fp8").rewrite(open_model("microsoft/Phi-3-mini-4k-instruct").ir)  # heads of 96
    assert [[r.code for r in reasons(ir, "A100 SXM4 80GB", "0.30.0")] for ir in (latent, odd)] == [
        ["kv_dtype_without_backend"]
    ] * 2


@pytest.mark.parametrize(("version", "legal"), [("0.23.0", False), ("0.24.0", True)])
def test_an_e5m2_cache_beside_compressed_tensors(version: str, legal: bool) -> None:
    ir = KVCachePass("fp8_e5m2").rewrite(held(SMALL, PackQuantized(4, 128)))
    assert (reasons(ir, "RTX 4090", version) == []) == legal
    scaled = replace(ir, kv_cache=replace(ir.kv_cache, scales=True))
    assert [reason.code for reason in reasons(scaled, "RTX 4090", version)] == ["e5m2_kv_with_compressed_tensors"]


def test_families_that_refuse_float16_compute_in_float32_on_old_cards() -> None:
    ir, engine, gpu = open_model("google/gemma-2-2b-it").ir, find_engine("vllm"), find_gpu("T4")
    memory = engine.memory(ir, gpu, Settings(), Workload(4096))
    stored = engine.memory(ir, find_gpu("L4"), Settings(), Workload(4096))
    assert reasons(ir, "T4") == []
    assert memory.memory.weights.value == pytest.approx(2 * stored.memory.weights.value, rel=0.005)
    assert any("float32" in note for note in memory.notes)
    assert [reason.code for reason in reasons(ir, "T4", dtype="bfloat16")] == ["bf16_needs_sm80"]
    assert [reason.code for reason in reasons(held("google/gemma-2-2b-it", Gptq(4, 128)), "T4")] == ["gptq_not_in_f32"]


GEMMA = "google/gemma-4-31B-it"


@pytest.mark.parametrize("weights", ["gptq-4-g64", "w4a16-g64"])
def test_absent_values_are_named_like_the_keys_that_serve_as_them(weights: str) -> None:
    scheme = pass_named(weights)
    assert scheme is not None
    made = scheme.rewrite(open_model(GEMMA).ir)
    settings = quantization_config(made)
    assert settings is not None
    read = replace(quantized(replace(open_model(GEMMA).ir, config={"quantization_config": settings})), name="made")
    assert reasons(read, "H100") == []
    listed = settings.pop("modules_in_block_to_quantize", None)
    if weights.startswith("gptq"):
        assert ["self_attn.v_proj" in group for group in listed].count(True) == 1
        bare = replace(read, config={"quantization_config": settings})
        [reason] = reasons(bare, "H100")
        assert reason.code == "fused_part_absent" and "modules_in_block_to_quantize" in (reason.remedy or "")


def test_parts_of_a_fused_matrix_agree() -> None:
    ir = held(SMALL, PackQuantized(4, 128))
    mixed = ir.with_decoder(
        ir.decoder.map_blocks(
            lambda block: block.map_linears(
                lambda lin: replace(lin, storage=PackQuantized(8, 128)) if lin.name.endswith("v_proj") else lin
            )
        )
    )
    [reason] = reasons(mixed, "RTX 4090")
    assert reason.code == "fused_parts_disagree" and "v_proj" in reason.message


@pytest.mark.parametrize(("grouped", "disagree"), [(64, False), (32, True)])
def test_settings_stored_as_tensors_are_no_other_way_of_storing(grouped: int, disagree: bool) -> None:
    # HQQ's own `state_dict` keeps bits, group and shape beside each matrix, which are a larger share of small matrices.
    def stored(lin: Linear) -> Linear:
        size = lin.out_features * lin.in_features
        groups = size // (grouped if lin.name.endswith("v_proj") else 64)
        parts = (
            ("W_q", "U8", (size // 2,)),
            ("scale", "F16", (groups,)),
            ("nbits", "I32", (1,)),
            ("shape", "I64", (2,)),
        )
        return replace(lin, storage=OpaqueFormat("hqq", lin.out_features, lin.in_features, parts))

    ir = open_model(SMALL).ir
    made = ir.with_decoder(ir.decoder.map_blocks(lambda block: block.map_linears(stored)))
    codes = {reason.code for reason in Vllm().illegal(made, find_gpu("RTX 4090"), Settings(version="0.14.0"))}
    assert ("fused_parts_disagree" in codes) == disagree


def test_gated_delta_nets_multiplied_all_inputs_at_once() -> None:
    """vllm#25039: FP8 of Qwen3-Next on four A100 with 0.10.2, size_n = 3088 is no multiple of Marlin's 64; other cards read the matrix as
    one whose parts are stored in two ways. 0.11 multiplies them one by one."""
    fp8, dense = (open_model(f"Qwen/Qwen3-Next-80B-A3B-Instruct{end}").ir for end in ("-FP8", ""))

    def codes(ir: ModelIR, card: str, version: str) -> dict[str, str]:
        found = Vllm().illegal(ir, find_gpu(card), Settings(parallel=Parallel(tp=4), version=version))
        return {reason.code: reason.message for reason in found}

    assert "not 3,088" in codes(fp8, "A100 SXM4 80GB", "0.10.2")["shape_without_kernel"]
    assert "in_proj_ba" in codes(fp8, "H100", "0.10.2")["fused_parts_disagree"]
    assert not codes(fp8, "A100 SXM4 80GB", "0.11.0") and not codes(dense, "A100 SXM4 80GB", "0.10.2")


@pytest.mark.parametrize(
    ("dtype", "bytes_of_head"),
    [
        ("auto", 256), ("fp8", 128), ("int8_per_token_head", 132), ("int4_per_token_head", 68), ("nvfp4", 72), ("bfloat16", 256),
    ],
)  # fmt: skip
def test_bytes_of_a_heads_key_in_the_cache(dtype: str, bytes_of_head: int) -> None:
    """Llama-3.1-8B: 32 layers of 8 heads of 128 elements, keys and values."""
    ir = KVCachePass(dtype).rewrite(open_model("Llama-3.1-8B-Instruct").ir)
    kv = find_engine("vllm").memory(ir, find_gpu("B200"), Settings(), Workload(4096)).kv
    assert kv.bytes_per_token == pytest.approx(32 * 8 * 2 * bytes_of_head)


@pytest.mark.parametrize(
    ("settings", "label"),
    [
        ({"quant_method": "gptq", "bits": 6, "group_size": 64}, "planes6-gptq"),
        ({"quant_method": "modelopt", "quant_algo": "W4A16_AWQ"}, "int4-awq-modelopt"),
    ],
)
def test_what_vllm_does_not_read_is_refused_by_name(settings: dict[str, Any], label: str) -> None:
    dense = open_model("Qwen/Qwen3-8B").ir
    ir = quantized(replace(dense, config=dict(dense.config) | {"quantization_config": settings}))
    reasons = find_engine("vllm").illegal(ir, find_gpu("H100 SXM"), Settings())
    assert [(reason.code, reason.message) for reason in reasons] == [
        ("published_not_in_vllm", f"vLLM does not read {label} checkpoints")
    ]


@pytest.mark.parametrize(
    ("settings", "legal"),
    [
        ({"group_size": -1, "data_type": "fp", "bits": 8}, False),
        ({"group_size": [128, 128], "data_type": "fp", "bits": 8}, True),
        ({"group_size": 16, "data_type": "nv_fp", "bits": 4, "act_bits": 4}, False),
        ({"group_size": 128, "bits": 4}, True),
    ],
)
def test_integers_of_auto_round_are_read_and_few_of_its_floats(settings: dict[str, Any], legal: bool) -> None:
    dense = open_model("Qwen/Qwen3-8B").ir
    told = {"quant_method": "auto-round"} | settings
    ir = quantized(replace(dense, config=dict(dense.config) | {"quantization_config": told}))
    reasons = find_engine("vllm").illegal(ir, find_gpu("H100 SXM"), Settings())
    assert (not reasons) is legal, reasons
    assert all(
        "in auto-round checkpoints" in reason.message and "llm_compressor" in reason.remedy for reason in reasons
    )


def test_what_marlin_fills_up_to_whole_tiles_is_said() -> None:
    def filled(width: int, version: str) -> list[str]:
        narrow = replace(WidthPrune(width).rewrite(open_model(SMALL).ir), dtype="BF16")
        stored = Quantize("rtn", PackQuantized(4, -1)).rewrite(narrow)
        notes = find_engine("vllm").memory(stored, find_gpu("L4"), Settings(version), Workload(4096)).notes
        return [note for note in notes if "Marlin" in note]

    # 1,040 outputs of the pair become 1,088, 520 inputs of the last 576: (48 + 56) x 1,536 half bytes in each of 28 blocks.
    [said] = filled(520, "0.33.0")
    assert "1,040 × 1,536, 1,536 × 520" in said and "2.1 MiB" in said
    assert filled(1024, "0.33.0") == []
