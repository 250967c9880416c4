"""Computes how many bytes a run holds in memory at once. The run keeps to it (`passes.walk.paused_batches`, `passes.measure.evaluate`),
the plan predicts with it."""

from __future__ import annotations

import sys

from passes.ir.model import Block

#: Tokens that go through a block together.
BATCH_TOKENS = 4096
#: One part in so many of the memory may be taken by batches that wait inside a block: of the machine's, of a card's. There a forward that
#: is run again takes less than what the memory is wanted for otherwise.
LIVE_SHARE, CARD_LIVE_SHARE = 4, 16
#: One part in so many of what is free may be taken by hidden states: of a card's memory, of the machine's.
CARD_SHARE, HOST_SHARE = 8, 4
#: Tokens whose logits are held at once, and the bytes that a logit takes then: of each model as it computes, in fp32, its logarithm,
#: and what their difference is made of.
LOGIT_TOKENS, LOGIT_BYTES = 256, 32
#: What a batch that waits in front of the last matrix holds, in widths of the hidden states: input, residual, norm's output, attention's.
_HELD_STATES = 4


def waiting_bytes(block: Block, hidden_size: int, itemsize: int) -> int:
    """Return the bytes that a token holds at most while its batch waits inside a block: its states, twice what the widest matrix reads.

    Of experts only the states: what waits in front of one are the tokens that were routed to it.
    """
    widest = max((linear.in_features for linear in block.linears if linear.copies == 1), default=0)
    return (_HELD_STATES * hidden_size + 2 * widest) * itemsize


def waiting_room(memory_bytes: int, *, card: bool) -> int:
    """Return the bytes that batches may take while they wait inside a block, on a device with so much memory."""
    return memory_bytes // (CARD_LIVE_SHARE if card else LIVE_SHARE)


def live_batches(block: Block, hidden_size: int, batch_tokens: int, itemsize: int, room_bytes: int) -> int:
    """Return how many batches may wait inside a block that have so much room there; at least one.

    All of them where there are experts: to run again at each of as many stops would take days. There the text is what the memory has to
    hold, and a plan says how much that is.
    """
    if any(linear.copies > 1 for linear in block.linears):
        return sys.maxsize
    return max(1, room_bytes // (batch_tokens * waiting_bytes(block, hidden_size, itemsize)))
