"""The contract of a pass: one set of decisions, two faces.

`rewrite` changes the *description* of a model in microseconds; the planner calls it thousands of times. The executing face
(`resolve`, `dense`, and `passes.walk.walk`) changes the *weights*, once. The description after the last `rewrite` says tensor
for tensor what the checkpoint holds afterwards; `passes.run.execute` compares the two and refuses any difference.

A pass is a frozen dataclass whose fields are its options. It prints as `name{option=value, …}` and reads back from JSON.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Self

from passes.errors import Reason
from passes.ir.model import ModelIR

if TYPE_CHECKING:
    from passes.blocks.dense_model import DenseModel
    from passes.steps.context import RunContext


class Pass(ABC):
    """A rewrite of a model, on its description and on its weights."""

    #: Stable identifier, used in plans and on the command line.
    name: ClassVar[str]

    @abstractmethod
    def illegal(self, ir: ModelIR) -> tuple[Reason, ...]:
        """Why this pass cannot be applied to this model; empty when it can."""

    @abstractmethod
    def rewrite(self, ir: ModelIR) -> ModelIR:
        """The description after the pass. Pure; the pass must be legal."""

    def missing(self) -> str | None:
        """What the executing face still lacks, in words; None when `apply` can run it."""
        return None

    def resolve(self, dense: DenseModel, run: RunContext) -> Self:
        """Measure the choice that this pass leaves open on the model that the passes before it left; return the pass with it filled in."""
        return self

    def dense(self, before: DenseModel, run: RunContext) -> DenseModel:
        """The dense model after the pass, which must be resolved: that before it where only its stored form changes."""
        return before

    @property
    def backend(self) -> str:
        """Who makes it: `native`, or an outside tool (`passes.backends`)."""
        return "native"

    @property
    def resolved(self) -> bool:
        """Whether every choice is made; False while some wait for a measurement (bytes are then at most so many)."""
        return True

    @property
    def load_time(self) -> bool:
        """Whether only the engine acts on it: the checkpoint stays as it is and `apply` does nothing."""
        return False

    def options(self) -> dict[str, Any]:
        """The options as JSON values."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # type: ignore[arg-type]

    def text(self) -> str:
        """`name{option=value, …}`, options at their default left out."""
        shown = []
        for f in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, f.name)
            if value != f.default:
                shown.append(f"{f.name}={getattr(value, 'label', value)}")
        return self.name + ("{" + ", ".join(shown) + "}" if shown else "")
