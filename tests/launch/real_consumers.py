"""Runs inside the environment of `make backends` that reads launch files: what each file's own consumer says, as one JSON object.

    python real_consumers.py FOLDER      {"<path inside of it>": null, or what is wrong with it}

Compose files: Docker Compose's `config`. Kubernetes objects: the published JSON schemas, strict; pods inside of other kinds likewise. Ray:
`ServeDeploySchema` and `LLMConfig`. SkyPilot: `Task.from_yaml_config`. Dynamo: the models of its profiler.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import MagicMock

import yaml

os.environ |= {"SKYPILOT_DISABLE_USAGE_COLLECTION": "1", "RAY_USAGE_STATS_ENABLED": "0"}
KUBERNETES = "1.34"


def documents(path: Path) -> list[dict]:
    return [each for each in yaml.safe_load_all(path.read_text()) if each]


def schema(kind: dict) -> None:
    import kubernetes_validate

    kubernetes_validate.validate(kind, KUBERNETES, strict=True)


def pod(spec: dict) -> None:
    """A pod's spec on its own."""
    schema({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": spec})


def some_container(**part: object) -> dict:
    return {"name": "x", "image": "x", **part}


def compose(path: Path) -> None:
    tool = Path(sys.executable).with_name("docker-compose")
    done = subprocess.run([tool, "-f", path, "config", "-q"], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(done.stderr)


def kubernetes(path: Path) -> None:
    for each in documents(path):
        schema(each)


def kserve(path: Path) -> None:
    *claims, service = documents(path)
    for each in claims:
        schema(each)
    spec = service["spec"]
    # What KServe 0.20's page of the LLMInferenceService names.
    known = {"model", "replicas", "parallelism", "router", "template", "worker", "prefill", "baseRefs"}
    assert set(spec) <= known and set(spec["model"]) <= {"uri", "name", "criticality", "lora"}, spec.keys()
    assert spec["template"]["containers"][0]["name"] == "main"
    pod(spec["template"])


def production_stack(path: Path) -> None:
    """The chart's schema by its keys and types (helm/values.schema.json, vllm-project/production-stack 01eaf92c)."""
    [values] = documents(path)
    spec = values["servingEngineSpec"]
    assert set(spec) <= {"containerPort", "startupProbe", "modelSpec", "runtimeClassName", "tolerations"}
    [model] = spec["modelSpec"]
    text = {"name", "repository", "tag", "modelURL", "requestMemory", "shmSize", "pvcStorage"}
    number = {"replicaCount", "requestCPU", "requestGPU"}
    lists = {"env", "nodeSelectorTerms", "extraVolumes", "extraVolumeMounts"}
    objects = {"vllmConfig", "initContainer"}
    assert set(model) <= text | number | lists | objects, set(model) - text - number - lists
    for names, kind in ((text, str), (number, int), (lists, list)):
        assert all(isinstance(model[name], kind) for name in names & set(model)), kind
    config = model["vllmConfig"]
    kinds = {
        "maxModelLen": int, "dtype": str, "tensorParallelSize": int, "maxNumSeqs": int, "gpuMemoryUtilization": (int, float, str),
        "extraArgs": list, "enablePrefixCaching": bool,
    }  # fmt: skip
    assert "enablePrefixCaching" in config, "the chart's template turns it off"
    for made in (f"stack-{model['name']}-engine-service", f"stack-{model['name']}-vllm-stack"):
        assert len(made) <= 63 and not made.endswith("-"), f"{made} is no DNS label"
    assert all(isinstance(value, kinds[key]) for key, value in config.items()), config
    assert all(isinstance(each, str) for each in config["extraArgs"])
    first = dict(model.get("initContainer", some_container()))
    known = {"name", "image", "command", "args", "env", "resources", "mountPvcStorage", "extraVolumeMounts"}
    assert set(first) <= known and isinstance(first.pop("mountPvcStorage", True), bool), set(first) - known
    first["volumeMounts"] = first.pop("extraVolumeMounts", [])
    mounts = [*model.get("extraVolumeMounts", ()), {"name": "shm", "mountPath": "/dev/shm"}]
    container = some_container(env=model["env"], volumeMounts=mounts, startupProbe=spec["startupProbe"])
    affinity = {"nodeSelectorTerms": model["nodeSelectorTerms"]}
    pod({
        "containers": [container], "initContainers": [first], "volumes": model.get("extraVolumes", []), "tolerations": spec["tolerations"],
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": affinity}},
    })  # fmt: skip


def llm_d(path: Path) -> None:
    """The chart's values by their keys (llm-d-modelservice, values.yaml), as its templates place them in a pod."""
    [values] = documents(path)
    assert set(values) == {"modelArtifacts", "accelerator", "routing", "decode", "prefill"}
    assert set(values["modelArtifacts"]) <= {"name", "uri", "size", "authSecretName", "mountPath"}
    decode = values["decode"]
    own = {"create", "replicas", "parallelism", "extraConfig"}
    assert set(decode) <= own | {"tolerations", "volumes", "containers"}, "nothing else reaches the pod"
    assert set(decode["extraConfig"]) <= {"nodeSelector", "affinity"}
    assert set(decode["parallelism"]) <= {"tensor", "data", "dataLocal", "workers"}
    container = {
        key: value for key, value in decode["containers"][0].items() if key not in ("modelCommand", "mountModelVolume")
    }
    pod(
        {key: value for key, value in decode.items() if key not in own}
        | decode["extraConfig"]
        | {"containers": [container]}
    )


def serve(config: dict) -> None:
    from ray.llm._internal.serve.core.configs.llm_config import LLMConfig
    from ray.serve.schema import ServeDeploySchema

    for application in ServeDeploySchema.model_validate(config).applications:
        for each in application.args["llm_configs"]:
            LLMConfig.model_validate(each)


def ray_serve(path: Path) -> None:
    serve(*documents(path))


def kuberay(path: Path) -> None:
    claim, service = documents(path)
    schema(claim)
    spec = service["spec"]
    assert set(spec) == {"serveConfigV2", "rayClusterConfig"}
    serve(yaml.safe_load(spec["serveConfigV2"]))
    cluster = spec["rayClusterConfig"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for each in groups:
        assert all(isinstance(value, str) for value in each["rayStartParams"].values())
        pod(each["template"]["spec"])


def dynamo_models() -> types.ModuleType:
    """The file of its wheel that holds them; what that imports of the rest needs Dynamo's runtime, and is not used here."""
    [folder] = importlib.util.find_spec("dynamo").submodule_search_locations
    for name in ("common.utils.paths", "planner.config.backend_components", "planner.config.defaults"):
        stand_in = types.ModuleType(f"dynamo.{name}")
        stand_in.__getattr__ = lambda name: MagicMock()
        sys.modules[stand_in.__name__] = stand_in
    for name in ("common", "common.utils", "planner", "planner.config"):
        sys.modules[f"dynamo.{name}"] = types.ModuleType(f"dynamo.{name}")
    spec = importlib.util.spec_from_file_location("dgd", Path(folder) / "profiler/utils/config.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["dgd"] = module
    spec.loader.exec_module(module)
    return module


def dynamo(path: Path) -> None:
    claim, graph = documents(path)
    schema(claim)
    models = dynamo_models()
    read = models.Config.model_validate(graph)
    for component in read.spec.components:
        assert not component.model_extra and not component.podTemplate.model_extra, component.model_extra
        models.get_main_container(component)
    for each in graph["spec"]["components"]:
        pod(each["podTemplate"]["spec"])


def skypilot(path: Path) -> None:
    import sky

    [task] = documents(path)
    assert sky.Task.from_yaml_config(task).service is not None


CONSUMERS: dict[str, Callable[[Path], None]] = {
    "compose.yaml": compose, "kubernetes.yaml": kubernetes, "kserve.yaml": kserve, "dynamo.yaml": dynamo, "kuberay.yaml": kuberay,
    "production-stack.values.yaml": production_stack, "llm-d.values.yaml": llm_d, "ray-serve.yaml": ray_serve,
    "skypilot.yaml": skypilot,
}  # fmt: skip


def answers(folder: Path) -> Iterator[tuple[str, str | None]]:
    for path in sorted(folder.rglob("*.yaml")):
        if path.name in CONSUMERS:
            try:
                CONSUMERS[path.name](path)
            except Exception as error:  # noqa: BLE001 (whatever a consumer raises is its answer)
                yield str(path.relative_to(folder)), f"{type(error).__name__}: {error}"[:1500]
            else:
                yield str(path.relative_to(folder)), None


if __name__ == "__main__":
    print(json.dumps(dict(answers(Path(sys.argv[1])))))
