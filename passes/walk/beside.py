"""What goes on beside the computing where a card computes: the next block's weights on their way to it, the last one's tensors to disk.

On the processor the same happens in between: there is nothing to do beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Self

from passes.blocks.dense_model import DenseModel
from passes.blocks.devices import pinned_copy
from passes.blocks.matrices import fused_parts

if TYPE_CHECKING:
    import torch


class _Beside:
    """A thread beside the caller's where a card computes, none on the processor. What it began is finished when its block is left."""

    def __init__(self, device: torch.device, name: str) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=name) if device.type == "cuda" else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *ended_by: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True)
        self.ended()

    def ended(self) -> None:
        """Do what is left once the thread has ended."""


class WeightsAhead(_Beside):
    """The weights of one block after the other, by relative name; of the next one while a block is at work, on the card already.

    Not so where a matrix is there whole and in parts (banks of experts, fused matrices): both share memory only where they were read.
    """

    def __init__(self, dense: DenseModel, device: torch.device) -> None:
        import torch

        super().__init__(device, "tightfit-read")
        self._dense, self._device = dense, device
        # One queue for all: torch keeps freed memory for the queue that it was allocated in.
        self._queue = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._ahead: tuple[int, Future[dict[str, torch.Tensor]]] | None = None

    def take(self, index: int) -> Mapping[str, torch.Tensor]:
        """Return the tensors of a block, and begin to read those of the next."""
        if self._pool is None or self._in_parts(index):
            return self._dense.block(index)
        ahead, self._ahead = self._ahead, None
        future = ahead[1] if ahead is not None and ahead[0] == index else self._pool.submit(self._read, index)
        tensors = future.result()
        if index + 1 < len(self._dense) and not self._in_parts(index + 1):
            self._ahead = (index + 1, self._pool.submit(self._read, index + 1))
        return tensors

    def _in_parts(self, index: int) -> bool:
        block = self._dense.ir.decoder.block(index)
        return bool(fused_parts(block)) or any(linear.stacking is not None for linear in block.linears)

    def _read(self, index: int) -> dict[str, torch.Tensor]:
        """A block on the card, by way of pinned memory and a queue of its own."""
        import torch

        assert self._queue is not None
        work = torch.cuda.default_stream(self._device)
        tensors = {}
        with torch.cuda.stream(self._queue):
            for name, tensor in self._dense.block(index).items():
                tensors[name] = pinned_copy(tensor).to(self._device, non_blocking=True)
                tensors[name].record_stream(work)  # freed there, not before what is queued there has read it
        self._queue.synchronize()
        return tensors

    def ended(self) -> None:
        """Let go of what was read ahead."""
        self._ahead = None


class WrittenBehind(_Beside):
    """Writes one thing at a time, beside what its caller does next where that is on a card; then records it, in the caller's thread.

    A write that failed raises when the next one is begun, or waited for.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__(device, "tightfit-write")
        self._pending: tuple[Future[None], Callable[[], None]] | None = None

    def ended(self) -> None:
        """Record what was written: whatever ends the work, it counts."""
        if self._pending is not None and self._pending[0].exception() is None:
            self.wait()

    def run(self, write: Callable[[], None], record: Callable[[], None]) -> None:
        """Write, and record it when it is written."""
        self.wait()
        if self._pool is None:
            write()
            record()
        else:
            self._pending = (self._pool.submit(write), record)

    def wait(self) -> None:
        """Return when everything that was begun is written and recorded."""
        if self._pending is not None:
            (written, record), self._pending = self._pending, None
            written.result()
            record()
