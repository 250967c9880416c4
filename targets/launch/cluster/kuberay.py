"""A KubeRay `RayService` (ray.io/v1): a head, a worker for each node, and the Ray Serve config inside."""

from __future__ import annotations

from typing import Any, ClassVar

from targets.launch.cluster import pod
from targets.launch.cluster.bundled import Bundle, bundled
from targets.launch.cluster.kubernetes import claim
from targets.launch.cluster.ray_serve import serve_config
from targets.launch.commented import Block, Said, commented, plain
from targets.launch.deployment import Deployment
from targets.launch.request import LaunchFile
from targets.launch.target import LaunchTarget

#: Ray's own images with vLLM: 2.58.0 brings 0.26.0 (its release notes); 2.60.0's wheel asks for 0.29.0 in its extra `llm`.
_IMAGE = "rayproject/ray-llm"
_BUNDLES = (Bundle((0, 26), "2.58.0-py312-cu130"), Bundle((0, 29), "2.60.0-py312-cu130"))
_PORTS = (("gcs", 6379), ("dashboard", 8265), ("client", 10001), ("serve", 8000))


class KubeRay(LaunchTarget):
    """A Ray cluster of the plan's nodes on Kubernetes."""

    name: ClassVar[str] = "kuberay"
    title: ClassVar[str] = "KubeRay: RayService, several nodes too"

    def files(self, deployment: Deployment) -> tuple[LaunchFile, ...]:
        """Return `kuberay.yaml`."""
        serve = serve_config(deployment)
        tag, note = bundled(deployment, _BUNDLES)
        objects = (claim(deployment), _service(deployment, commented(serve), Said(f"{_IMAGE}:{tag}", note)))
        texts = (commented(each, head) for each, head in zip(objects, (deployment.head, ""), strict=True))
        return (LaunchFile("kuberay.yaml", "---\n".join(texts), data={"objects": [plain(each) for each in objects]}),)


def _service(deployment: Deployment, serve: str, image: Said) -> dict[str, Any]:
    version = image.value.rpartition(":")[2].partition("-")[0]
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": deployment.name},
        "spec": {
            "serveConfigV2": Block(serve),
            "rayClusterConfig": {
                "rayVersion": Said(version, "that of the image"),
                "headGroupSpec": _head(deployment, image),
                "workerGroupSpecs": [_workers(deployment, image)],
            },
        },
    }


def _head(deployment: Deployment, image: Said) -> dict[str, Any]:
    container = {
        "name": "ray-head",
        "image": image,
        "ports": [{"name": name, "containerPort": port} for name, port in _PORTS],
        "env": pod.environment(deployment),
        "resources": {"requests": {"cpu": "2", "memory": Said("8Gi", "assumed: Ray's own processes and the API's")}},
        "volumeMounts": [each for each in pod.mounts(deployment) if each["name"] == pod.CLAIM],
    }
    volumes = [each for each in pod.volumes(deployment) if each["name"] == pod.CLAIM]
    params = {"dashboard-host": "0.0.0.0", "num-gpus": Said("0", "the head holds no worker of the model")}
    return {"rayStartParams": params, "template": {"spec": {"containers": [container], "volumes": volumes}}}


def _workers(deployment: Deployment, image: Said) -> dict[str, Any]:
    hardware = deployment.hardware
    nodes = Said(hardware.nodes, hardware.told_of_a_node)
    container = {
        "name": "ray-worker",
        "image": image,
        "env": pod.environment(deployment),
        "resources": pod.resources(deployment),
        "volumeMounts": pod.mounts(deployment),
    }
    spec = {**pod.placement(deployment), "containers": [container], "volumes": pod.volumes(deployment)}
    return {
        "groupName": "cards",
        "replicas": nodes,
        "minReplicas": nodes,
        "maxReplicas": nodes,
        "rayStartParams": {"num-gpus": str(hardware.of_a_node)},
        "template": {"spec": spec},
    }
