"""Whatever others wrote is answered or refused by a message that names file, key, what was found and what was expected.

`python -m benchmarks.hostile_inputs SEED N` goes on where this stops.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tightfit
from benchmarks.hostile_inputs.run import attempt
from benchmarks.hostile_inputs.surfaces import gguf_bytes
from benchmarks.hostile_inputs.table import SURFACES
from passes.errors import InputError
from passes.ir.architectures import build_ir
from passes.ir.quant_config.read import quantized
from passes.ir.readers.hub import read_repository
from passes.ir.readers.paths import cache_root
from passes.ir.sources import open_model
from passes.text.source import texts, tokenizer_of
from planner.spec.arguments import public
from planner.spec.parse import parse_spec
from planner.verifying.verify import UnderLoad
from targets.engines.engine import Parallel, Settings
from targets.engines.vllm.memory.encoder import largest_item
from targets.engines.vllm.rules.versions import rules_for
from targets.machine.profile import profile_path

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 128, "max_position_embeddings": 256,
}  # fmt: skip
SPEC = "model: x\ntarget: { gpu: rtx-4090 }\n"
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32}


@pytest.mark.parametrize("surface", [surface for surface in SURFACES if surface != "question"])  # each searches anew
@settings(max_examples=12, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**40))
def test_a_mutated_input_is_answered_or_refused(
    surface: str, tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    assert attempt(surface, seed, tmp_path_factory.getbasetemp()) is None


@pytest.mark.parametrize(
    ("text", "place", "says"),
    [
        ("model: a\x00b\n", "s.yaml:1:9", "U+0000"),
        ('model: "a\\0b"\n', "s.yaml:1:8", "a character that no name has"),
        ("model: !!python/object:os.system x\n", "s.yaml:1:8", "'!!python/object:os.system' is not read"),
        ("model: !!int ''\n", "s.yaml:1:8", "'' should be a whole number"),
        (SPEC + "goals: { <<: {} }\n", "s.yaml:3:10", "a merge key"),
        (SPEC + "passes: &a [*a]\n", "s.yaml:3:9", "an alias"),
        (SPEC + "? [a]\n: 1\n", "s.yaml:3:3", "cannot be a key"),
        (SPEC + f"goals: {'[' * 30}{']' * 30}\n", "s.yaml:3:27", "nested more than 20 deep"),
        (SPEC + f"goals: {'[' * 9999}", "s.yaml", "nested too deeply"),
        (SPEC + "workload: { context: 99999999999 }", "s.yaml:3:13", "should be 2147483647 or less"),
        (SPEC + "goals: { quality: { max_kl: .nan } }", "s.yaml:3:21", "should be a finite number"),
        (SPEC + "goals: { ttft: 1e400 s }", "s.yaml:3:10", "more than anything here is"),
        (SPEC + "passes: { kv_cache: 8 }", "s.yaml:3:11", "should be a list, such as [a, b] (found 8)"),
        (SPEC + "workload: 3", "s.yaml:3:1", "should be a mapping of keys to values (found 3)"),
    ],
)
def test_yaml_is_plain_data(text: str, place: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_spec(text, "s.yaml")
    assert str(caught.value.location) == place
    assert says in caught.value.message
    assert "tuple" not in str(caught.value)
    assert caught.value.remedy


def test_what_looks_like_a_date_is_text() -> None:
    assert parse_spec(SPEC + "engine: 2026-11-27").engine == "2026-11-27"


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"num_hidden_layers": 10**9}, "config.json: 'num_hidden_layers' should be a whole number of at least 1 and at most 1,024, found"),
        ({"hidden_size": float("nan")}, "config.json: 'hidden_size' should be a whole number .*, found nan"),
        ({"hidden_size": 0}, "config.json: 'hidden_size' should be a whole number of at least 1 .*, found 0"),
        ({"vocab_size": "32000"}, "config.json: 'vocab_size' should be a whole number .*, found '32000'"),
        ({"architectures": [{"a": 1}]}, r"config.json: 'architectures\[0\]' should be a string, found {'a': 1}"),
        ({"torch_dtype": ["float16"]}, r"config.json: 'torch_dtype' should be a string, found \['float16'\]"),
        ({"layer_types": ["full_attention"]}, "config.json: 'layer_types' should be a list of 2, found 1 entries"),
        ({"rope_scaling": {"rope_type": {"a": 1}}}, "'rope_type' should be a string, found {'a': 1}"),
        ({"attention_bias": "yes"}, "config.json: 'attention_bias' should be true or false, found 'yes'"),
        ({"num_attention_heads": 128, "num_key_value_heads": 128}, r"of shape \[0, 64\], which has no elements"),
        ({"quantization_config": [1]}, r"config.json: 'quantization_config' should be an object, found \[1\]"),
        ({"quantization_config": GPTQ | {"group_size": 0}}, "'group_size' should be a whole number of at least 1, or -1"),
        ({"quantization_config": GPTQ | {"bits": None}}, "quantization_config lacks 'bits'"),
        ({"quantization_config": GPTQ | {"dynamic": {"-:(": {}}}}, r"'\(' should be a regular expression"),
    ],
)  # fmt: skip
def test_a_config_is_read_by_type_and_range(changed: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        quantized(build_ir(LLAMA | changed, "model"))
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("model", "side"), [("mistralai/Mistral-Small-3.1-24B-Instruct-2503", [1]), ("google/gemma-3-4b-it", "896")]
)
def test_what_an_encoder_sees_is_read_by_type_and_range(model: str, side: Any) -> None:
    ir = open_model(model).ir
    vision = dict(ir.config["vision_config"]) | {"image_size": side}
    with pytest.raises(InputError, match="vision_config: 'image_size' should be a whole number"):
        largest_item(replace(ir, config=dict(ir.config) | {"vision_config": vision}), 4096, rules_for("0.32.0")[0])


@pytest.mark.parametrize("part", [0.5, [1]])
def test_a_nested_part_of_a_table_is_an_object(part: Any) -> None:
    config = dict(open_model("zai-org/GLM-4.5V").ir.config)
    with pytest.raises(InputError, match="'vision_config' should be an object, found"):
        build_ir(config | {"vision_config": part}, "model")


@pytest.mark.parametrize("home", ["~", "~nobody/x"])
def test_a_home_that_no_one_has_is_said(home: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", home)
    for variable in ("XDG_CACHE_HOME", "TIGHTFIT_HOME", "HF_HOME"):
        monkeypatch.delenv(variable, raising=False)
    for ask in (cache_root, lambda: profile_path("a card")):
        with pytest.raises(InputError, match="HOME is '~"):
            ask()


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        ("config.json", "[" * 99_999, r"config\.json: nested too deeply"),
        ("config.json", '"x"', r"config\.json: not a JSON object but 'x'"),
        ("model.safetensors.index.json", "{}", r"index\.json: the index lacks 'weight_map'"),
        ("model.safetensors.index.json", '{"weight_map": {"a": {}}}', "weight_map: 'a' should be a string, found {}"),
    ],
)
def test_a_file_of_a_model_is_read_by_type_and_range(tmp_path: Path, file: str, text: str, says: str) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / file).write_text(text)
    with pytest.raises(InputError, match=says):
        open_model(tmp_path)


@pytest.mark.parametrize(
    ("metadata", "says"),
    [
        ({"general.architecture": 3}, "metadata: 'general.architecture' should be a string, found 3"),
        ({"general.alignment": 0}, "metadata: 'general.alignment' should be a whole number of at least 1 .*, found 0"),
        ({"x": [[[[[[1]]]]]]}, "arrays stand more than 4 deep in each other"),
        ({"general.architecture": "llama"}, "lacks 'hidden_size'"),
    ],
)
def test_a_gguf_file_is_read_by_type_and_range(tmp_path: Path, metadata: dict[str, Any], says: str) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(gguf_bytes(metadata, {}))
    with pytest.raises(InputError, match=says):
        open_model(file)


def test_what_a_gguf_file_claims_is_walked_through_only_as_far_as_it_goes(tmp_path: Path) -> None:
    sizes = {
        "embedding_length": 64,
        "feed_forward_length": 96,
        "context_length": 64,
        "vocab_size": 8,
        "attention.head_count": 4,
    }
    counts = {"block_count": 1000, "expert_count": 16000, "expert_used_count": 2}
    metadata = {f"llama.{key}": value for key, value in (sizes | counts).items()} | {"general.architecture": "llama"}
    file = tmp_path / "model.gguf"
    file.write_bytes(gguf_bytes(metadata, {"blk.0.ffn_up_exps.weight": (1, 96, 64)}))
    with pytest.raises(InputError, match="lacks"):
        open_model(file)


def test_a_proxy_that_no_request_can_name_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TIGHTFIT_HOME", str(tmp_path))
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_ENDPOINT", "HTTPS_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("https_proxy", "http://pröxy:ä")
    with pytest.raises(InputError) as caught:
        read_repository("org/model")
    assert "https_proxy" in f"{caught.value.message} {caught.value.remedy}"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"settings": Settings(max_num_seqs="x")}, "settings.max_num_seqs is 'x', a str"),  # type: ignore[arg-type]
        ({"settings": Settings(gpu_memory_utilization=2)}, "settings.gpu_memory_utilization is 2"),
        ({"settings": Settings(parallel=Parallel(tp=0))}, "settings.parallel.tp is 0"),
        ({"settings": Settings(parallel=Parallel(pp=10**9))}, "settings.parallel.pp is 1000000000"),
        ({"settings": Settings(enforce_eager="no")}, "settings.enforce_eager is 'no'"),  # type: ignore[arg-type]
        ({"settings": Settings(kv_cache_memory_bytes=True)}, "settings.kv_cache_memory_bytes is true"),
        ({"settings": []}, r"settings is \[\]"),
        ({"weights": 3}, "weights is 3"),
        ({"engine": None}, "engine is null"),
        ({"load": b"x"}, "load is b'x'"),
    ],
)
def test_an_argument_of_the_facade_is_held_against_its_type_and_range(given: dict[str, Any], says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        tightfit.check("Qwen/Qwen2.5-1.5B-Instruct", "L4", **given)
    assert caught.value.remedy and "expected" in caught.value.remedy


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: tightfit.check("m", "L4", contxt=5), "argument of check 'contxt'. Did you mean 'context'"),
        (lambda: tightfit.check("m"), "check: missing a required argument: 'gpu'"),
        (lambda: tightfit.plan({}, on_=1), "argument of plan 'on_'. Did you mean 'on'"),
        (lambda: tightfit.apply("x", ou="y"), "Did you mean 'out'"),
        (lambda: tightfit.verify("x", lod=1), "Did you mean 'load'"),
        (lambda: tightfit.load_plan(), "missing a required argument: 'what'"),
        (lambda: tightfit.load_spec("a", "b"), "too many positional arguments"),
        (lambda: tightfit.Settings(max_num_seq=5), "argument of Settings 'max_num_seq'. Did you mean 'max_num_seqs'"),
        (lambda: tightfit.Parallel(tpp=2), "argument of Parallel 'tpp'. Did you mean 'tp'"),
        (lambda: tightfit.UnderLoad(rat=2), "Did you mean 'rate'"),
        (lambda: tightfit.Computing(devise="cpu"), "Did you mean 'device'"),
        (lambda: tightfit.Target("L4"), "Target takes its keys by name"),
        (lambda: tightfit.Target(gpu="L44"), "unknown GPU 'L44'"),
        (
            lambda: tightfit.Spec(model="m", target={"gpu": "L4"}, engine="vlm"),
            "unknown engine 'vlm'. Did you mean 'vllm'",
        ),
        (lambda: tightfit.Goals(prefer="fast"), "should be one of"),
    ],
)
def test_an_argument_that_is_none_is_told_with_the_nearest(call: Callable[[], object], says: str) -> None:
    with pytest.raises(InputError, match=re.escape(says)) as caught:
        call()
    assert caught.value.remedy


def test_a_type_error_inside_of_a_function_stays_one() -> None:
    def tell(event: object) -> None:
        raise TypeError("of the caller's own")

    with pytest.raises(TypeError, match="of the caller's own"):
        public(tell)("x")


@pytest.mark.parametrize(
    "call",
    [
        lambda: tightfit.plan({}, progress=3),  # type: ignore[arg-type]
        lambda: tightfit.plan({}, measure=3),  # type: ignore[arg-type]
        lambda: tightfit.plan({}, on="cpu"),  # type: ignore[arg-type]
        lambda: tightfit.apply("x", replace="y"),  # type: ignore[arg-type]
        lambda: tightfit.verify("x", load=UnderLoad(rate="a")),  # type: ignore[arg-type]
        lambda: tightfit.verify("x", say=None),  # type: ignore[arg-type]
    ],
)
def test_so_are_those_of_its_other_functions(call: Callable[[], object]) -> None:
    with pytest.raises(InputError) as caught:
        call()
    assert "expected" in (caught.value.remedy or "")


def test_the_dtype_of_settings_is_kept() -> None:
    asked = tightfit.check("Qwen/Qwen2.5-1.5B-Instruct", "L4", settings=Settings(dtype="float32"))
    assert asked.document.memory == tightfit.check("Qwen/Qwen2.5-1.5B-Instruct", "L4", dtype="float32").document.memory


@pytest.mark.parametrize(
    "made", [os.mkfifo, lambda file: file.symlink_to("/dev/zero"), lambda file: file.symlink_to(file), Path.mkdir]
)
def test_what_is_no_file_is_not_read_as_one(tmp_path: Path, made: Callable[[Path], object]) -> None:
    for name in ("config.json", "other.gguf"):
        made(tmp_path / name)
    for model in (tmp_path, tmp_path / "other.gguf"):
        with pytest.raises(InputError, match=r"config\.json|other\.gguf"):
            open_model(model)


def test_a_tokenizer_that_is_none_and_a_text_of_other_bytes_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / "tokenizer.json").write_text('{"model": 3}')
    with pytest.raises(InputError, match="has no usable tokenizer"):
        tokenizer_of(tmp_path)
    (tmp_path / "text.jsonl").write_bytes(b'{\xff"text": 3}')
    with pytest.raises(InputError, match="is not UTF-8"):
        [*texts(str(tmp_path / "text.jsonl"), None)]


def test_what_programs_outside_try_inputs_with_has_its_names() -> None:
    from passes.reason import TightfitError
    from planner.plan import plan
    from planner.spec import load_spec

    assert (TightfitError.__module__, plan.__module__, load_spec.__module__) == (
        "passes.errors",
        "planner.plan.make",
        "planner.spec.parse",
    )


def test_clients_beyond_number_take_no_memory() -> None:
    """The run in which clients stay in step has no more requests than any other."""
    asked = {"input_tokens": 100, "weights": "w4a16-g128", "context": 2048}
    told = tightfit.check("Qwen/Qwen2.5-1.5B-Instruct", "L4", "vllm", concurrency=10**9, **asked)
    assert told.speed is not None
