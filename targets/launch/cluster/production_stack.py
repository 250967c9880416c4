"""Values of vLLM's production-stack chart, `vllm-stack` 0.1.12 (vllm-project/production-stack a6c01db0, helm/values.yaml).

helm repo add vllm https://vllm-project.github.io/production-stack
helm install stack vllm/vllm-stack --version 0.1.12 -f production-stack.values.yaml

What its template (helm/templates/deployment-vllm-multi.yaml, f1f98227) makes of them: `--no-enable-prefix-caching` where
`enablePrefixCaching` is not set, nothing of `modelRevision`, tolerations of the chart alone, a host name of release, model and chart.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

from targets.launch.cluster import pod
from targets.launch.commented import Said, commented, plain
from targets.launch.deployment import MODELS, PROBE_SECONDS, Deployment, gibibytes
from targets.launch.request import LaunchFile
from targets.launch.target import LaunchTarget

#: Arguments that the chart has keys for under `vllmConfig`; others go into `extraArgs`.
_KEYS = {
    "max-model-len": "maxModelLen", "dtype": "dtype", "tensor-parallel-size": "tensorParallelSize", "max-num-seqs": "maxNumSeqs",
    "gpu-memory-utilization": "gpuMemoryUtilization",
}  # fmt: skip
#: What the chart tells the server by itself.
_OWN = ("model", "port")
#: `stack-NAME-engine-service` and `stack-NAME-vllm-stack` are DNS labels, of 63 letters at most.
_NAME = 63 - len("stack--engine-service")


class ProductionStack(LaunchTarget):
    """One model of the stack, behind its router."""

    name: ClassVar[str] = "production-stack"
    title: ClassVar[str] = "vLLM production-stack: Helm values"

    def files(self, deployment: Deployment) -> tuple[LaunchFile, ...]:
        """Return `production-stack.values.yaml`."""
        deployment.require_one_node(self.name, "kuberay, dynamo, skypilot, ray-serve")
        deployment.require_cards(f"{self.name} asks a card for every server")
        tree = {"servingEngineSpec": _spec(deployment)}
        text = commented(tree, deployment.head)
        return (LaunchFile("production-stack.values.yaml", text, data=plain(tree)),)


def _spec(deployment: Deployment) -> dict[str, Any]:
    budget = Said(deployment.startup_probes, deployment.startup_why)
    probe = {"initialDelaySeconds": 15, "periodSeconds": PROBE_SECONDS, "failureThreshold": budget}
    health = {"httpGet": {"path": deployment.launch.health, "port": deployment.launch.port}}
    return {
        "containerPort": deployment.launch.port,
        "startupProbe": {**probe, **health},
        "tolerations": pod.placement(deployment)["tolerations"],
        "modelSpec": [_model(deployment)],
    }


def _model(deployment: Deployment) -> dict[str, Any]:
    container, memory = deployment.container, gibibytes(deployment.host_bytes)
    told = {each.name: each for each in container.arguments}
    config: dict[str, Any] = {
        key: Said(told[name].value, told[name].why) for name, key in _KEYS.items() if name in told
    }
    extra = pod.arguments(pod.without(deployment.arguments, *_KEYS, *_OWN))
    caches = "as the plan counts: without this key the chart turns it off"
    spec: dict[str, Any] = {
        "name": deployment.name[:_NAME].rstrip("-"),
        "repository": Said(container.repository, "vLLM's own image; the chart's default is another"),
        "tag": Said(container.tag, "the planned version"),
        "modelURL": Said(deployment.model, "mounted below" if deployment.folder else "served as it is, from the Hub"),
        "replicaCount": 1,
        "requestCPU": Said(deployment.cpus, "its API server, its engine core, and a worker for each card"),
        "requestMemory": Said(memory, "assumed: 4 GiB for each of these processes, and the shared memory"),
        "requestGPU": Said(deployment.hardware.of_a_node, f"cards in use; planned for {deployment.hardware.gpu}"),
        "shmSize": Said(gibibytes(deployment.shm_bytes), "tensors and NCCL's buffers"),
        "vllmConfig": {
            "enablePrefixCaching": Said(deployment.launch.caches_prefixes, caches),
            **config,
            "extraArgs": extra,
        },
        **_looks_first(deployment),
        "env": pod.environment(deployment),
        **_placed(deployment),
    }
    if deployment.folder is None:
        size = f"{math.ceil(deployment.served.bytes * 1.2 / 2**30)}Gi"
        return {**spec, "pvcStorage": Said(size, f"{deployment.served.bytes / 1e9:.1f} GB are downloaded once")}
    volume = {
        "name": "checkpoint",
        "persistentVolumeClaim": {"claimName": Said(pod.claim_of(deployment), "holds the checkpoint")},
    }
    mount = {"name": "checkpoint", "mountPath": MODELS, "readOnly": True}
    return {**spec, "extraVolumes": [volume], "extraVolumeMounts": [mount]}


def _looks_first(deployment: Deployment) -> dict[str, Any]:
    """The look whether the node's cards hold the server, as the chart takes an init container: it mounts the model's volume itself."""
    checks = pod.looks_first(deployment)
    if not checks:
        return {}
    [container] = checks["initContainers"]
    kept = {key: value for key, value in container.items() if key != "volumeMounts"}
    if deployment.folder is None:
        return {"initContainer": {**kept, "mountPvcStorage": False}}
    mount = {"name": "checkpoint", "mountPath": MODELS, "readOnly": True}
    return {"initContainer": {**kept, "mountPvcStorage": False, "extraVolumeMounts": [mount]}}


def _placed(deployment: Deployment) -> dict[str, Any]:
    """The planned card, as the chart takes it of a model: terms of a required node affinity."""
    placed = pod.placement(deployment)
    chosen = [
        {"key": key, "operator": "In", "values": [value]} for key, value in placed.get("nodeSelector", {}).items()
    ]
    affinity = placed["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    [memory] = affinity["nodeSelectorTerms"]
    terms = [{"matchExpressions": [*chosen, *memory["matchExpressions"]]}]
    return {"nodeSelectorTerms": terms}
