"""Blocks of the cache that nobody holds, in the order in which vLLM takes them (`v1/core/block_pool.py`, 0.32.0).

First those that hold nothing that is known, then what requests left behind, oldest first, and of each its last block first. Until it is
taken, a block is found again by the request that wrote it: one that lost its blocks begins where the first ones that are left end.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass


@dataclass(slots=True)
class Left:
    """What a request left behind: so many of its blocks are not taken yet, those right behind the `others` that it held with others."""

    blocks: int = 0
    others: int = 0


class FreeBlocks:
    """So many blocks, and where `remembers`, what is in them. Numbers without end are allowed: such blocks are never short."""

    def __init__(self, blocks: int, remembers: bool) -> None:
        self.count, self.remembers = blocks, remembers
        self._empty = blocks
        self._left: deque[Left] = deque()

    def take(self, blocks: int) -> None:
        """Take blocks, of which there must be so many."""
        self.count -= blocks
        if not self.remembers or not blocks:
            return
        taken = min(blocks, self._empty)
        self._empty -= taken
        blocks -= taken
        while blocks:
            oldest = self._left[0]
            taken = min(blocks, oldest.blocks)
            oldest.blocks -= taken
            blocks -= taken
            if not oldest.blocks:
                self._left.popleft()

    def give(self, blocks: int, known: int = 0, others: int = 0) -> Left:
        """Give blocks back, of which the first `known`, behind `others`, hold what may be found again."""
        self.count += blocks
        left = Left(known, others)
        if self.remembers:
            self._empty += blocks - known
            self._left.append(left)
        return left

    def find(self, left: Left) -> int:
        """Take back what is left of a request's own blocks. Returns how many."""
        blocks, left.blocks = left.blocks, 0
        self.count -= blocks
        return blocks
