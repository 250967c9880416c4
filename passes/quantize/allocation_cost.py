"""What it takes to choose a format for every matrix: to measure what formats cost in KL, and to hold allocations against each other."""

from __future__ import annotations

from passes.ir.model import ModelIR, block_bytes
from passes.ir.operations import compensation_operations, forward_operations, head_operations, hessian_operations
from passes.steps.cost import NOTHING, StepCost, WalkSize, Work, states_bytes
from passes.text.split import FISHER_SEQUENCES, FITTED_SEQUENCES, judging

#: Allocations that are held against each other (`passes.measure.trial`).
_ALLOCATIONS = 3
#: Bytes that a weight of a block takes while the errors of two formats are held: measured once (`planner.apply_cost`).
_ERROR_BYTES = 12

#: The steps that choosing takes.
ALLOCATION_STEPS = ("measure formats", "compare allocations")


def allocation_cost(source: ModelIR, walk: WalkSize, extra: Work = NOTHING) -> dict[str, StepCost]:
    """Return the cost of `measure formats` and `compare allocations`; `extra`: work of a walk beyond the usual."""
    forward, head, hessians = forward_operations(source), head_operations(source), hessian_operations(source)
    fisher, tried = (min(walk.samples, count) * walk.length for count in (FISHER_SEQUENCES, FITTED_SEQUENCES))
    less = Work(forwards=forward, hessians=hessians) * (tried - walk.tokens)
    fitted = walk.work(source) + extra + less
    judged = Work(forwards=2 * judging(walk.samples) * walk.length * (forward + head), moved=2 * source.tensor_bytes)
    largest = max((block for block, _ in source.decoder.counts), key=block_bytes)
    errors = _ERROR_BYTES * sum(linear.weights for linear in largest.linears)
    depth = len(source.decoder.layers)
    return {
        "measure formats": StepCost(
            Work(
                forwards=3 * fisher * (forward + head),
                errors=compensation_operations(source),
                moved=2 * source.tensor_bytes,
            ),
            memory=max(walk.block_memory + 2 * walk.batch_memory + errors, walk.outer_memory),
            disk=(depth + 3) * states_bytes(source, fisher),
        ),
        "compare allocations": StepCost(
            (fitted + judged) * _ALLOCATIONS, memory=walk.memory, disk=2 * states_bytes(source, tried)
        ),
    }
