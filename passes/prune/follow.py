"""Has an edited block follow the source's: the last matrix of its MLP takes back what is missing behind the block, whatever was cut.

What the blocks before have lost comes in with their outputs, so it is taken back as well. The change is the least-squares one
(`passes.algorithms.removal.error_fit`), as if it were added to the block's output, which holds where nothing stands behind that matrix.
Families with a norm there (Gemma) are tried: what does not bring a batch nearer to the source's is not taken.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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


class SeenInputs:
    """What a block's last matrix reads of each batch while the batches go through it, of as many as may wait in memory: `[B, T, K]`."""

    def __init__(self, inputs: BlockInputs, last: Linear) -> None:
        self._inputs, self._module = inputs, inputs.replica.module(last.name)
        self._seen: list[torch.Tensor] = []

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Note what is read meanwhile. Batches come in their order; those that memory has no room for come again, which changes nothing."""
        most = min(self._inputs.in_memory, len(self._inputs.hidden))

        def note(module: Any, args: tuple[Any, ...]) -> None:
            if len(self._seen) < most:
                self._seen.append(args[0])

        handle = self._module.register_forward_pre_hook(note)
        try:
            yield
        finally:
            handle.remove()

    def read(self, batch: int) -> torch.Tensor:
        """Return what it reads of a batch, which goes through the block again where that was not kept."""
        if batch < len(self._seen):
            return self._seen[batch]
        again: list[torch.Tensor] = []
        handle = self._module.register_forward_pre_hook(lambda module, args: again.append(args[0]))
        try:
            self._inputs.replica.run(self._inputs.hidden.read(self._inputs.replica.index, batch))
        finally:
            handle.remove()
        return again.pop()


def followed(inputs: BlockInputs, last: Linear, seen: SeenInputs, columns: torch.Tensor | None) -> torch.Tensor | None:
    """Return the weight `[N, K]` with which a block comes nearest to the source's on its text; None where it stays.

    The block computes with its edited weights, and has sent every batch on. `columns`: those inputs of the matrix `last` that are left.
    """
    import torch

    replica, hidden = inputs.replica, inputs.hidden
    targets, number = inputs.wanted()
    before = replica.parameter(f"{last.name}.weight").detach().float()
    if columns is None:
        columns = torch.arange(before.shape[1])
    columns = columns.to(before.device)
    fitted, judged = (ErrorMoments.zeros(len(before), len(columns), before.device) for _ in range(2))

    def missing(batch: int, output: torch.Tensor) -> torch.Tensor:
        return targets.read(number, batch).to(before.device).float() - output.to(before.device).float()

    batches, size = len(hidden), len(targets.read(number, 0))
    samples = (batches - 1) * size + len(targets.read(number, batches - 1))
    for batch in range(batches):
        error = missing(batch, hidden.read(replica.index + 1, batch))
        x_BTK = seen.read(batch).view(*error.shape[:2], -1)[..., columns]
        most = max(0, samples - judging(samples) - batch * size)
        fitted.add(x_BTK[:most].flatten(0, 1), error[:most].flatten(0, 1))
        judged.add(x_BTK[most:].flatten(0, 1), error[most:].flatten(0, 1))
    change = correction(fitted, judged, last.name)
    if change is None:
        return None
    after = before.clone()
    after[:, columns] += change
    batch = batches - 1
    left = float(missing(batch, hidden.read(replica.index + 1, batch)).square().sum())
    replica.put(f"{last.name}.weight", after)
    nearer = float(missing(batch, replica.run(hidden.read(replica.index, batch))).square().sum()) < left
    return after if nearer else None
