"""Runs every calibration batch into one block and pauses it, inside the family's own forward code, in front of the next matrix to be
stored.

A batch is a greenlet. It runs into the block until it reaches a matrix that is not finished; what that matrix would read is
noted, and the batch waits. When every batch waits at some matrix (or is through), the group that comes first is stored with
what its inputs told, and the batches that wait there go on with the decoded weight.

A batch that waits holds what the block has computed for it so far. Where the memory has no room for all of them, the others are
let go when they have said what they bring to their stop, and run again from the block's input when it is stored: the same values
on more forwards.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from passes.blocks.decoder import CacheMaxima
from passes.blocks.hidden_states import HiddenStates
from passes.blocks.input_statistics import InputStatistics, summed
from passes.blocks.stream import BlockReplica
from passes.ir.model import Linear

if TYPE_CHECKING:
    import torch

#: Stores a group of matrices given what was seen of their inputs (None: no token reached them); returns decoded weights.
Store = Callable[[Sequence[Linear], "InputStatistics | None"], Mapping[str, "torch.Tensor"]]


@dataclass(frozen=True)
class _Wait:
    """A batch that waits at the group `number`; `run` is None where it runs again."""

    run: Any
    number: int


@dataclass
class PausedBatches:
    """One pass of all batches through one block. `groups`: matrices stored together, because they read one input.

    Batch b goes through replica b mod n. What is looked at of their inputs: `products`: the Hessian; `magnitudes`: how large they get.
    `in_memory`: the first so many batches wait where they stopped, the others run again.
    """

    replicas: Sequence[BlockReplica]
    cache: CacheMaxima | None
    groups: Sequence[Sequence[Linear]]
    products: bool
    magnitudes: bool
    in_memory: int
    _finished: set[int] = field(default_factory=set)
    _inputs: dict[int, dict[int, InputStatistics]] = field(default_factory=dict)
    """What was seen before a group, by its number, then by replica."""

    def run(self, hidden: HiddenStates, store: Store) -> None:
        """Send every batch through the block: what they bring into the next one is in `hidden` afterwards."""
        import torch
        from greenlet import getcurrent

        scheduler = getcurrent()
        handles = [
            replica.module(linear.name).register_forward_pre_hook(self._hook(number, card, scheduler))
            for number, group in enumerate(self.groups)
            for card, replica in enumerate(self.replicas) for linear in group
        ]  # fmt: skip
        waiting: dict[int, _Wait] = {}
        # A batch that is paused leaves the gradient mode of its own forward behind: here it is off, and put back at the end.
        with torch.no_grad():
            try:
                self._all(hidden, store, waiting)
            finally:
                for wait in (
                    waiting.values()
                ):  # where storing failed: ended now, for what ends later would switch it off for all
                    if wait.run is not None:
                        wait.run.throw()
                for handle in handles:
                    handle.remove()

    def _all(self, hidden: HiddenStates, store: Store, waiting: dict[int, _Wait]) -> None:
        for batch in range(len(hidden)):
            self._advance(None, hidden, batch, waiting)
        while waiting:
            number = min(wait.number for wait in waiting.values())
            self._install(store(self.groups[number], self._seen(number)))
            self._finished.add(number)
            for batch, wait in sorted(waiting.items()):
                if wait.number == number:
                    self._advance(wait.run, hidden, batch, waiting)
        for number in set(range(len(self.groups))) - self._finished:
            self._install(store(self.groups[number], None))

    def _forward(self, batch: int, hidden: torch.Tensor) -> torch.Tensor:
        return self.replicas[batch % len(self.replicas)].run(hidden, self.cache)

    def _seen(self, number: int) -> InputStatistics | None:
        """What all replicas saw before a group, on the first one's device."""
        parts = self._inputs.pop(number, {})
        return summed([parts[card] for card in sorted(parts)], self.replicas[0].device) if parts else None

    def _advance(self, run: Any, hidden: HiddenStates, batch: int, waiting: dict[int, _Wait]) -> None:
        """Let one batch go on to its next stop or to the end of the block; from the block's input where none of it was kept."""
        from greenlet import greenlet

        if run is None:
            run = greenlet(self._forward)
            outcome = run.switch(batch, hidden.read(self.replicas[0].index, batch))
        else:
            outcome = run.switch()
        if run.dead:
            waiting.pop(batch, None)
            hidden.write(self.replicas[0].index + 1, batch, outcome)
            return
        if batch >= self.in_memory:
            run.throw()
            run = None
        waiting[batch] = _Wait(run, outcome)

    def _hook(
        self, number: int, card: int, scheduler: Any
    ) -> Callable[[torch.nn.Module, tuple[torch.Tensor, ...]], None]:
        def pause(module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
            if number in self._finished:
                return
            if self.products or self.magnitudes:
                seen = self._inputs.setdefault(number, {})
                if card not in seen:
                    seen[card] = InputStatistics(
                        args[0].shape[-1], args[0].device, products=self.products, magnitudes=self.magnitudes
                    )
                seen[card].add(args[0])
            scheduler.switch(number)

        return pause

    def _install(self, decoded: Mapping[str, torch.Tensor]) -> None:
        for replica in self.replicas:
            for name, weight in decoded.items():
                replica.put(f"{name}.weight", weight)
