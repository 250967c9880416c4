"""Tunes each block, as it is stored, to what the source's block puts out: within the walk, one block in memory.

    the source's own hidden states go on beside those of the walk, up to the block whose output this one has to give
    codes and scales of what was stored on integers, norms, biases and dense matrices follow the gradients of the distance
    what is stored is encoded anew, and every batch goes through the block again

The block reads what the blocks stored before it bring, and its target is what the source's brings (`passes.walk.source_outputs`): so it
takes back their errors too.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from passes.algorithms.learned.rounding import TunedMatrix, Tuning, tunable
from passes.blocks.hidden_states import HiddenStates
from passes.blocks.stream import BlockReplica
from passes.walk.block import BlockResult

if TYPE_CHECKING:
    import torch

#: The rates fall to this part of themselves.
_LAST = 0.1


class BlockTuning:
    """Tunes one block. `work`: what was stored of it; `names`: its tensors beside its matrices that are stored, by relative name."""

    def __init__(self, options: Tuning, replica: BlockReplica, work: BlockResult, names: Sequence[str]) -> None:
        import torch

        self._options, self._replica, self._work = options, replica, work
        self._matrices: dict[str, TunedMatrix] = {}
        for name, (linear, done) in work.done.items():
            if tunable(linear.storage.grid, done.quantized):
                assert done.quantized is not None and linear.storage.grid is not None
                weight = work.weights[f"{name}.weight"].to(replica.device)
                self._matrices[name] = TunedMatrix(weight, done.quantized, linear.storage.grid)
        known = dict(replica.layer.named_parameters())
        self._plain = {
            name: torch.nn.Parameter(known[path].detach().float().clone())
            for name in names
            if (path := replica.decoder.path(name)) in known and name.removesuffix(".weight") not in work.done
        }

    def run(self, hidden: HiddenStates, targets: tuple[HiddenStates, int]) -> dict[str, torch.Tensor]:
        """Tune on all batches, store what was tuned anew, and bring every batch through the block again.

        Returns the tensors beside the matrices that changed, by relative name.
        """
        import torch

        replica, (behind, number) = self._replica, targets
        rows = [(batch, row) for batch in range(len(hidden)) for row in range(len(hidden.read(replica.index, batch)))]
        length = hidden.read(replica.index, 0).shape[1]
        step_rows = rows_a_step(self._options, len(rows), length)
        steps = max(1, self._options.tokens // (step_rows * length))
        optimizer = torch.optim.AdamW(list(self._groups()), weight_decay=0.0, betas=(0.9, 0.95))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _falling(step, steps))
        generator = torch.Generator().manual_seed(self._options.seed + replica.index)
        order: list[int] = []
        states, wanted = (
            [held.read(at, batch).to(replica.device) for batch in range(len(hidden))]
            for held, at in ((hidden, replica.index), (behind, number))
        )
        with torch.enable_grad():
            for _ in range(steps):
                while len(order) < step_rows:
                    order += torch.randperm(len(rows), generator=generator).tolist()
                chosen, order = [rows[place] for place in order[:step_rows]], order[step_rows:]
                inputs = torch.stack([states[batch][row] for batch, row in chosen]).requires_grad_()
                output = self._forward(inputs)
                loss = relative_distance(output, torch.stack([wanted[batch][row] for batch, row in chosen]))
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
        return self._finish(hidden, states)

    def _groups(self) -> Iterator[dict[str, Any]]:
        options = self._options
        for matrix in self._matrices.values():
            yield {"params": [matrix.latent], "lr": options.latent_rate}
            yield {"params": [matrix.factor], "lr": options.scale_rate}
        for parameter in self._plain.values():
            size = float(parameter.detach().square().mean().sqrt())
            yield {"params": [parameter], "lr": options.plain_rate * max(size, 1e-6)}

    def _values(self) -> dict[str, torch.Tensor]:
        """What the block computes with, by path."""
        replica = self._replica
        values = {f"{name}.weight": matrix.weight() for name, matrix in self._matrices.items()} | self._plain
        return {replica.decoder.path(name): value.to(replica.decoder.dtype) for name, value in values.items()}

    def _forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """The block's output for hidden states `[B, T, D]` by its values as they are now."""
        from torch.func import functional_call

        replica, values = self._replica, self._values()

        def block(*args: Any, **kwargs: Any) -> Any:
            return functional_call(replica.layer, values, args, kwargs)

        return replica.decoder.run(block, replica.index, inputs)

    def _finish(self, hidden: HiddenStates, states: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        replica, work = self._replica, self._work
        for name, matrix in self._matrices.items():
            replica.put(f"{name}.weight", work.store_again(name, matrix.stored()))
        plain = {name: value.detach().to(work.weights[name].dtype) for name, value in self._plain.items()}
        for name, value in plain.items():
            replica.put(name, value)
        for batch, inputs in enumerate(states):
            hidden.write(replica.index + 1, batch, replica.run(inputs))
        return {name: value.cpu() for name, value in plain.items()}


def rows_a_step(options: Tuning, rows: int, length: int) -> int:
    """Return how many sequences of a text a step of tuning takes."""
    return min(rows, max(1, options.batch_tokens // length))


def relative_distance(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """Return the squared distance as a share of the target's square, over all tokens together.

    The few tokens whose states are ten times as large (a text's first one) are what all others attend to: taken as a share of each
    token's own size, their errors would count as those of any other, and the blocks behind would lose what the block at work gains.
    """
    output, target = output.float(), target.float()
    return (output - target).square().sum() / target.square().sum().clamp(min=1e-6)


def _falling(step: int, steps: int) -> float:
    """What is left of a rate: a cosine."""
    return _LAST + (1 - _LAST) * (1 + math.cos(math.pi * min(step, steps) / steps)) / 2
