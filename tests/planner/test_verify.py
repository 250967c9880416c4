"""`verify` of what cannot run here is one message, before any engine is looked for or started."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pynvml
import pytest

from passes.errors import InputError
from planner.machine import require_build, require_cards
from planner.plan.document import PlanDocument, portable
from planner.plan.make import plan
from planner.plan.saved import save
from planner.spec.spec import Spec
from planner.verify import verify
from targets.machine.devices import installed_gpus
from targets.serve.engine_build import engine_build
from tests.planner.test_cli import run

_H100, _4090 = "NVIDIA H100 80GB HBM3", "NVIDIA GeForce RTX 4090"


def planned(gpu: Any = "rtx-4090", engine: str = "vllm", **target: int) -> PlanDocument:
    spec = {
        "model": "Llama-3.2-1B-Instruct", "target": {"gpu": gpu, **target}, "engine": engine,
        "workload": {"context": 2048, "concurrency": 1}, "passes": {"quantize": {"formats": ["w8a8"], "dense": True}},
    }  # fmt: skip
    return plan(Spec.model_validate(spec)).document


def on_two(document: PlanDocument) -> PlanDocument:
    chosen = document.decision
    return replace(document, chosen=replace(chosen, settings=replace(chosen.settings, tensor_parallel=2)))


@pytest.fixture
def result(tmp_path: Path) -> Callable[[PlanDocument], Path]:
    def made(document: PlanDocument) -> Path:
        folder = tmp_path / "made"
        folder.mkdir()
        save(portable(document), folder / "plan.json")
        (folder / "certificate.json").write_text("{}")
        (folder / "launch").mkdir()
        (folder / "launch" / "vllm.yaml").write_text("served-model-name: made\n")
        (folder / "launch" / "run.sh").write_text("exit 7\n")
        return folder

    return made


@pytest.mark.parametrize(
    ("installed", "said"),
    [
        ((), r"planned for RTX 4090, none here \(this machine has no card\)"),
        ((_H100,), rf"planned for RTX 4090, none here \(this machine has {_H100}\)"),
        ((_H100, _H100), rf"\(this machine has 2 × {_H100}\)"),
        (("Mystery Card 9000",), r"none here \(this machine has Mystery Card 9000\)"),
    ],
)
def test_a_card_that_is_not_here_is_named_with_what_is(installed: tuple[str, ...], said: str) -> None:
    with pytest.raises(InputError, match=said) as refused:
        require_cards(planned(), installed)
    assert "copy the result's folder there" in str(refused.value.remedy) and refused.value.exit_code == 2


def test_the_count_of_cards_is_compared_too() -> None:
    with pytest.raises(InputError, match=r"planned for 2 × RTX 4090, 1 here"):
        require_cards(on_two(planned(count=2)), (_4090, _H100))
    require_cards(on_two(planned(count=2)), (_4090, _4090))
    require_cards(planned(), (_H100, _4090))


def test_a_card_known_by_its_size_or_facts_is_any_of_that_memory() -> None:
    require_cards(planned("24GB"), (_4090,))
    require_cards(planned("24GB"), (_H100,))
    require_cards(planned("24GB"), ("Mystery Card 9000",))
    with pytest.raises(InputError, match="planned for generic 24 GB card, none here"):
        require_cards(planned("24GB"), ("Tesla T4",))
    facts = {"name": "mine", "memory_gib": 30.0, "bandwidth_gb_s": 500, "compute_capability": 9.0}
    require_cards(planned(facts), (_H100,))
    with pytest.raises(InputError, match="planned for mine"):
        require_cards(planned(facts), (_4090,))


def test_a_processor_needs_no_card_and_its_own_build() -> None:
    document = planned("cpu", "vllm-cpu")
    require_cards(document, ())
    require_cards(document, (_H100,))
    require_build(document, "cpu", "python")
    require_build(document, None, "python")
    with pytest.raises(InputError, match=r"planned for vLLM's CPU build, but .* has vLLM for GPUs"):
        require_build(document, "cuda", "python")
    with pytest.raises(InputError, match=r"planned for vLLM for GPUs, but .* has vLLM's CPU build"):
        require_build(planned(), "cpu", "python")


def test_verify_refuses_before_it_looks_for_an_engine(
    result: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = result(planned())
    monkeypatch.setattr("planner.verify.installed_gpus", lambda: (_H100,))
    monkeypatch.setattr("planner.verify.engine_python", lambda given: pytest.fail("an engine was looked for"))
    code, out, err = run(monkeypatch, capsys, "verify", folder)
    assert code == 2 and "planned for RTX 4090, none here" in err and "Traceback" not in err + out
    code, out, _ = run(monkeypatch, capsys, "verify", folder, "--json")
    assert code == 2 and "none here" in json.loads(out)["error"]["message"]


def test_verify_refuses_another_build_before_it_starts_it(
    result: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho cpu\n")
    python.chmod(0o755)
    monkeypatch.setattr("planner.verify.installed_gpus", lambda: (_4090,))
    monkeypatch.setattr("planner.verify.serving", lambda *_: pytest.fail("an engine was started"))
    with pytest.raises(InputError, match="has vLLM's CPU build"):
        verify(result(planned()), python)


@pytest.mark.parametrize(
    ("distributions", "build"),
    [
        ({"vllm-cpu": "0.32.0"}, "cpu"), ({"vllm_cpu": "0.32.0"}, "cpu"), ({"vllm": "0.32.0+cpu"}, "cpu"), ({"vllm": "0.32.0"}, "cuda"),
        ({"vllm": "0.32.0+cu129"}, "cuda"), ({"vllm": "0.32.0+rocm700"}, None), ({"vllm": "0.32.0", "vllm-cpu": "0.32.0"}, None),
        ({}, None),
    ],
)  # fmt: skip
def test_the_build_is_read_from_what_is_installed(
    distributions: dict[str, str], build: str | None, tmp_path: Path
) -> None:
    for name, version in distributions.items():
        folder = tmp_path / f"{name}-{version}.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{tmp_path}" exec "{sys.executable}" -S "$2" "$3"\n')
    python.chmod(0o755)
    assert engine_build(python) == build


def test_a_python_that_cannot_be_asked_says_nothing(tmp_path: Path) -> None:
    assert engine_build(tmp_path / "none") is None


def test_cards_are_named_as_the_driver_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    names = (_H100, _4090)
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: len(names))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda index: index)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetName", lambda handle: names[handle])
    assert installed_gpus() == names


def test_without_a_driver_there_is_no_card(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", refuse)
    assert installed_gpus() == ()
