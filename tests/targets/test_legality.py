"""What engines refuse, by the lists and rules of their own code."""

from __future__ import annotations

import re

import pytest

from passes.ir.model import ModelIR
from passes.ir.sources import open_model
from passes.prune.depth import DepthPrune
from passes.quantize.format_names import pass_named
from targets.engines.engine import Parallel, Settings, find_engine
from targets.engines.exllama import v2, v3
from targets.gpu import find_gpu
from targets.workload import Workload
from tests.backends.conftest import environment


def stored(model: str, weights: str) -> ModelIR:
    scheme = pass_named(weights)
    assert scheme is not None
    return scheme.rewrite(open_model(model).ir)


def refused(
    engine: str, ir: ModelIR, gpu: str, parallel: Parallel | None = None, version: str | None = None
) -> list[str]:
    settings = Settings(version, parallel or Parallel())
    return [reason.code for reason in find_engine(engine).illegal(ir, find_gpu(gpu), settings)]


@pytest.mark.parametrize(
    ("model", "tp", "ep", "says"),
    [
        ("Llama-3.1-8B-Instruct", 1, 1, None),
        ("Llama-3.1-8B-Instruct", 8, 1, None),  # 4,096 rows, 1,024 of keys, 14,336 channels
        ("SmolLM2-135M-Instruct", 1, 1, "576 rows of self_attn.q_proj are not"),
        ("GLM-4-9B-0414", 1, 1, None),  # gate and up are one matrix of 2 x 13,696 rows: 107 blocks each
        ("GLM-4-9B-0414", 2, 1, "6848 rows of mlp.gate_up_proj on each of 2 cards"),
        ("Qwen2-0.5B-Instruct", 1, 1, None),
        ("Qwen2-0.5B-Instruct", 2, 1, "448 rows of self_attn.q_proj on each of 2 cards"),
        ("Qwen3-30B-A3B", 2, 1, None),
        ("Qwen3-30B-A3B", 4, 1, "192 rows of mlp.experts.{e}.gate_proj on each of 4 cards"),
        ("Qwen3-30B-A3B", 4, 4, None),  # whole experts
    ],
)
def test_vllm_takes_fp8_blocks_where_parts_and_shards_are_whole_blocks(
    model: str, tp: int, ep: int, says: str | None
) -> None:
    settings = Settings(parallel=Parallel(tp=tp, ep=ep))
    reasons = find_engine("vllm").illegal(stored(model, "fp8-block"), find_gpu("H100"), settings)
    found = [reason for reason in reasons if reason.code == "fp8_block_does_not_divide_part"]
    assert [reason.message.startswith(says or "") for reason in found] == ([True] if says else [])
    assert all(reason.remedy for reason in found)


def test_publishers_fp8_blocks_are_refused_on_too_many_cards_only() -> None:
    # MiniMax's own recipe for vLLM: tensor parallel 4, or 8 with expert parallelism.
    ir = open_model("MiniMaxAI/MiniMax-M2.5").ir
    layouts = (Parallel(4), Parallel(8), Parallel(8, ep=8))
    codes = [refused("vllm", ir, "H200", parallel, "0.28.0") for parallel in layouts]
    assert codes == [[], ["fp8_block_does_not_divide_part"], []]
    # `refine_fp8_moe_block_shape` of 0.29: blocks of 64 divide 192 of 1,536. Triton's kernels take them, Ampere has none in FP8.
    assert [refused("vllm", ir, "H200", parallel, "0.29.0") for parallel in layouts] == [[], [], []]
    assert "fp8_block_does_not_divide_part" in refused("vllm", ir, "A100 SXM4 80GB", Parallel(8), "0.29.0")


def test_replicas_cut_experts_between_them_too() -> None:
    # `FusedMoEParallelConfig.flatten_tp_across_dp` of 0.9.0 and newer, the same in `fused_moe/layer.py` of 0.8.0: tensor parallel 4 twice
    # cuts them as tensor parallel 8 does.
    ir = open_model("MiniMaxAI/MiniMax-M2.5").ir
    layouts = (Parallel(4, dp=2), Parallel(4, dp=2, ep=8))
    codes = [refused("vllm", ir, "H200", parallel, "0.28.0") for parallel in layouts]
    assert codes == [["fp8_block_does_not_divide_part"], []]
    odd = [refused("vllm", open_model("Qwen/Qwen3-30B-A3B").ir, "H100", Parallel(1, dp=dp)) for dp in (3, 4, 5)]
    assert odd == [[], [], ["tp_does_not_divide_rows"]]


