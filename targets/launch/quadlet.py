"""A Podman Quadlet (podman-systemd.unit(5)): a container that systemd runs; `/etc/containers/systemd` or `~/.config/containers/systemd`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

from targets.launch.deployment import HUB_CACHE, PROBE_SECONDS, Deployment, flag
from targets.launch.request import LaunchFile
from targets.launch.systemd import description, looks_first, unit_word
from targets.launch.target import LaunchTarget


class Quadlet(LaunchTarget):
    """One `.container` file; cards by their CDI names."""

    name: ClassVar[str] = "quadlet"
    title: ClassVar[str] = "Podman Quadlet, one machine"

    def files(self, deployment: Deployment) -> tuple[LaunchFile, ...]:
        """Return the file, named after what is served."""
        deployment.require_one_node(self.name, "skypilot, ray-serve, kuberay, dynamo")
        return (LaunchFile(f"{deployment.name}.container", "\n".join(_lines(deployment)) + "\n"),)


def _in_full(image: str) -> str:
    """Return an image with its registry: nobody is there to be asked, where a unit starts, which one a short name means."""
    registry, _, name = image.partition("/")
    return image if name and ("." in registry or ":" in registry) else f"docker.io/{image}"


def _lines(deployment: Deployment) -> Iterator[str]:
    container, port = deployment.container, deployment.launch.port
    yield from (f"# {line}" for line in deployment.head.splitlines())
    yield from ("[Unit]", f"Description={description(deployment)}", "Wants=network-online.target")
    yield from ("After=network-online.target", "", "[Container]")
    yield from ("# The planned version; another one counts memory otherwise.", f"Image={_in_full(container.image)}")
    yield from (f"# {each.name}: {each.why}." for each in deployment.arguments)
    yield "Exec=" + " ".join(unit_word(flag(each)) for each in deployment.arguments)
    yield f"PublishPort={port}:{port}"
    if deployment.folder is None:
        yield from ("# Downloads outlive the container.", f"Volume={deployment.name}-hub:{HUB_CACHE}")
        yield from ("# A token for models behind a licence: `podman secret create hf-token -`, then take the # away.",)
        yield "#Secret=hf-token,type=env,target=HF_TOKEN"
    else:
        yield "# The checkpoint, only read. SELinux: add z."
        yield f"Volume={unit_word(f'{deployment.folder}:{deployment.model}:ro')}"
    for each in container.environment:
        yield from (f"# {each.why[0].upper()}{each.why[1:]}.", f"Environment={unit_word(f'{each.name}={each.value}')}")
    for card in range(deployment.hardware.of_a_node):
        if card == 0:
            yield f"# Cards as `nvidia-ctk cdi list` names them; planned for {deployment.hardware.gpu}."
        yield f"AddDevice=nvidia.com/gpu={card}"
    yield from ("# The engine's processes share tensors and NCCL's buffers there.", f"ShmSize={deployment.shm_bytes}")
    yield f"HealthCmd=curl -sf http://localhost:{port}{deployment.launch.health}"
    yield f"HealthInterval={PROBE_SECONDS}s"
    yield f"# {deployment.startup_why}."
    yield f"HealthStartPeriod={deployment.startup_probes * PROBE_SECONDS}s"
    yield from (
        "",
        "[Service]",
        *looks_first(deployment.asked),
        "Restart=on-failure",
        "RestartSec=20",
        "# The first start pulls an image of several GB.",
    )
    yield from ("TimeoutStartSec=1800", "", "[Install]", "WantedBy=multi-user.target default.target")
