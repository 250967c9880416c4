"""A Ray Serve LLM config (ray 2.60, `ray.serve.llm:build_openai_app`): `serve run ray-serve.yaml` on a cluster of any size."""

from __future__ import annotations

import re
from typing import Any, ClassVar

from passes.errors import InputError
from targets.launch.cluster.pod import without
from targets.launch.commented import Said, commented, plain
from targets.launch.deployment import Deployment
from targets.launch.request import LaunchFile
from targets.launch.target import LaunchTarget

#: What Ray calls a card (ray 2.60, `util/accelerators/accelerators.py`), by the beginning of its name; others are left out.
_CARDS = (
    (r"A100 .*80GB", "A100-80G"), (r"A100 .*40GB", "A100-40G"), (r"V100", "V100"), (r"T4\b", "T4"), (r"A10G\b", "A10G"),
    (r"L4\b", "L4"), (r"L40S\b", "L40S"), (r"H100", "H100"), (r"H200", "H200"), (r"H20\b", "H20"), (r"B200", "B200"),
    (r"B300", "B300"), (r"RTX PRO 6000", "RTX-PRO-6000"),
)  # fmt: skip
#: What the config says in places of its own.
_OWN = ("model", "port", "served-model-name")


class RayServe(LaunchTarget):
    """One application with one model, its workers placed over the nodes of a Ray cluster."""

    name: ClassVar[str] = "ray-serve"
    title: ClassVar[str] = "Ray Serve LLM, several nodes too"

    def files(self, deployment: Deployment) -> tuple[LaunchFile, ...]:
        """Return `ray-serve.yaml`."""
        tree = serve_config(deployment)
        return (LaunchFile("ray-serve.yaml", commented(tree, deployment.head), data=plain(tree)),)


def serve_config(deployment: Deployment) -> dict[str, Any]:
    """Return the config of `serve deploy`. Raises InputError for experts of several replicas, which Ray builds another application for."""
    parallel = deployment.request.settings.parallel
    deployment.require_cards("Ray places this server on cards")
    if parallel.dp > 1 and deployment.request.ir.has_experts:
        raise InputError(
            f"Ray Serve runs replicas apart, and this plan spreads experts over {parallel.dp} of them",
            remedy="targets that keep them together: skypilot, dynamo"
            + ("" if deployment.hardware.nodes > 1 else ", kubernetes, compose"),
        )
    return {
        "applications": [
            {
                "name": deployment.name,
                "route_prefix": "/",
                "import_path": Said("ray.serve.llm:build_openai_app", "the OpenAI API over the models below"),
                "args": {"llm_configs": [_llm(deployment)]},
            }
        ]
    }


def _llm(deployment: Deployment) -> dict[str, Any]:
    parallel, hardware = deployment.request.settings.parallel, deployment.hardware
    workers = parallel.tp * parallel.pp
    spread = workers > hardware.of_a_node
    told = [each for each in without(deployment.arguments, *_OWN) if each.name != "data-parallel-size"]
    kwargs: dict[str, Any] = {each.name.replace("-", "_"): Said(each.value, each.why) for each in told}
    if spread:
        kwargs["distributed_executor_backend"] = Said("ray", f"{workers} workers stand on more than one machine")
    why = "workers as close together as can be" if spread else "all workers of a server on one machine"
    config: dict[str, Any] = {
        "model_loading_config": {
            "model_id": Said(deployment.request.served_name, "what clients ask for as `model`"),
            "model_source": Said(
                deployment.model,
                "the same path on every node" if deployment.folder else "served as it is, from the Hub",
            ),
        },
        "deployment_config": {"num_replicas": Said(parallel.dp, "servers that share the requests")},
        "placement_group_config": {
            "bundle_per_worker": Said({"GPU": 1, "CPU": 1}, f"{workers} of them"),
            "strategy": Said("PACK" if spread else "STRICT_PACK", why),
        },
        "engine_kwargs": kwargs,
    }
    if (card := _card(hardware.gpu)) is not None:
        config["accelerator_type"] = Said(card, "the planned card, as Ray calls it")
    if variables := deployment.container.environment:
        config["runtime_env"] = {"env_vars": {each.name: Said(str(each.value), each.why) for each in variables}}
    return config


def _card(name: str) -> str | None:
    return next((said for pattern, said in _CARDS if re.match(pattern, name)), None)
