"""The engine's own files: its config and a script that starts it on this machine."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from targets.engines.engine import find_engine
from targets.launch.deployment import Deployment
from targets.launch.request import LaunchFile
from targets.launch.target import LaunchTarget
from targets.launch.write import FOLDER


class EngineFiles(LaunchTarget):
    """What `optimize apply` writes into every result."""

    name: ClassVar[str] = "engine"
    title: ClassVar[str] = "the engine's own config and a script (vllm.yaml or TabbyAPI's config.yml, run.sh)"

    def files(self, deployment: Deployment) -> tuple[LaunchFile, ...]:
        """Return them in a folder `launch`; they name where the checkpoint lies."""
        request = replace(deployment.request, served=deployment.served)
        files = find_engine(request.engine).launch(request).files
        return tuple(replace(file, path=f"{FOLDER}/{file.path}") for file in files)
