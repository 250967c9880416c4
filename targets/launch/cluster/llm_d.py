"""Values of llm-d's Helm chart `llm-d-modelservice` (llm-d-incubation/llm-d-modelservice, values.yaml).

helm repo add llm-d-modelservice https://llm-d-incubation.github.io/llm-d-modelservice/
helm install NAME llm-d-modelservice/llm-d-modelservice -f llm-d.values.yaml

What its templates (decode-deployment.yaml ab68329d, _helpers.tpl 6ab49a0e) make of them: of a pod's spec they know tolerations, volumes,
and what stands under `extraConfig`; model, port, degrees and served name are arguments that they write, a commit is none.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

from targets.launch.cluster import pod
from targets.launch.cluster.kserve import source_uri
from targets.launch.commented import Said, commented, plain
from targets.launch.deployment import Deployment, gibibytes
from targets.launch.request import LaunchFile
from targets.launch.target import LaunchTarget


class LlmD(LaunchTarget):
    """One server a pod that prefills and decodes; scheduler and gateway are charts of their own."""

    name: ClassVar[str] = "llm-d"
    title: ClassVar[str] = "llm-d: values of the modelservice chart"

    def files(self, deployment: Deployment) -> tuple[LaunchFile, ...]:
        """Return `llm-d.values.yaml`."""
        deployment.require_one_node(self.name, "kuberay, dynamo, skypilot, ray-serve")
        deployment.require_cards(f"{self.name} asks a card for every server")
        tree = _values(deployment)
        return (LaunchFile("llm-d.values.yaml", commented(tree, deployment.head), data=plain(tree)),)


def _values(deployment: Deployment) -> dict[str, Any]:
    room = math.ceil(deployment.served.bytes * 1.2 / 2**30)
    artifacts: dict[str, Any] = {
        "name": Said(deployment.request.served_name, "what clients ask for as `model`"),
        "uri": Said(source_uri(deployment), "where the checkpoint comes from"),
        "size": Said(f"{room}Gi", f"{deployment.served.bytes / 1e9:.1f} GB of weights"),
        "mountPath": "/model-cache",
    }
    if deployment.folder is None:
        artifacts["authSecretName"] = Said("hf-token", "a secret with the key HF_TOKEN, for models behind a licence")
    return {
        "modelArtifacts": artifacts,
        "accelerator": {"type": "nvidia"},
        "routing": {
            "servicePort": deployment.launch.port,
            "proxy": {
                "enabled": Said(False, "prefill and decode are not split: no sidecar, the server has the port itself")
            },
        },
        "decode": _decode(deployment),
        "prefill": {"create": Said(False, "decode pods prefill too")},
    }


def _decode(deployment: Deployment) -> dict[str, Any]:
    parallel = deployment.request.settings.parallel
    shm = {"medium": "Memory", "sizeLimit": Said(gibibytes(deployment.shm_bytes), "tensors and NCCL's buffers")}
    server = pod.server(deployment, "vllm", pod.without(deployment.arguments, "model", "port", "served-model-name"))
    placed = pod.placement(deployment)
    container = {
        **server,
        "modelCommand": Said("vllmServe", "the chart writes `vllm serve`, model, name and port"),
        "mountModelVolume": True,
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
    }
    return {
        "create": True,
        "replicas": 1,
        "parallelism": {
            "tensor": Said(parallel.tp, "cards that each matrix is cut over"),
            "data": Said(parallel.dp, "replicas that share the requests"),
        },
        "extraConfig": {key: value for key, value in placed.items() if key != "tolerations"},
        "tolerations": placed["tolerations"],
        "containers": [container],
        "volumes": [{"name": "shm", "emptyDir": shm}],
    }
