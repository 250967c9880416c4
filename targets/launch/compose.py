"""A Docker Compose file (compose-spec.io): `docker compose up -d`, then http://localhost:8000/v1/models."""

from __future__ import annotations

from typing import Any, ClassVar

from targets.launch.commented import Said, commented, plain
from targets.launch.deployment import HUB_CACHE, PROBE_SECONDS, Deployment, flag, gibibytes
from targets.launch.request import LaunchFile
from targets.launch.target import LaunchTarget


class Compose(LaunchTarget):
    """One service, with the cards of one machine."""

    name: ClassVar[str] = "compose"
    title: ClassVar[str] = "Docker Compose, one machine"

    def files(self, deployment: Deployment) -> tuple[LaunchFile, ...]:
        """Return `compose.yaml`."""
        deployment.require_one_node(self.name, "skypilot, ray-serve, kuberay, dynamo")
        tree: dict[str, Any] = {"name": deployment.name, "services": {"server": _service(deployment)}}
        if deployment.folder is None:
            tree["volumes"] = {"hub-cache": Said({}, "downloads outlive the container")}
        return (LaunchFile("compose.yaml", commented(tree, deployment.head), data=plain(tree)),)


def _service(deployment: Deployment) -> dict[str, Any]:
    container, port = deployment.container, deployment.launch.port
    url = f"http://localhost:{port}"
    service: dict[str, Any] = {
        "image": Said(container.image, "the planned version; another one counts memory otherwise"),
        "command": [Said(_escaped(flag(each)), each.why) for each in deployment.arguments],
        "ports": [Said(f"${{PORT:-{port}}}:{port}", "PORT is that of this machine")],
        "volumes": [_volume(deployment)],
        "environment": _environment(deployment),
        "shm_size": Said(
            f"{gibibytes(deployment.shm_bytes)[:-2]}gb", "the engine's processes share tensors and NCCL's buffers there"
        ),
    }
    if cards := deployment.hardware.of_a_node:
        device = {
            "driver": "nvidia",
            "count": Said(cards, f"cards in use; planned for {deployment.hardware.gpu}"),
            "capabilities": ["gpu"],
        }
        service["deploy"] = {"resources": {"reservations": {"devices": [device]}}}
    health = f"curl -sf {url}{deployment.launch.health} && curl -sf {url}/v1/models"
    return service | {
        "healthcheck": {
            "test": Said(["CMD-SHELL", health], "running, and a model is loaded"),
            "interval": f"{PROBE_SECONDS}s",
            "timeout": "5s",
            "retries": 3,
            "start_period": Said(f"{deployment.startup_probes * PROBE_SECONDS}s", deployment.startup_why),
        },
        "restart": Said("unless-stopped", "back after a crash or a reboot"),
    }


def _volume(deployment: Deployment) -> Said:
    if deployment.folder is None:
        return Said(f"hub-cache:{HUB_CACHE}", "where the image keeps what it downloads")
    place = f"${{MODEL:-{_escaped(str(deployment.folder))}}}:{deployment.model}:ro"
    return Said(place, "MODEL says where the checkpoint lies, should it have moved; it is only read")


def _environment(deployment: Deployment) -> dict[str, Any]:
    told: dict[str, Any] = {each.name: Said(str(each.value), each.why) for each in deployment.container.environment}
    if deployment.folder is None:
        told["HF_TOKEN"] = Said("${HF_TOKEN:-}", "from your shell, for models behind a licence; no secret stands here")
    return told


def _escaped(text: str) -> str:
    """Compose fills in `$NAME`; a dollar of its own is doubled."""
    return text.replace("$", "$$")
