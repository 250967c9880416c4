"""What is asked of an engine's launch files, and what they are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from passes.ir.model import ModelIR
from targets.engines.engine import Settings
from targets.workload import Workload


@dataclass(frozen=True, slots=True)
class LaunchRequest:
    """All that a launch file may say.

    `engine`, `version`: what was planned for. `label`: what runs, for people. `ir` describes the finished checkpoint.
    `kv_cache_bytes`: what was planned to be left for the cache, for engines that must be told.
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


@dataclass(frozen=True, slots=True)
class LaunchFile:
    """One file of a launch folder: relative path, content, whether it is a program. `data`: a config's content before it is text."""

    path: str
    text: str
    executable: bool = False
    data: Mapping[str, Any] = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class Launch:
    """How an engine is started on a result: its files, of which one is a script that does so by itself, and what the script runs.

    `command`: arguments, run in the result's folder, host and port left out; `environment`: variables with their defaults;
    `port`: what it listens on by default; `health`: the path that answers 200 when it is ready.
    """

    files: tuple[LaunchFile, ...]
    command: tuple[str, ...]
    environment: Mapping[str, str]
    port: int
    health: str
