"""The reader of vLLM's wheels, on small sources of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.read_vllm_wheels import main, table
from benchmarks.vllm_facts import FACTS
from benchmarks.vllm_methods import capabilities, ours
from benchmarks.vllm_registry import architectures, backend, changes
from benchmarks.vllm_wheel import Found, Source
from targets.engines.vllm.rules.versions import rules_for

REGISTRY = """
_TEXT_GENERATION_MODELS = {"AForCausalLM": ("a", "AForCausalLM")%s}
_EMBEDDING_MODELS = {"EModel": ("e", "EModel")}
_TRANSFORMERS_SUPPORTED_MODELS = {"TForCausalLM": ("transformers", "TransformersForCausalLM")}
_TRANSFORMERS_BACKEND_MODELS = {"TransformersForCausalLM": ("transformers", "TransformersForCausalLM")}
"""
ARGUMENTS = """
def get_batch_defaults(device_memory, device_name, GiB_bytes):
    if device_memory >= 160 * GiB_bytes:
        default_max_num_batched_tokens = {UsageContext.LLM_CLASS: 16384, UsageContext.OPENAI_API_SERVER: %d}
        default_max_num_seqs = {UsageContext.OPENAI_API_SERVER: 1024}
    elif device_memory >= 70 * GiB_bytes and "a100" not in device_name and not is_gb10:
        default_max_num_batched_tokens = {UsageContext.OPENAI_API_SERVER: 8192}
        default_max_num_seqs = {UsageContext.OPENAI_API_SERVER: 1024}
    else:
        default_max_num_batched_tokens = {UsageContext.OPENAI_API_SERVER: 2048}
        default_max_num_seqs = {UsageContext.OPENAI_API_SERVER: 256}
