"""Has an edited block follow the source's: the last matrix of its MLP takes back what is missing behind the block, whatever was cut.

What the blocks before have lost comes in with their outputs, so it is taken back as well. The change is the least-squares one
(`passes.algorithms.removal.error_fit`), as if it were added to the block's output, which holds where nothing stands behind that matrix.
Families with a norm there (Gemma) are tried: what does not bring a batch nearer to the source's is not taken.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from passes.algorithms.removal.error_fit import ErrorMoments, correction
from passes.ir.model import Block, Linear, Role
from passes.prune.units import dense_mlp
from passes.text.split import judging
from passes.walk.edit import BlockInputs

if TYPE_CHECKING:
    import torch


def last_matrix(block: Block) -> Linear | None:
    """Return the matrix that a block's MLP ends with; None where tokens have MLPs of their own."""
    return next((linear for linear in dense_mlp(block) if linear.role is Role.DOWN), None)


def followed(inputs: BlockInputs, last: Linear, columns: torch.Tensor | None) -> torch.Tensor | None:
    """Return the weight `[N, K]` with which a block comes nearest to the source's on its text; None where it stays.

    The block computes with its edited weights, and has sent every batch on. `columns`: those inputs of the matrix `last` that are left.
    """
    import torch

    replica = inputs.replica
    hidden, number = inputs.wanted()
    before = replica.parameter(f"{last.name}.weight").detach().float()
    if columns is None:
        columns = torch.arange(before.shape[1])
    columns = columns.to(before.device)
    fitted, judged = (ErrorMoments.zeros(len(before), len(columns), before.device) for _ in range(2))
    seen: list[torch.Tensor] = []

    def note(module: Any, args: tuple[Any, ...]) -> None:
        seen.append(args[0])

    handle = replica.module(last.name).register_forward_pre_hook(note)
    batches, size = len(inputs.hidden), len(hidden.read(number, 0))
    samples = (batches - 1) * size + len(hidden.read(number, batches - 1))
    try:
        for batch in range(batches):
            output = replica.run(inputs.hidden.read(replica.index, batch))
            missing = hidden.read(number, batch).to(output.device).float() - output.float()
            x_BTK, most = (
                seen.pop().view(*output.shape[:2], -1)[..., columns],
                samples - judging(samples) - batch * size,
            )
            most = max(0, most)
            fitted.add(x_BTK[:most].flatten(0, 1), missing[:most].flatten(0, 1))
            judged.add(x_BTK[most:].flatten(0, 1), missing[most:].flatten(0, 1))
    finally:
        handle.remove()
    change = correction(fitted, judged, last.name)
    if change is None:
        return None
    after = before.clone()
    after[:, columns] += change
    batch = len(inputs.hidden) - 1
    states, wanted = inputs.hidden.read(replica.index, batch), hidden.read(number, batch).to(before.device).float()
    distances = []
    for weight in (before, after):
        replica.put(f"{last.name}.weight", weight)
        distances.append(float((replica.run(states).float() - wanted).square().sum()))
    return after if distances[1] < distances[0] else None
