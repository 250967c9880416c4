"""What every launch file tells vLLM goes through its own parser, and becomes an engine's configuration: plans for cards too."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from passes.errors import InputError
from planner.plan.launch import target_files
from targets.launch.request import LaunchFile
from tests.engine.asked import answers_of
from tests.golden.test_scenarios import SPECS, server

pytestmark = [pytest.mark.engine, pytest.mark.slow]

#: Those whose spec names vLLM.
SERVERS = tuple(name for name, spec in SPECS.items() if "vllm" in str(spec.get("engine")))


def told(name: str, folder: Path) -> Iterator[dict[str, Any]]:
    """What the files of a scenario tell vLLM: arguments of its image, its config file, Ray's and SkyPilot's."""
    deployment = server(name)
    yield {"name": f"{name} image", "argv": [*arguments(name)]}
    config = next(file for file in target_files(deployment, ["engine"]) if file.path.endswith(".yaml"))
    (folder / f"{name}.yaml").write_text(config.text)
    yield {"name": f"{name} config file", "argv": ["--config", str(folder / f"{name}.yaml")]}
    if (ray := written(name, "ray-serve")) is not None:
        [llm] = ray.data["applications"][0]["args"]["llm_configs"]
        yield {"name": f"{name} Ray", "model": deployment.model, "kwargs": llm["engine_kwargs"]}
    if (task := written(name, "skypilot")) is not None:
        words = shlex.split(machine(task.data["run"]), comments=True)
        command = words[words.index("exec") + 1 :]
        yield {"name": f"{name} SkyPilot", "argv": command[command.index("serve") + 1 if "serve" in command else 3 :]}


def machine(script: str) -> str:
    """A task's script as the second machine of a cluster would run it."""
    values = {"$SKYPILOT_NODE_RANK": "1", "$HEADLESS": "--headless", '"$HEAD"': "10.0.0.1"}
    for variable, value in values.items():
        script = script.replace(variable, value)
    return script.replace("$((SKYPILOT_NODE_RANK * 1))", "1").replace("\\\n", " ")


def arguments(name: str) -> Iterator[str]:
    compose, pods = written(name, "compose"), written(name, "kubernetes")
    if compose is not None and pods is not None:
        pod = pods.data["objects"][1]["spec"]["template"]["spec"]["containers"][0]["args"]
        assert pod == compose.data["services"]["server"]["command"]
        yield from pod
    else:
        dynamo = written(name, "dynamo")
        assert dynamo is not None
        yield from dynamo.data["objects"][1]["spec"]["components"][1]["podTemplate"]["spec"]["containers"][0]["args"]


def written(name: str, target: str) -> LaunchFile | None:
    try:
        return target_files(server(name), [target])[0]
    except InputError:
        return None


@pytest.fixture(scope="module")
def answers(engine_python: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What the parser understood of each, and what went wrong: one process for all."""
    root = tmp_path_factory.mktemp("arguments")
    asked = []
    for name in SERVERS:
        folder = root / f"model-{name}"
        folder.mkdir()
        plain = {key: value for key, value in server(name).request.ir.config.items() if key != "quantization_config"}
        (folder / "config.json").write_text(json.dumps(plain))
        # Vision models are only parsed: this build has no torchvision, which their classes import.
        place = None if "vision_config" in plain else str(folder)
        asked += [each | {"config": place} for each in told(name, root)]
    (root / "cases.json").write_text(json.dumps(asked))
    return answers_of(engine_python, "real_arguments.py", root / "cases.json", 600)


@pytest.mark.parametrize("name", SERVERS)
def test_vllm_understands_what_was_planned(name: str, answers: dict[str, dict[str, Any]]) -> None:
    read = {each: answer for each, answer in answers.items() if each.startswith(f"{name} ")}
    assert len(read) >= 2 and not {each: answer["error"] for each, answer in read.items() if answer["error"]}
    request = server(name).request
    for answer in read.values():
        said, parallel = answer["told"], request.settings.parallel
        assert said["max_model_len"] == said.get("built", request.workload.context) == request.workload.context
        assert (said["tensor_parallel_size"], said["pipeline_parallel_size"]) == (parallel.tp, parallel.pp)
        if request.settings.gpu_memory_utilization is not None:
            assert said["gpu_memory_utilization"] == request.settings.gpu_memory_utilization
