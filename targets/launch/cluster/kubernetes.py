"""Plain Kubernetes: a volume claim, a Deployment and a Service (apps/v1, v1): `kubectl apply -f kubernetes.yaml`."""

from __future__ import annotations

import math
from typing import Any, ClassVar

from targets.launch.cluster import pod
from targets.launch.commented import Said, commented, plain
from targets.launch.deployment import Deployment
from targets.launch.request import LaunchFile
from targets.launch.target import LaunchTarget

#: Room of a claim beside the weights, as a share.
_ROOM = 1.2


class Kubernetes(LaunchTarget):
    """One server a pod, with the cards of one node."""

    name: ClassVar[str] = "kubernetes"
    title: ClassVar[str] = "Kubernetes: Deployment, Service, volume claim"

    def files(self, deployment: Deployment) -> tuple[LaunchFile, ...]:
        """Return `kubernetes.yaml`."""
        deployment.require_one_node(self.name, "kuberay, dynamo, skypilot, ray-serve")
        objects = (claim(deployment), _deployment(deployment), _service(deployment))
        texts = (commented(each, head) for each, head in zip(objects, (deployment.head, "", ""), strict=True))
        return (
            LaunchFile("kubernetes.yaml", "---\n".join(texts), data={"objects": [plain(each) for each in objects]}),
        )


def claim(deployment: Deployment) -> dict[str, Any]:
    """Return the claim of the volume that holds the checkpoint, or what is downloaded of it."""
    size = f"{max(1, math.ceil(deployment.served.bytes * _ROOM / 2**30))}Gi"
    how = "copy it there first" if deployment.folder else "filled at the first start"
    mode = "ReadWriteOnce" if deployment.hardware.nodes == 1 else "ReadWriteMany"
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": pod.claim_of(deployment)},
        "spec": {
            "accessModes": [
                Said(
                    mode,
                    f"{deployment.hardware.nodes} node reads it" if mode == "ReadWriteOnce" else "every node reads it",
                )
            ],
            "resources": {
                "requests": {"storage": Said(size, f"{deployment.served.bytes / 1e9:.1f} GB of weights; {how}")}
            },
        },
    }


def _deployment(deployment: Deployment) -> dict[str, Any]:
    labels = {"app": deployment.name}
    spec = {
        **pod.placement(deployment),
        **pod.looks_first(deployment),
        "containers": [pod.server(deployment, "server", deployment.arguments)],
        "volumes": pod.volumes(deployment),
    }
    deadline = deployment.startup_probes * 10 + 600
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": deployment.name, "labels": labels},
        "spec": {
            "replicas": 1,
            "progressDeadlineSeconds": Said(deadline, "the startup budget, and ten minutes to pull the image"),
            "strategy": {"type": Said("Recreate", "a second server beside the first would find its card taken")},
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": spec},
        },
    }


def _service(deployment: Deployment) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": deployment.name, "labels": {"app": deployment.name}},
        "spec": {
            "selector": {"app": deployment.name},
            "ports": [
                {"name": "http", "port": 80, "targetPort": Said(deployment.launch.port, "where the server listens")}
            ],
        },
    }
