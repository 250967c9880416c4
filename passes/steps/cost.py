"""What the steps of a run cost, as passes say it: work, memory and disk. A device's rates make seconds of work."""

from __future__ import annotations

from dataclasses import astuple

from passes.ir.model import ModelIR
from passes.ir.operations import columns_in_turn, compensation_operations, forward_operations, hessian_operations
from passes.record import dataclass

#: Bytes of a number of the hidden states on disk: fp32 where the processor lacks bf16.
_STATE_BYTES = 4


@dataclass(frozen=True, slots=True)
class Work:
    """What is computed, by kinds, because a device does each at a rate of its own. Of two works the sum, of one a multiple is a work.

    Floating-point operations: `forwards`; `hessians`; `compensation` of rounding errors; `errors` of matrices under a Hessian; `options`:
    EXL2's, all tried on every weight, in operations at the rate of a processor's forwards; `writing`: text that the model writes, a token
    at a time. Counted, because one waits for the other: `columns` of matrices, `positions` of that text times blocks. `moved`: bytes of
    weights that are read.
    """

    forwards: float = 0.0
    hessians: float = 0.0
    compensation: float = 0.0
    errors: float = 0.0
    options: float = 0.0
    writing: float = 0.0
    columns: float = 0.0
    positions: float = 0.0
    moved: float = 0.0

    def __add__(self, other: Work) -> Work:
        return Work(*(mine + others for mine, others in zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, times: float) -> Work:
        return Work(*(mine * times for mine in astuple(self)))

    def __bool__(self) -> bool:
        return any(astuple(self))


NOTHING = Work()


@dataclass(frozen=True, slots=True)
class StepCost:
    """One step: what is computed, bytes in memory at once beside the process, bytes in the work folder.

    0 where a step adds nothing, or nothing is known. `whole`: nothing of the memory can wait on the host or on disk, on a card too.
    """

    work: Work = NOTHING
    memory: float = 0.0
    disk: int = 0
    whole: bool = False


@dataclass(frozen=True, slots=True)
class WalkSize:
    """One walk over the calibration text on a machine: what the costs of passes are parts and multiples of.

    `samples`, `length`: sequences of the text, and tokens of each. `forwards`: forwards of a block that a token takes. Bytes in memory at
    once: `memory` of the whole walk, `least_memory` of it where batches and hidden states wait elsewhere, `block_memory` of the block at
    work, `batch_memory` of a batch that runs, `outer_memory` of the embedding and the logits of a batch.
    """

    samples: int
    length: int
    forwards: float = 1.0
    memory: float = 0.0
    least_memory: float = 0.0
    block_memory: float = 0.0
    batch_memory: float = 0.0
    outer_memory: float = 0.0

    @property
    def tokens(self) -> int:
        """Tokens of the text."""
        return self.samples * self.length

    def work(self, source: ModelIR) -> Work:
        """Return the work of the walk: forwards, a Hessian for each distinct input, compensation where there is text."""
        return Work(
            forwards=self.tokens * self.forwards * forward_operations(source),
            hessians=self.tokens * hessian_operations(source),
            compensation=compensation_operations(source) if self.tokens else 0.0,
            columns=columns_in_turn(source) if self.tokens else 0.0,
            moved=source.tensor_bytes,
        )


def states_bytes(source: ModelIR, tokens: int) -> int:
    """Return the bytes on disk of the hidden states of so many tokens between two blocks."""
    return tokens * source.hidden_size * _STATE_BYTES
