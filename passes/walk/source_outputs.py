"""What the source's blocks put out, made as a walk comes to need it: the target of what it makes of the same text.

The source's own hidden states go on beside those of the walk. Where blocks were dropped, the target of the last block before a gap lies
behind the gap.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

from passes.blocks.dense_model import DenseModel
from passes.blocks.hidden_states import HiddenStates
from passes.blocks.stream import BlockStream
from passes.steps.context import RunContext


class Targets:
    """The source's hidden states behind its blocks, made as the walk comes to need them."""

    def __init__(self, dense: DenseModel, run: RunContext, batch_tokens: int) -> None:
        source = dense.origin or dense
        kept = dense.origin_blocks or tuple(range(len(dense)))
        self._behind = (*kept[1:], len(source))
        self._source, self._run, self._batch_tokens = source, run, batch_tokens
        self._blocks: Iterator[Any] | None = None
        self._made = 0

    @cached_property
    def _stream(self) -> BlockStream:
        return BlockStream(self._source, self._run, self._batch_tokens)

    def behind(self, index: int) -> tuple[HiddenStates, int]:
        """Return the hidden states that a block of the walk has to give, and under which number of the source's blocks they are kept."""
        wanted = self._behind[index]
        if self._blocks is None:
            self._made = self._stream.reached()
            if self._made > wanted:
                self._made = 0
                self._stream.hidden.clear()
            self._blocks = self._stream.blocks(self._made)
        while self._made < wanted:
            block = next(self._blocks)
            with block.loaded() as replicas:
                block.run(replicas)
            self._made = block.index + 1
        return self._stream.hidden, wanted

    def clear(self) -> None:
        """Forget everything."""
        self._stream.hidden.clear()
