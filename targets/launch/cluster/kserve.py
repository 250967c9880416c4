"""A KServe `LLMInferenceService` (serving.kserve.io/v1alpha1; KServe 0.20, "LLMInferenceService configuration").

The controller's own template starts `vllm serve` on what it has mounted at /mnt/models, with `VLLM_ADDITIONAL_ARGS` at the end.
"""

from __future__ import annotations

from typing import Any, ClassVar

from targets.launch.cluster import pod
from targets.launch.cluster.kubernetes import claim
from targets.launch.commented import Said, commented, plain
from targets.launch.deployment import PROBE_SECONDS, Deployment, flag
from targets.launch.request import LaunchFile
from targets.launch.target import LaunchTarget

#: What the controller's template tells the server by itself.
_OWN = ("model", "port", "served-model-name")


class KServe(LaunchTarget):
    """One service behind the controller's gateway and scheduler."""

    name: ClassVar[str] = "kserve"
    title: ClassVar[str] = "KServe: LLMInferenceService"

    def files(self, deployment: Deployment) -> tuple[LaunchFile, ...]:
        """Return `kserve.yaml`; with the claim of the volume where the checkpoint is ours."""
        deployment.require_one_node(self.name, "kuberay, dynamo, skypilot, ray-serve")
        objects = [] if deployment.folder is None else [claim(deployment)]
        objects.append(_service(deployment))
        heads = [deployment.head, *[""] * (len(objects) - 1)]
        texts = [commented(each, head) for each, head in zip(objects, heads, strict=True)]
        return (LaunchFile("kserve.yaml", "---\n".join(texts), data={"objects": [plain(each) for each in objects]}),)


def source_uri(deployment: Deployment) -> str:
    """Return where the checkpoint comes from, as storage initializers write it: `hf://…`, `pvc://…`."""
    folder, served = deployment.folder, deployment.served
    if folder is not None:
        return f"pvc://{pod.claim_of(deployment)}/{folder.name}"
    return f"hf://{served.name}" + (f":{served.revision}" if served.revision else "")


def _service(deployment: Deployment) -> dict[str, Any]:
    from_hub = "served as it is, from the Hub"
    why = from_hub if deployment.folder is None else f"a volume with {deployment.folder.name} in its root"
    spec: dict[str, Any] = {
        "model": {
            "uri": Said(source_uri(deployment), why),
            "name": Said(deployment.request.served_name, "what clients ask for as `model`"),
        },
        "replicas": 1,
        "router": {"route": {}, "gateway": {}, "scheduler": Said({}, "the controller's own, as for all three")},
        "template": {**pod.placement(deployment), "containers": [_container(deployment)]},
    }
    return {
        "apiVersion": Said(
            "serving.kserve.io/v1alpha1", "or v1alpha2: `kubectl api-resources --api-group serving.kserve.io` tells"
        ),
        "kind": "LLMInferenceService",
        "metadata": {"name": deployment.name},
        "spec": spec,
    }


def _container(deployment: Deployment) -> dict[str, Any]:
    told = list(pod.without(deployment.arguments, *_OWN, "revision"))
    reasons = "; ".join(f"{each.name}: {each.why}" for each in told)
    added = {"name": "VLLM_ADDITIONAL_ARGS", "value": Said(" ".join(map(flag, told)), reasons)}
    return {
        "name": Said("main", "the template's server is called so"),
        "image": Said(deployment.container.image, "the planned version; another one counts memory otherwise"),
        "env": [added, *pod.environment(deployment)],
        "resources": pod.resources(deployment),
        "startupProbe": {
            "httpGet": {
                "path": deployment.launch.health,
                "port": deployment.launch.port,
                "scheme": Said("HTTPS", "the template serves TLS"),
            },
            "periodSeconds": PROBE_SECONDS,
            "failureThreshold": Said(deployment.startup_probes, deployment.startup_why),
        },
    }
