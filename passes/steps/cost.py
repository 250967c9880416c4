"""What the steps of a run cost, as passes say it: operations, memory and disk. A machine's rate makes seconds of operations."""

from __future__ import annotations

from dataclasses import dataclass

from passes.ir.model import ModelIR
from passes.ir.operations import compensation_operations, forward_operations, hessian_operations

#: Bytes of a number of the hidden states on disk: fp32 where the processor lacks bf16.
_STATE_BYTES = 4


@dataclass(frozen=True, slots=True)
class StepCost:
    """One step: floating-point operations at the rate of forwards, bytes in memory at once beside the process, bytes in the work folder.

    0 where a step adds nothing, or nothing is known.
    """

    operations: float = 0.0
    memory: float = 0.0
    disk: int = 0


@dataclass(frozen=True, slots=True)
class WalkSize:
    """One walk over the calibration text on a machine: what the costs of passes are parts and multiples of.

    `samples`, `length`: sequences of the text, and tokens of each. `forwards`: forwards of a block that a token takes. Bytes in memory at
    once: `memory` of the whole walk, `block_memory` of the block at work, `batch_memory` of a batch that runs, `outer_memory` of the
    embedding and the logits of a batch.
    """

    samples: int
    length: int
    forwards: float = 1.0
    memory: float = 0.0
    block_memory: float = 0.0
    batch_memory: float = 0.0
    outer_memory: float = 0.0

    @property
    def tokens(self) -> int:
        """Tokens of the text."""
        return self.samples * self.length

    def operations(self, source: ModelIR) -> float:
        """Return the operations of the walk: forwards, a Hessian for each distinct input, compensation where there is text."""
        walk = self.tokens * (self.forwards * forward_operations(source) + hessian_operations(source))
        return walk + (compensation_operations(source) if self.tokens else 0)


def states_bytes(source: ModelIR, tokens: int) -> int:
    """Return the bytes on disk of the hidden states of so many tokens between two blocks."""
    return tokens * source.hidden_size * _STATE_BYTES
