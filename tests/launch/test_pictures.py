"""What a launch starts takes pictures wherever the model sees them: no flag drops them, and as many are let in as the spec has."""

from __future__ import annotations

import pytest

from passes.ir.model import ModelIR
from passes.ir.sources import open_model
from targets.engines.engine import Settings, find_engine
from targets.gpu import find_gpu
from targets.launch.request import LaunchRequest
from targets.workload import Workload

SEEING = (
    "Qwen/Qwen2.5-VL-7B-Instruct", "google/gemma-3-12b-it", "mistralai/Mistral-Small-3.1-24B-Instruct-2503", "Qwen/Qwen3-VL-8B-Instruct",
    "zai-org/GLM-4.5V", "meta-llama/Llama-4-Scout-17B-16E-Instruct",
)  # fmt: skip
#: Flags of vLLM that serve such a model without its encoder.
BLIND = ("language-model-only", "disable-mm", "mm-disabled")


def launched(engine: str, ir: ModelIR, pictures: int) -> dict[str, object]:
    work = Workload(8192, 2, 1000, 200, pictures=pictures, picture_tokens=256 if pictures else 0)
    request = LaunchRequest(engine, None, "", "seeing", ir, Settings(), work, 1 << 30)
    data = find_engine(engine).launch(request).files[0].data
    assert isinstance(data, dict)
    return data


@pytest.mark.parametrize("model", SEEING)
@pytest.mark.parametrize("pictures", [0, 1, 3])
def test_vllm_is_started_so_that_it_sees(model: str, pictures: int) -> None:
    said = launched("vllm", open_model(model).ir, pictures)
    assert not any(flag in said for flag in BLIND)
    limit = said.get("limit-mm-per-prompt", {"image": 999})
    assert isinstance(limit, dict) and limit["image"] >= max(1, pictures)


@pytest.mark.parametrize("engine", ["exllamav2", "exllamav3"])
@pytest.mark.parametrize("model", SEEING)
def test_tabby_is_told_to_see(engine: str, model: str) -> None:
    ir = open_model(model).ir
    if any(
        "architecture" in reason.code for reason in find_engine(engine).illegal(ir, find_gpu("RTX 4090"), Settings())
    ):
        return  # it does not run there at all
    assert launched(engine, ir, 1)["model"]["vision"] is True  # type: ignore[index]


def test_what_sees_nothing_is_told_nothing() -> None:
    ir = open_model("Qwen/Qwen2.5-7B-Instruct").ir
    assert "limit-mm-per-prompt" not in launched("vllm", ir, 0)
    assert "vision" not in launched("exllamav2", ir, 0)["model"]  # type: ignore[operator]
