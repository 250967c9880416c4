"""The contract of a launch target, and the table of them: ways of running servers for which an engine's launch is written out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from passes.registry import Registry
from targets.launch.request import Launch, LaunchFile


class LaunchTarget(ABC):
    """A way of running servers. Written once for all engines: what it must know of them stands in `Launch`."""

    name: ClassVar[str]

    @abstractmethod
    def files(self, launch: Launch, result: Path) -> tuple[LaunchFile, ...]:
        """Return the files that start an engine on a result there.

        `result`: the result's folder, absolute; the engine's own files lie in its folder `launch`.
        """


#: Launch targets by name.
LAUNCH_TARGETS: Registry[type[LaunchTarget]] = Registry(
    "launch target", {"systemd": "targets.launch.systemd:Systemd"}, group="tightfit.launch_targets"
)


def find_launch_target(name: str) -> LaunchTarget:
    """Return a launch target. Raises InputError with the nearest names for an unknown one."""
    return LAUNCH_TARGETS.find(name)()