"""


def source(folder: Path, version: str = "0.33.0", package: str = "vllm", **files: str) -> Source:
    """A package's files, `__` for `/` in their names."""
    for name, text in files.items():
        file = folder / version / package / (name.replace("__", "/") + ".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return Source(version, folder / version, package)


def read(name: str, told: Source) -> Found | None:
    return next(fact for fact in FACTS if fact.name == name).theirs(told)


def test_facts_are_read_with_their_places(tmp_path: Path) -> None:
    told = source(
        tmp_path,
        config__cache="class CacheConfig:\n    gpu_memory_utilization: float = Field(default=0.92, gt=0, le=1)\n",
        envs="x = int(\n    os.getenv('VLLM_FUSED_MOE_CHUNK_SIZE', str(16 * 1024)))\n",
        v1__core__kv_cache_utils="if max_num_layers < min_num_layers * 1.25:\n    pass\n",
        config__vllm="DEFAULT_V2_MODEL_RUNNER_ARCHITECTURES = frozenset({'AForCausalLM'})\n",
    )
    assert read("utilization", told) == Found(0.92, "config/cache.py:2")
    assert read("expert_chunk", told) == Found(16384, "envs.py:2")
    assert read("group_slack", told) == Found(1.25, "v1/core/kv_cache_utils.py:1")
    assert read("classes of Model Runner V2", told) == Found({"AForCausalLM"}, "config/vllm.py:1")
    assert read("in_flight_batches", told) == Found(1, "config/vllm.py: no 'def max_in_flight_tokens'")
    assert read("batch defaults", told) is None  # this source has no such code: said, not guessed


def test_batch_defaults_are_the_branches_followed_for_cards(tmp_path: Path) -> None:
    found = read("batch defaults", source(tmp_path, engine__arg_utils=ARGUMENTS % 16384))
    assert found is not None and found.place == "engine/arg_utils.py:3"
    assert found.value == {
        "L40S": (2048, 256), "A100 SXM4 80GB": (2048, 256), "H100 SXM": (8192, 1024), "B200 SXM": (16384, 1024), "GB10": (2048, 256),
    }  # fmt: skip


def test_what_contradicts_is_printed_and_ends_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source(tmp_path, engine__arg_utils=ARGUMENTS % 32768)
    monkeypatch.setattr("sys.argv", ["read_vllm_wheels", "0.33.0", "--folder", str(tmp_path)])
    assert main() == 1
    said = capsys.readouterr().out
    assert "NOT  batch defaults: ours {" in said and "'B200 SXM': (32768, 1024)" in said and "arg_utils.py:3" in said
    assert "?    utilization: ours 0.92; not found in the source: look where it went" in said


def test_a_version_that_is_knowingly_not_followed_is_no_contradiction(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source(tmp_path, version="0.8.5", engine__arg_utils=ARGUMENTS % 32768)
    monkeypatch.setattr("sys.argv", ["read_vllm_wheels", "0.8.5", "--folder", str(tmp_path)])
    main()
    said = capsys.readouterr().out
    assert "kept batch defaults: ours {" in said and "recipes of that time" in said


def test_least_capabilities_are_those_that_classes_return(tmp_path: Path) -> None:
    config = "class Fp8Config(C):\n    @classmethod\n    def get_min_capability(cls):\n        return %s\n"
    told = source(
        tmp_path,
        model_executor__layers__quantization__fp8=config % "75",
        model_executor__layers__quantization__inc=(config % "Other.get_min_capability()").replace("Fp8", "INC"),
    )
    found = capabilities(told)
    assert found is not None and found.value == {"Fp8Config": 75}
    assert [ours(["Fp8Config"], rules_for(version)[0]) for version in ("0.13.0", "0.33.0")] == [
        {"Fp8Config": 80},
        {"Fp8Config": 75},
    ]


def test_registries_give_generators_and_who_runs_them(tmp_path: Path) -> None:
    told = source(tmp_path, model_executor__models__registry=REGISTRY % "")
    assert architectures(told) == {"AForCausalLM": "native", "TForCausalLM": "transformers"}


def test_what_inherits_no_pipeline_stages_runs_whole(tmp_path: Path) -> None:
    told = source(
        tmp_path,
        model_executor__models__registry=REGISTRY % ', "BForCausalLM": ("b", "BForCausalLM")',
        model_executor__models__interfaces="class SupportsPP(Protocol): 1\n",
        model_executor__models__a="class Base(Module, SupportsPP): 1\nclass AForCausalLM(\n    base.Base, SupportsLoRA\n): 1\n",
        model_executor__models__b="class BForCausalLM(Module): 1\n",
    )
    assert architectures(told) == {"AForCausalLM": "native", "BForCausalLM": "whole", "TForCausalLM": "transformers"}


def test_changes_say_when_an_architecture_came_and_went(tmp_path: Path) -> None:
    text = "_supports_attention_backend = True\nclass BForCausalLM(P):\n    pass\nclass BForConditionalGeneration(P):\n    pass\n"
    by_backend = source(
        tmp_path / "b",
        package="transformers",
        models__b__modeling_b=text,
        models__c__modeling_c="class CForCausalLM(P): 1\n",
    )
    old, middle, new = (
        source(tmp_path, version, model_executor__models__registry=REGISTRY % more)
        for version, more in (("0.1.0", ""), ("0.2.0", ', "BForCausalLM": ("b", "B")'), ("0.3.0", ""))
    )
    assert backend(new, by_backend) == {"BForCausalLM"}  # no backend class for media, and c is not compatible
    told = changes([(old, None), (middle, None), (new, by_backend)])
    assert told["BForCausalLM"] == [("0.2.0", "native"), ("0.3.0", "transformers")]
    assert told["AForCausalLM"] == [("0.0", "native")]
    assert changes([(old, None), (middle, None), (new, None)])["BForCausalLM"][-1] == ("0.3.0", "none")
    assert '"versions": ["0.1.0", "0.2.0"]' in table([old, middle], tmp_path)
