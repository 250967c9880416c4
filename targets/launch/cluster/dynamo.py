"""An NVIDIA Dynamo `DynamoGraphDeployment` (nvidia.com/v1beta1; the shape of the blueprints in PyPI's ai-dynamo 1.6.1,
`dynamo/profiler/templates/dgd/vllm/agg.yaml`). Probes, ports and shared memory are the operator's.
"""

from __future__ import annotations

from typing import Any, ClassVar

from targets.launch.cluster import pod
from targets.launch.cluster.bundled import Bundle, bundled
from targets.launch.cluster.kubernetes import claim
from targets.launch.commented import Said, commented, plain
from targets.launch.deployment import Deployment
from targets.launch.request import LaunchFile
from targets.launch.target import LaunchTarget

#: Runtime images, and the vLLM that each brings (extra `vllm` of the wheel of that version).
_IMAGE = "nvcr.io/nvidia/ai-dynamo/vllm-runtime"
_BUNDLES = (Bundle((0, 31), "1.6.1"),)


class Dynamo(LaunchTarget):
    """A frontend and one worker, over as many nodes as the plan takes."""

    name: ClassVar[str] = "dynamo"
    title: ClassVar[str] = "NVIDIA Dynamo: DynamoGraphDeployment, several nodes too"

    def files(self, deployment: Deployment) -> tuple[LaunchFile, ...]:
        """Return `dynamo.yaml`."""
        deployment.require_cards(f"{self.name} asks a card for every worker")
        tag, note = bundled(deployment, _BUNDLES)
        objects = (claim(deployment), _graph(deployment, Said(f"{_IMAGE}:{tag}", note)))
        texts = (commented(each, head) for each, head in zip(objects, (deployment.head, ""), strict=True))
        return (LaunchFile("dynamo.yaml", "---\n".join(texts), data={"objects": [plain(each) for each in objects]}),)


def _graph(deployment: Deployment, image: Said) -> dict[str, Any]:
    nodes = deployment.hardware.nodes
    frontend = {"name": "main", "image": image, "command": ["python3"], "args": ["-m", "dynamo.frontend"]}
    worker: dict[str, Any] = {
        "name": "main",
        "image": image,
        "command": [Said("python3", "Dynamo's worker takes vLLM's own arguments"), "-m", "dynamo.vllm"],
        "args": pod.arguments(pod.without(deployment.arguments, "port")),
        "env": pod.environment(deployment),
        "resources": pod.resources(deployment),
        "volumeMounts": [each for each in pod.mounts(deployment) if each["name"] == pod.CLAIM],
    }
    volumes = [each for each in pod.volumes(deployment) if each["name"] == pod.CLAIM]
    spec = {**pod.placement(deployment), "containers": [worker], "volumes": volumes}
    component: dict[str, Any] = {"name": "worker", "type": "worker", "replicas": 1, "podTemplate": {"spec": spec}}
    if nodes > 1:
        component["multinode"] = {"nodeCount": Said(nodes, deployment.hardware.told_of_a_node)}
    components = [
        {"name": "Frontend", "type": "frontend", "replicas": 1, "podTemplate": {"spec": {"containers": [frontend]}}},
        component,
    ]
    return {
        "apiVersion": "nvidia.com/v1beta1",
        "kind": "DynamoGraphDeployment",
        "metadata": {"name": deployment.name},
        "spec": {"components": components},
    }
