"""What is asked of an engine's launch files, and what they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Any

from passes.ir.model import ModelIR
from passes.record import dataclass
from targets.engines.engine import Settings
from targets.workload import Workload


@dataclass(frozen=True, slots=True)
class Served:
    """The checkpoint that is served. `folder`: where it lies, a folder or a file; None: the Hub has it, under `name` at `revision`.

    `planned`: nothing lies there yet, `apply` makes it. `bytes`: of its tensors.
    """

    name: str
    folder: Path | None
    revision: str | None = None
    bytes: int = 0
    planned: bool = False


@dataclass(frozen=True, slots=True)
class Hardware:
    """The cards that a launch takes: `cards` of one kind in `nodes` machines. `memory_bytes`: what CUDA shows of each, in bytes;
    `capability`: compute capability × 10 where it is known; `is_cpu`: it computes on the machines' processors.
    """

    gpu: str
    memory_bytes: int
    capability: int | None = None
    cards: int = 1
    nodes: int = 1
    is_cpu: bool = False

    @property
    def of_a_node(self) -> int:
        """Cards of each machine; 0: it computes on its processor."""
        return 0 if self.is_cpu else self.cards // self.nodes

    @property
    def told_of_a_node(self) -> str:
        """The same in words."""
        return f"{self.of_a_node} {'card' if self.of_a_node == 1 else 'cards'} in each"


@dataclass(frozen=True, slots=True)
class LaunchRequest:
    """All that a launch file may say.

    `engine`, `version`: what was planned for. `label`: what runs, for people. `ir` describes the finished checkpoint.
    `kv_cache_bytes`: what was planned to be left for the cache, for engines that must be told. `served`: the checkpoint; None: the
    launch folder lies inside of it.
    """

    engine: str
    version: str | None
    label: str
    served_name: str
    ir: ModelIR
    settings: Settings
    workload: Workload
    kv_cache_bytes: int
    trust_remote_code: bool = False
    served: Served | None = None


@dataclass(frozen=True, slots=True)
class LaunchFile:
    """One file of a launch folder: relative path, content, whether it is a program. `data`: a config's content before it is text."""

    path: str
    text: str
    executable: bool = False
    data: Mapping[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class Setting:
    """An argument or a variable: its name as the engine spells it, its value (True: a flag), and why it is there."""

    name: str
    value: Any
    why: str


@dataclass(frozen=True, slots=True)
class Container:
    """An engine's published image, and what its server is told beside model, host and port."""

    repository: str
    tag: str
    arguments: tuple[Setting, ...]
    environment: tuple[Setting, ...] = ()

    @property
    def image(self) -> str:
        """Name and tag."""
        return f"{self.repository}:{self.tag}"


@dataclass(frozen=True, slots=True)
class Launch:
    """How an engine is started on a result: its files, of which one is a script that does so by itself, and what the script runs.

    `command`: arguments, run in the result's folder, host and port left out; `environment`: variables with their defaults;
    `port`: what it listens on by default; `health`: the path that answers 200 when it is ready. `container`: the same in its image; None
    where nobody publishes one under a version. `program`: a Python program that answers a prompt without a server, where it has one.
    `caches_prefixes`: a prompt's beginning is found again unless it is told otherwise, for targets that tell it themselves.
    """

    files: tuple[LaunchFile, ...]
    command: tuple[str, ...]
    environment: Mapping[str, str]
    port: int
    health: str
    container: Container | None = None
    program: LaunchFile | None = None
    caches_prefixes: bool = False
