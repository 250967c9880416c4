"""The contract of a launch target, and the table of them: ways of running servers for which an engine's launch is written out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from passes.registry import Registry
from targets.launch.deployment import Deployment
from targets.launch.request import LaunchFile


class LaunchTarget(ABC):
    """A way of running servers. Written once for all engines: what it must know of them stands in `Deployment`."""

    name: ClassVar[str]
    #: What it is, in a line.
    title: ClassVar[str] = ""

    @abstractmethod
    def files(self, deployment: Deployment) -> tuple[LaunchFile, ...]:
        """Return the files that run a server there.

        Raises InputError for a deployment that it cannot run, naming targets that can.
        """


#: Launch targets by name.
LAUNCH_TARGETS: Registry[type[LaunchTarget]] = Registry(
    "launch target",
    {
        "engine": "targets.launch.engine:EngineFiles",
        "compose": "targets.launch.compose:Compose",
        "systemd": "targets.launch.systemd:Systemd",
        "quadlet": "targets.launch.quadlet:Quadlet",
        "script": "targets.launch.script:Script",
        "skypilot": "targets.launch.skypilot:SkyPilot",
        "kubernetes": "targets.launch.cluster.kubernetes:Kubernetes",
        "production-stack": "targets.launch.cluster.production_stack:ProductionStack",
        "kserve": "targets.launch.cluster.kserve:KServe",
        "llm-d": "targets.launch.cluster.llm_d:LlmD",
        "dynamo": "targets.launch.cluster.dynamo:Dynamo",
        "ray-serve": "targets.launch.cluster.ray_serve:RayServe",
        "kuberay": "targets.launch.cluster.kuberay:KubeRay",
    },
    group="tightfit.launch_targets",
    meant={
        "docker": ("compose",),
        "docker-compose": ("compose",),
        "dockerfile": ("compose",),
        "container": ("compose", "quadlet"),
        "podman": ("quadlet",),
        "systemctl": ("systemd",),
        "service": ("systemd",),
        "bash": ("engine",),
        "shell": ("engine",),
        "python": ("script",),
        "k8s": ("kubernetes",),
        "kubectl": ("kubernetes",),
        "k3s": ("kubernetes",),
        "openshift": ("kubernetes",),
        "helm": ("production-stack", "llm-d"),
        "ray": ("ray-serve", "kuberay"),
        "sky": ("skypilot",),
        "cloud": ("skypilot",),
    },
)


def find_launch_target(name: str) -> LaunchTarget:
    """Return a launch target. Raises InputError with the nearest names for an unknown one."""
    return LAUNCH_TARGETS.find(name)()
