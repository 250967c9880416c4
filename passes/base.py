"""The contract of a pass: one object that says everything of itself, to the planner and to what runs it.

`rewrite` changes the *description* of a model in microseconds; the planner calls it thousands of times. Running a pass (`resolve`,
`dense`, and the algorithm that it lends to `passes.walk`) changes the *weights*, once. The description after the last `rewrite` says
tensor for tensor what the checkpoint holds afterwards; `passes.run.execute` compares the two and refuses any difference.

A pass is a frozen dataclass whose fields are its options. It prints as `name{option=value, …}` and reads back from JSON. Nothing outside
of a pass's own file asks which class it is: what others must know of it is a line of this contract.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, Self

from passes.errors import Reason
from passes.ir.distortions import Distortion
from passes.ir.model import ModelIR
from passes.record import dataclass
from passes.steps.cost import StepCost, WalkSize

if TYPE_CHECKING:
    from passes.algorithms.learned.rounding import Tuning
    from passes.algorithms.method import Method
    from passes.blocks.dense_model import DenseModel
    from passes.steps.context import RunContext
    from passes.text.source import TextSource

#: The backend of what this project's own walk makes; every other name is an outside tool (`passes.backends`).
NATIVE = "native"


class Stage(StrEnum):
    """What a pass does to a model, in the order in which passes may stand in a chain.

    Pruning after quantization would throw away compensated errors, and cache scales must be seen on the final weights.
    """

    PRUNE = "prune"
    DISTILL = "distill"
    QUANTIZE = "quantize"
    KV_CACHE = "kv_cache"

    @property
    def repeatable(self) -> bool:
        """Whether several passes of this stage may stand in one chain."""
        return self is Stage.PRUNE


@dataclass(frozen=True)
class Pass(ABC):
    """A change to a model, on its description and on its weights."""

    #: Stable identifier, used in plans and on the command line.
    name: ClassVar[str]
    #: Its place in the order of a chain.
    stage: ClassVar[Stage]

    @abstractmethod
    def illegal(self, ir: ModelIR) -> tuple[Reason, ...]:
        """Say why this pass cannot be applied to this model; empty when it can."""

    @abstractmethod
    def rewrite(self, ir: ModelIR) -> ModelIR:
        """Return the description after the pass, exact to the byte. Pure; the pass must be legal."""

    def conflict(self, chain: Sequence[Pass]) -> Reason | None:
        """Say why it cannot stand in this chain, of which it is part; None where it can."""
        return None

    def missing(self, ir: ModelIR) -> str | None:
        """Say what `apply` lacks to run it on this model, in words; None where `apply` can."""
        return None

    def asks(self) -> str | None:
        """Say what it asks of others' servers while it runs, in words; None where of none. Raises InputError where that cannot be told."""
        return None

    def resolve(self, dense: DenseModel, run: RunContext) -> Self:
        """Measure the choice that this pass leaves open on the model that the passes before it left; return the pass with it filled in."""
        return self

    def dense(self, before: DenseModel, run: RunContext) -> DenseModel:
        """Return the dense model after the pass, which must be resolved: that before it where only its stored form changes."""
        return before

    @property
    def backend(self) -> str:
        """Who makes it: `native`, or an outside tool (`passes.backends`)."""
        return NATIVE

    @property
    def resolved(self) -> bool:
        """Whether every choice is made; False while some wait for a measurement (bytes are then at most so many)."""
        return True

    @property
    def load_time(self) -> bool:
        """Whether only the engine acts on it: the checkpoint stays as it is and `apply` does nothing."""
        return False

    @property
    def rounds_by(self) -> str | None:
        """The method by which it rounds weights (`gptq`); None where it rounds none."""
        return None

    @property
    def weights_name(self) -> str | None:
        """The name that `check --weights` takes for the format of its weights; None where it stores none."""
        return None

    @property
    def keeps_zeros(self) -> bool:
        """Whether weights that a pass before it has set to zero are zero afterwards."""
        return True

    @property
    def needs_text(self) -> bool:
        """Whether it reads calibration text: to measure its choice or to compensate errors; an outside tool always does.

        Scales of inputs and caches ask for text too; the description after the pass tells of them.
        """
        return self.backend != NATIVE or not self.resolved or self.reads_inputs

    @property
    def reads_inputs(self) -> bool:
        """Whether its own algorithm looks at calibration inputs; told without loading it (its `needs_hessian`)."""
        return False

    def algorithm(self, before: Method) -> Method:
        """Return the algorithm of the walk, given that of the passes before it."""
        return before

    @property
    def tuning(self) -> Tuning | None:
        """How the walk tunes each block that it has stored; None where the block stays as the algorithm left it."""
        return None

    def config(self, config: Mapping[str, Any], text: TextSource) -> dict[str, Any]:
        """Return the result's config.json with what no format of a matrix can know; `text`: the calibration text."""
        return dict(config)

    @classmethod
    def degrees(cls, ir: ModelIR) -> Iterator[Self]:
        """Yield the pass at the strengths that are worth weighing on a model where a spec says `allow`; none by default."""
        return iter(())

    def distortions(self, ir: ModelIR) -> tuple[Distortion, ...]:
        """Return what it does to the values of `ir`, the model that the chain begins with; empty where it changes none."""
        return ()

    def cost(self, source: ModelIR, walk: WalkSize) -> Mapping[str, StepCost]:
        """Return what it takes of steps, by their names in the certificate; under `walk` what it adds to the walk.

        `source`: the model that the chain begins with. `walk`: one walk over the calibration text.
        """
        return {}

    @property
    def choice_steps(self) -> tuple[str, ...]:
        """The names of the steps that making its open choice takes, in their order; none where no choice is open, or a tool makes it."""
        return ()

    def options(self) -> dict[str, Any]:
        """Return the options by name, as they are written to JSON."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def with_options(self, **known: Any) -> Self:
        """Return the pass with those of its options replaced that are named; names that it has no option for are passed over."""
        own = {field.name for field in dataclasses.fields(self)}
        return dataclasses.replace(self, **{name: value for name, value in known.items() if name in own})

    def title(self) -> str:
        """Return what a person is told of it, such as `drop 3 blocks`."""
        return f"{self.name} {', '.join(f'{name}={value}' for name, value in self.options().items())}".strip()

    def text(self) -> str:
        """Return `name{option=value, …}`, options at their default left out: what candidates' labels are made of."""
        shown = []
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value != field.default:
                shown.append(f"{field.name}={getattr(value, 'label', value)}")
        return self.name + ("{" + ", ".join(shown) + "}" if shown else "")
