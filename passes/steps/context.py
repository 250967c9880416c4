"""What a run computes with and where it keeps what it has found: the one argument of everything that works on weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from passes.record import dataclass
from passes.steps.step import Report, Steps, once

if TYPE_CHECKING:
    import torch


def _say_nothing(done: int, total: int, detail: str = "") -> None:
    pass


@dataclass(frozen=True)
class RunContext:
    """What a run computes with, and where it keeps what it has found.

    `folder`: for what is kept; a run that was killed goes on there. `text`: token ids `[S, T]`, no rows where nothing looks at text.
    `report` is told how far the step at work is.
    """

    folder: Path
    devices: tuple[torch.device, ...]
    dtype: torch.dtype
    text: torch.Tensor
    steps: Steps
    report: Report = _say_nothing

    def part(self, folder: Path, report: Report | None = None) -> RunContext:
        """Return the same run in another folder, as inside of one step; `report`: told instead of this one's."""
        return replace(self, folder=folder, report=report or self.report)

    def on_text(self, text: torch.Tensor) -> RunContext:
        """Return the same run on other token ids `[S, T]`."""
        return replace(self, text=text)

    def on_one_device(self) -> RunContext:
        """Return the same run on its first device alone: measurements are not shared out."""
        return replace(self, devices=self.devices[:1])

    def measured(
        self, step: str, kind: str, key: str, make: Callable[[RunContext], Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Return a measurement, taken as a step: the JSON object `<folder>/<kind>-<key>.json`, made once.

        `step` names it for people. `make` runs in a folder beside it, whose content goes when the measurement is kept.
        """
        path = self.folder / f"{kind}-{key}.json"
        return self.steps.once(step, key, path, lambda parts, report: make(self.part(parts, report)))

    def kept(self, name: str, report: Report, make: Callable[[RunContext], Mapping[str, Any]]) -> dict[str, Any]:
        """Return a part of a step: the JSON object `<folder>/<name>.json`, made once.

        `make` runs in a folder beside it and tells `report`.
        """
        return once(self.folder / f"{name}.json", lambda parts: make(self.part(parts, report)))
