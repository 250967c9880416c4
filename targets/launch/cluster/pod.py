"""A pod that runs an engine: what every target on Kubernetes writes of it (kubernetes.io/docs/reference, core/v1)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from targets.launch.before_start import install_and_look
from targets.launch.commented import Said
from targets.launch.deployment import HUB_CACHE, MODELS, PROBE_SECONDS, Deployment, flag, gibibytes
from targets.launch.request import Hardware, Setting

_MIB = 1 << 20
#: What NVIDIA's device plugin calls a card.
GPU = "nvidia.com/gpu"
CLAIM = "model"
_TOKEN = {"name": "hf-token", "key": "token", "optional": Said(True, "only models behind a licence need it")}


def claim_of(deployment: Deployment) -> str:
    """Return the name of the volume claim that holds the checkpoint."""
    return f"{deployment.name}-{CLAIM}"


def arguments(told: Iterable[Setting]) -> list[Said]:
    """Return settings as a container's arguments."""
    return [Said(flag(each), each.why) for each in told]


def environment(deployment: Deployment) -> list[dict[str, Any]]:
    """Return the container's variables; a token only by its secret."""
    told: list[dict[str, Any]] = [
        {"name": each.name, "value": Said(str(each.value), each.why)} for each in deployment.container.environment
    ]
    if deployment.folder is None:
        told.append({"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": _TOKEN}})
    return told


def resources(deployment: Deployment) -> dict[str, Any]:
    """Return cores, memory and cards of one machine's server."""
    cards, memory = deployment.hardware.of_a_node, gibibytes(deployment.host_bytes)
    requests = {
        "cpu": Said(str(deployment.cpus), "its API server, its engine core, and a worker for each card"),
        "memory": Said(memory, "assumed: 4 GiB for each of these processes, and the shared memory"),
    }
    if not cards:
        return {"requests": requests, "limits": {"memory": Said(memory, "weights and cache as planned stay in it")}}
    return {
        "requests": requests,
        "limits": {GPU: Said(str(cards), f"cards in use; planned for {deployment.hardware.gpu}")},
    }


def mounts(deployment: Deployment) -> list[dict[str, Any]]:
    """Return where a container finds the checkpoint and its shared memory."""
    where: dict[str, Any] = {"name": CLAIM, "mountPath": HUB_CACHE}
    if deployment.folder is not None:
        where = {"name": CLAIM, "mountPath": MODELS, "readOnly": Said(True, "the server only reads it")}
    return [where, {"name": "shm", "mountPath": "/dev/shm"}]


def volumes(deployment: Deployment) -> list[dict[str, Any]]:
    """Return the pod's volumes."""
    why = (
        "downloads outlive the pod"
        if deployment.folder is None
        else f"a volume with {deployment.folder.name} in its root"
    )
    shm = {
        "medium": "Memory",
        "sizeLimit": Said(gibibytes(deployment.shm_bytes), "tensors and NCCL's buffers; the default is 64 MiB"),
    }
    return [
        {"name": CLAIM, "persistentVolumeClaim": {"claimName": Said(claim_of(deployment), why)}},
        {"name": "shm", "emptyDir": shm},
    ]


def placement(deployment: Deployment) -> dict[str, Any]:
    """Return what of a pod's spec finds the planned card, by the labels of NVIDIA's GPU feature discovery."""
    hardware = deployment.hardware
    if hardware.is_cpu:
        return {}
    least = hardware.memory_bytes // _MIB - 1
    memory = {
        "key": f"{GPU}.memory",
        "operator": "Gt",
        "values": [Said(str(least), "MiB: the plan fits no smaller card")],
    }
    terms = [{"matchExpressions": [memory]}]
    placed: dict[str, Any] = {"nodeSelector": _generation(hardware)} if hardware.capability else {}
    return placed | {
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}},
        "tolerations": [
            {"key": GPU, "operator": Said("Exists", "nodes with cards are often tainted so"), "effect": "NoSchedule"}
        ],
    }


def _generation(hardware: Hardware) -> dict[str, Any]:
    major, minor = divmod(hardware.capability or 0, 10)
    return {
        f"{GPU}.compute.major": Said(str(major), f"{hardware.gpu} has compute capability {major}.{minor}"),
        f"{GPU}.compute.minor": str(minor),
    }


def probes(deployment: Deployment) -> dict[str, Any]:
    """Return the three probes: a long budget to start, then quick ones."""
    port, health = deployment.launch.port, deployment.launch.health

    def probe(path: str, period: int, failures: int, why: str) -> dict[str, Any]:
        return {
            "httpGet": {"path": path, "port": port},
            "periodSeconds": period,
            "timeoutSeconds": 5,
            "failureThreshold": Said(failures, why),
        }

    return {
        "startupProbe": probe("/v1/models", PROBE_SECONDS, deployment.startup_probes, deployment.startup_why),
        "readinessProbe": probe("/v1/models", 5, 3, "no requests after 15 s without an answer"),
        "livenessProbe": probe(health, 10, 3, "restarted after 30 s without an answer, never while it starts"),
    }


def server(deployment: Deployment, name: str, told: Iterable[Setting]) -> dict[str, Any]:
    """Return the container of one machine's server; `told`: its arguments."""
    port = deployment.launch.port
    return {
        "name": name,
        "image": Said(deployment.container.image, "the planned version; another one counts memory otherwise"),
        "args": arguments(told),
        "env": environment(deployment),
        "ports": [{"containerPort": port, "name": "http"}],
        "resources": resources(deployment),
        "volumeMounts": mounts(deployment),
        **probes(deployment),
    }


def looks_first(deployment: Deployment) -> dict[str, Any]:
    """Return the init container that looks whether the node's cards hold the server now; nothing where `check` reads no such server."""
    asked = deployment.mounted.asked
    if asked is None:
        return {}
    cards = deployment.hardware.of_a_node
    checks: dict[str, Any] = {
        "name": "fits",
        "image": Said("python:3.11-slim", "tightfit asks the driver, which a node with cards mounts into it"),
        "command": ["/bin/sh", "-c"],
        "args": [Said(install_and_look(asked), "a plain no keeps the pod from starting, and its log says why")],
        "env": [{"name": "TIGHTFIT_CHECK", "value": Said("1", "0 skips the look")}],
        "volumeMounts": mounts(deployment)[:1],
    }
    if cards:
        checks["resources"] = {"limits": {GPU: Said(str(cards), "the same cards: the server gets them afterwards")}}
    return {"initContainers": [checks]}


def without(told: Iterable[Setting], *names: str) -> Iterator[Setting]:
    """Give settings but those of some names, which a target says elsewhere."""
    return (each for each in told if each.name not in names)
