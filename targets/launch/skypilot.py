"""A SkyPilot task, which is a service too (skypilot 0.14): `sky launch skypilot.yaml`, or `sky serve up skypilot.yaml`."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any, ClassVar

from passes.errors import InputError
from targets.launch.before_start import look_first
from targets.launch.commented import Block, Said, commented, plain
from targets.launch.deployment import PATIENCE, Deployment
from targets.launch.request import LaunchFile
from targets.launch.target import LaunchTarget

#: What SkyPilot's catalogs call a card (`sky show-gpus --all`), by the beginning of its name; other names are written without spaces.
_CARDS = (
    (r"A100 .*80GB", "A100-80GB"), (r"A100 .*40GB", "A100"), (r"V100.* 32GB", "V100-32GB"), (r"V100", "V100"), (r"H100", "H100"),
    (r"H200", "H200"), (r"B200", "B200"), (r"RTX A6000", "RTXA6000"), (r"RTX (\d{4})( Ti| SUPER)?$", r"RTX\1"),
)  # fmt: skip
#: The first version that spreads a server over machines by itself (`--nnodes`, `--headless`).
_MACHINES = (0, 12)
_RPC_PORT = 13345


class SkyPilot(LaunchTarget):
    """One server on the cheapest cloud that has the planned cards, or on a cluster of your own."""

    name: ClassVar[str] = "skypilot"
    title: ClassVar[str] = "SkyPilot task and service, several nodes too"

    def files(self, deployment: Deployment) -> tuple[LaunchFile, ...]:
        """Return `skypilot.yaml`."""
        tree = _task(deployment)
        return (LaunchFile("skypilot.yaml", commented(tree, deployment.head), data=plain(tree)),)


def _task(deployment: Deployment) -> dict[str, Any]:
    hardware, container = deployment.hardware, deployment.container
    task: dict[str, Any] = {"name": deployment.name, "resources": _resources(deployment)}
    if hardware.nodes > 1:
        task["num_nodes"] = Said(hardware.nodes, hardware.told_of_a_node)
    if deployment.folder is not None:
        task["file_mounts"] = {
            deployment.model: Said(
                str(deployment.folder), "the checkpoint is copied to the machine; a bucket is faster"
            )
        }
    task["envs"] = {each.name: Said(str(each.value), each.why) for each in container.environment}
    if deployment.folder is None:
        task["secrets"] = {
            "HF_TOKEN": Said("", "for models behind a licence: `--secret HF_TOKEN` takes it from your shell")
        }
    if not task["envs"]:
        del task["envs"]
    body = {"model": deployment.request.served_name, "prompt": "Hello", "max_tokens": 1}
    probe = {
        "path": "/v1/completions",
        "post_data": Said(body, "one token: the model answers, not only the server"),
        "initial_delay_seconds": Said(round(PATIENCE * deployment.load_seconds), deployment.startup_why),
        "timeout_seconds": 30,
    }
    return task | {
        "service": {
            "readiness_probe": probe,
            "replicas": 1,
            "ports": Said(deployment.launch.port, "where the server listens"),
        },
        "run": Block("\n".join(_run(deployment))),
    }


def _resources(deployment: Deployment) -> dict[str, Any]:
    hardware = deployment.hardware
    out: dict[str, Any] = {}
    if cards := hardware.of_a_node:
        out["accelerators"] = Said(
            f"{_card(hardware.gpu)}:{cards}", f"planned for {hardware.gpu}; `sky show-gpus` lists names"
        )
    room = max(256, round(deployment.served.bytes * 2 / 1e9) + 100)
    return out | {
        "cpus": Said(f"{deployment.cpus}+", "its API server, its engine core, and a worker for each card"),
        "image_id": Said(
            f"docker:{deployment.container.image}", "the planned version; another one counts memory otherwise"
        ),
        "disk_size": Said(room, f"GB: the image, and {deployment.served.bytes / 1e9:.1f} GB of weights"),
        "ports": Said(deployment.launch.port, "where the server listens"),
    }


def _card(name: str) -> str:
    for pattern, said in _CARDS:
        if (match := re.match(pattern, name)) is not None:
            return match.expand(said) + (match[2] or "").replace(" ", "-") if match.re.groups else said
    return name.partition(" (")[0].replace(" ", "-")


def _run(deployment: Deployment) -> Iterator[str]:
    told = deployment.arguments
    yield from (f"# {each.name}: {each.why}" for each in told)
    lines = [shlex.join((*deployment.mounted.command, "--host=0.0.0.0", f"--port={deployment.launch.port}"))]
    asked = deployment.mounted.asked
    if asked is not None and deployment.hardware.nodes == 1:
        yield look_first(asked).rstrip()
    if deployment.hardware.nodes > 1:
        yield 'HEAD=$(echo "$SKYPILOT_NODE_IPS" | head -n 1)'
        yield "# All but the first machine serve its requests and none of their own."
        yield 'HEADLESS=$([ "$SKYPILOT_NODE_RANK" -eq 0 ] || echo --headless)'
        lines += [*_machines(deployment), "$HEADLESS"]
    yield "exec " + " \\\n  ".join(lines)


def _machines(deployment: Deployment) -> Iterator[str]:
    """The arguments that spread the server over machines: whole replicas, or the cards of one."""
    nodes, parallel = deployment.hardware.nodes, deployment.request.settings.parallel
    if tuple(int(part) for part in re.findall(r"\d+", deployment.container.tag)[:2]) < _MACHINES:
        raise InputError(
            f"{deployment.engine} spreads a server over machines through Ray only",
            remedy="targets that do: kuberay, ray-serve",
        )
    if parallel.dp > 1:
        local = parallel.dp // nodes
        yield f"--data-parallel-size-local={local}"
        yield f'--data-parallel-start-rank=$((SKYPILOT_NODE_RANK * {local})) --data-parallel-address="$HEAD"'
        yield f"--data-parallel-rpc-port={_RPC_PORT}"
    else:
        yield f'--nnodes={nodes} --node-rank="$SKYPILOT_NODE_RANK" --master-addr="$HEAD"'