@pytest.mark.parametrize("model", ["opt-2.7b", "phi-2", "gpt-j-6b", "Qwen1.5-MoE-A2.7B", "llava-1.5-7b-hf"])
def test_exllamav2_is_not_planned_for_what_it_would_read_as_a_llama(model: str) -> None:
    ir = open_model(model).ir
    assert "architecture_not_in_exllamav2" in refused("exllamav2", ir, "RTX 4090")
    assert "architecture_not_in_exllamav3" in refused("exllamav3", ir, "RTX 4090")


@pytest.mark.parametrize(
    "model", ["gemma-2-9b-it", "gemma-3-4b-it", "Qwen2.5-7B-Instruct", "Devstral-Small-2-24B-Instruct-2512"]
)
def test_exllama_reads_what_it_has_models_for(model: str) -> None:
    ir = open_model(model).ir
    for engine in ("exllamav2", "exllamav3"):
        assert not [code for code in refused(engine, ir, "RTX 4090") if code.startswith(("architecture", "layer"))]


def test_a_config_without_architectures_is_not_refused_for_it() -> None:
    from dataclasses import replace

    ir = open_model("opt-2.7b").ir
    bare = replace(ir, config={key: value for key, value in ir.config.items() if key != "architectures"})
    assert refused("exllamav2", bare, "RTX 4090") == []


def test_dropped_blocks_leave_windows_where_exllama_does_not_look_for_them() -> None:
    ir = DepthPrune(4).rewrite(open_model("gemma-2-9b-it").ir)
    assert refused("exllamav2", ir, "RTX 4090") == ["layer_kinds_not_in_exllamav2"]
    assert refused("exllamav3", ir, "RTX 4090") == ["layer_kinds_not_in_exllamav3"]
    assert refused("vllm", ir, "RTX 4090") == []


def test_the_lists_are_those_of_the_packages() -> None:
    packages = next((environment("tools").parents[1] / "lib").glob("python3*/site-packages"))
    text = (packages / "exllamav2" / "architecture.py").read_text()
    named = set(re.findall(r'arch_string == "(\w+)"', text)) | {"LlamaForCausalLM"}
    named |= {name for names in re.findall(r"arch_string in \[(.*)\]", text) for name in re.findall(r"\w+", names)}
    assert named - {"LlavaForConditionalGeneration", "Mistral3ForConditionalGeneration"} == v2.ARCHITECTURES
    folder = packages / "exllamav3" / "architecture"
    strings = {
        name
        for file in folder.glob("*.py")
        if not file.stem.endswith(("_mtp", "_vision"))
        for name in re.findall(r'^    arch_string = "(\w+)"', file.read_text(), re.MULTILINE)
    }
    assert strings == v3.ARCHITECTURES


@pytest.mark.parametrize(
    ("engine", "weights", "gpu", "code"),
    [
        ("vllm", "nf4", "RTX 4090", None),
        ("vllm", "fp8-online", "RTX 4090", None),
        ("vllm", "int8-bnb", "RTX 4090", "int8_not_while_loading"),
        ("vllm-cpu", "nf4", "cpu", "bitsandbytes_needs_card"),
        ("vllm-cpu", "fp8-online", "cpu", "fp8_online_needs_card"),
        ("exllamav2", "nf4", "RTX 4090", "no_load_time_quantization"),
    ],
)
def test_what_engines_quantize_while_they_load(engine: str, weights: str, gpu: str, code: str | None) -> None:
    assert refused(engine, stored("Qwen2.5-0.5B-Instruct", weights), gpu) == ([code] if code else [])


@pytest.mark.parametrize("version", ["0.7.3", "0.17.1", "0.33.0"])
def test_a_checkpoint_of_bitsandbytes_is_not_cut(version: str) -> None:
    """vllm#13122, and `bitsandbytes_loader.py` of 0.7.3 to the package of today: "Please try with pipeline parallelism"."""
    ir = open_model("unsloth/DeepSeek-R1-Distill-Llama-70B-bnb-4bit").ir
    codes = [refused("vllm", ir, "RTX 4090", parallel, version) for parallel in (Parallel(8), Parallel(1, 8))]
    assert codes[0][0] == "tp_of_bitsandbytes" and "tp_of_bitsandbytes" not in codes[1]


def test_bitsandbytes_is_a_package_of_its_own_since_0_28() -> None:
    ir, workload = stored("Qwen2.5-0.5B-Instruct", "nf4"), Workload(1024)
    notes = {
        version: find_engine("vllm").memory(ir, find_gpu("RTX 4090"), Settings(version=version), workload).notes
        for version in ("0.27", "0.28")
    }
    assert "vllm-bnb-plugin" in " ".join(notes["0.28"]) and "plugin" not in " ".join(notes["0.27"])
