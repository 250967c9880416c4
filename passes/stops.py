"""The calibration batches of one block, each paused inside the family's own forward code at the next matrix to be stored.

A batch is a greenlet. It runs into the block until it reaches a matrix that is not finished; what that matrix would read is
noted, and the batch waits. When every batch waits at some matrix (or is through), the group that comes first is stored with
what its inputs told, and the batches that wait there go on with the decoded weight.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from passes.adapters import CacheMaxima, Decoder
from passes.inputs import Inputs
from passes.ir.model import Linear

if TYPE_CHECKING:
    import torch

#: Stores a group of matrices given what was seen of their inputs (None: no token reached them); returns decoded weights.
Store = Callable[[Sequence[Linear], "Inputs | None"], Mapping[str, "torch.Tensor"]]


@dataclass
class Stops:
    """One pass of all batches through one block. `groups`: matrices stored together, because they read one input.

    What is looked at of their inputs: `products`: the Hessian; `magnitudes`: how large they get.
    """

    decoder: Decoder
    layer: torch.nn.Module
    index: int
    cache: CacheMaxima | None
    groups: Sequence[Sequence[Linear]]
    products: bool
    magnitudes: bool
    _finished: set[int] = field(default_factory=set)
    _inputs: dict[int, Inputs] = field(default_factory=dict)

    def run(self, hidden: list[torch.Tensor], store: Store) -> None:
        """Replace each batch in `hidden` by the block's output."""
        from greenlet import getcurrent, greenlet

        scheduler = getcurrent()
        handles = [
            self.decoder.module(self.layer, linear.name).register_forward_pre_hook(self._hook(number, scheduler))
            for number, group in enumerate(self.groups) for linear in group
        ]  # fmt: skip
        try:
            waiting: dict[int, tuple[Any, int]] = {}
            for batch in range(len(hidden)):
                self._advance(greenlet(self._forward), hidden, batch, waiting, (hidden[batch],))
            while waiting:
                number = min(group for _, group in waiting.values())
                self._install(store(self.groups[number], self._inputs.pop(number, None)))
                self._finished.add(number)
                for batch, (run, at) in sorted(waiting.items()):
                    if at == number:
                        self._advance(run, hidden, batch, waiting, ())
            for number in set(range(len(self.groups))) - self._finished:
                self._install(store(self.groups[number], None))
        finally:
            for handle in handles:
                handle.remove()

    def _forward(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.decoder.run(self.layer, self.index, hidden, self.cache)

    def _advance(
        self,
        run: Any,
        hidden: list[torch.Tensor],
        batch: int,
        waiting: dict[int, tuple[Any, int]],
        args: tuple[Any, ...],
    ) -> None:
        """Let one batch run to its next stop or to the end of the block."""
        outcome = run.switch(*args)
        if run.dead:
            waiting.pop(batch, None)
            hidden[batch] = outcome
        else:
            waiting[batch] = (run, outcome)

    def _hook(self, number: int, scheduler: Any) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], None]:
        def pause(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            if number in self._finished:
                return
            if self.products or self.magnitudes:
                if number not in self._inputs:
                    self._inputs[number] = Inputs(
                        args[0].shape[-1], self.decoder.device, products=self.products, magnitudes=self.magnitudes
                    )
                self._inputs[number].add(args[0])
            scheduler.switch(number)

        return pause

    def _install(self, decoded: Mapping[str, torch.Tensor]) -> None:
        for name, weight in decoded.items():
            self.decoder.module(self.layer, name).weight.data = weight.to(self.decoder.device, self.decoder.dtype)
