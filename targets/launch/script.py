"""A small Python program that loads a result with the planned cache and answers one prompt: the engine's library, no server."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from passes.errors import InputError
from targets.engines.engine import find_engine
from targets.launch.deployment import Deployment
from targets.launch.request import LaunchFile
from targets.launch.target import LaunchTarget


class Script(LaunchTarget):
    """The engine's own program, for ExLlamaV2 and ExLlamaV3."""

    name: ClassVar[str] = "script"
    title: ClassVar[str] = "a small ExLlamaV2 or ExLlamaV3 program"

    def files(self, deployment: Deployment) -> tuple[LaunchFile, ...]:
        """Return the program. Raises InputError for an engine that has none."""
        request = replace(deployment.request, served=deployment.served)
        program = find_engine(request.engine).launch(request).program
        if program is None:
            raise InputError(
                f"{deployment.request.engine} is started by its server, not by a program of ours",
                remedy="targets that do: engine, compose",
            )
        return (program,)
