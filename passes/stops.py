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
from passes.inputs import Inputs, summed
from passes.ir.model import Linear

if TYPE_CHECKING:
    import torch

#: Stores a group of matrices given what was seen of their inputs (None: no token reached them); returns decoded weights.
Store = Callable[[Sequence[Linear], "Inputs | None"], Mapping[str, "torch.Tensor"]]


@dataclass(frozen=True)
class Lane:
    """One device's copy of the block, and the family's code around it."""

    decoder: Decoder
    layer: torch.nn.Module

    def module(self, linear: Linear) -> torch.nn.Module:
        """The module that a matrix of the description is here."""
        return self.decoder.module(self.layer, linear.name)


@dataclass
class Stops:
    """One pass of all batches through one block. `groups`: matrices stored together, because they read one input.

    Batch b goes through lane b mod n. What is looked at of their inputs: `products`: the Hessian; `magnitudes`: how large they get.
    """

    lanes: Sequence[Lane]
    index: int
    cache: CacheMaxima | None
    groups: Sequence[Sequence[Linear]]
    products: bool
    magnitudes: bool
    _finished: set[int] = field(default_factory=set)
    _inputs: dict[int, dict[int, Inputs]] = field(default_factory=dict)
    """What was seen before a group, by its number, then by lane."""

    def run(self, hidden: list[torch.Tensor], store: Store) -> None:
        """Replace each batch in `hidden` by the block's output."""
        from greenlet import getcurrent, greenlet

        scheduler = getcurrent()
        handles = [
            module.register_forward_pre_hook(self._hook(number, lane, scheduler))
            for number, group in enumerate(self.groups)
            for lane, each in enumerate(self.lanes) for module in map(each.module, group)
        ]  # fmt: skip
        try:
            waiting: dict[int, tuple[Any, int]] = {}
            for batch in range(len(hidden)):
                self._advance(greenlet(self._forward), hidden, batch, waiting, (batch, hidden[batch]))
            while waiting:
                number = min(group for _, group in waiting.values())
                self._install(store(self.groups[number], self._seen(number)))
                self._finished.add(number)
                for batch, (run, at) in sorted(waiting.items()):
                    if at == number:
                        self._advance(run, hidden, batch, waiting, ())
            for number in set(range(len(self.groups))) - self._finished:
                self._install(store(self.groups[number], None))
        finally:
            for handle in handles:
                handle.remove()

    def _forward(self, batch: int, hidden: torch.Tensor) -> torch.Tensor:
        lane = self.lanes[batch % len(self.lanes)]
        return lane.decoder.run(lane.layer, self.index, hidden, self.cache)

    def _seen(self, number: int) -> Inputs | None:
        """What all lanes saw before a group, on the first lane's device."""
        parts = self._inputs.pop(number, {})
        return summed([parts[lane] for lane in sorted(parts)], self.lanes[0].decoder.device) if parts else None

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

    def _hook(
        self, number: int, lane: int, scheduler: Any
    ) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], None]:
        def pause(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            if number in self._finished:
                return
            if self.products or self.magnitudes:
                seen = self._inputs.setdefault(number, {})
                if lane not in seen:
                    seen[lane] = Inputs(
                        args[0].shape[-1], args[0].device, products=self.products, magnitudes=self.magnitudes
                    )
                seen[lane].add(args[0])
            scheduler.switch(number)

        return pause

    def _install(self, decoded: Mapping[str, torch.Tensor]) -> None:
        for lane in self.lanes:
            for name, weight in decoded.items():
                lane.decoder.put(lane.layer, f"{name}.weight", weight)
