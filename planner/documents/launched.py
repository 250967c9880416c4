"""What `optimize launch --json` writes: the files of launch targets, and why other targets have none."""

from __future__ import annotations

from dataclasses import field

from passes.record import dataclass
from planner.plan.codec import FORMAT_VERSION
from planner.plan.launch import Refusal


@dataclass(frozen=True, slots=True)
class File:
    """A launch file. `written`: where it lies now, None where it was not to be written. `executable`: whether it is a program."""

    path: str
    text: str
    executable: bool
    written: str | None = None


@dataclass(frozen=True, slots=True)
class LaunchDocument:
    """The files of the targets that were asked for; of `all`, each target that cannot run the server, and why."""

    files: tuple[File, ...]
    refused: tuple[Refusal, ...] = ()
    format_version: str = field(default=FORMAT_VERSION, kw_only=True)
