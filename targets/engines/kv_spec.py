"""What one layer asks of vLLM's cache allocator, and what that depends on besides the layer."""

from __future__ import annotations

import math

from passes.record import dataclass


@dataclass(frozen=True, slots=True)
class CacheSettings:
    """What the layout depends on besides the layers. `element_bytes`: of a cached key or value; `model_bytes`: of the model dtype.

    `state_bytes`: of an element of a recurrent layer's running state where the model leaves it open (None: the model dtype).
    `in_flight_tokens`: most tokens scheduled but not settled. `head_bytes`: of the scale beside each head's key, and each head's
    value, of a token. `prefix_caching`: recurrent layers keep two states a sequence then (vLLM's "align" mode). `context_parallel`: ranks
    over which the tokens of full layers are spread. `draft_tokens`: drafted a step, each of which keeps a state of its own.
    `latent_bytes`: of a token's latent where it is packed with its scales, 0 where its elements tell.
    """

    block_size: int
    element_bytes: float
    model_bytes: int
    tp: int
    in_flight_tokens: int
    prefix_caching: bool = True
    state_bytes: int | None = None
    mamba_alignment: int = 16
    head_bytes: int = 0
    context_parallel: int = 1
    draft_tokens: int = 0
    latent_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Spec:
    """One layer's cache. `kind`: full, sliding, chunked, mla, state, cross; `reach`: window or chunk in tokens, checkpoints of a state."""

    kind: str
    page_bytes: int
    block_size: int
    reach: int = 0

    @property
    def grows(self) -> bool:
        """Whether every token of a sequence is kept."""
        return self.kind in ("full", "mla")

    @property
    def slides(self) -> bool:
        """Whether the last tokens of a sequence are kept only."""
        return self.kind in ("sliding", "chunked")

    def blocks(self, length: int, settings: CacheSettings) -> int:
        """Count the blocks that one request of `length` tokens holds at most (the spec's `max_memory_usage_bytes` over its page)."""
        if self.kind == "state":
            # `reach` counts the checkpoints that a prefill exports besides (Mamba 2).
            return (2 + self.reach if settings.prefix_caching else 1) + settings.draft_tokens
        if self.kind == "sliding":
            return math.ceil(min(self.reach - 1 + settings.in_flight_tokens, length) / self.block_size) + 1
        if self.kind == "chunked":
            return math.ceil(min(self.reach + settings.in_flight_tokens, length) / self.block_size)
        if self.kind == "cross":
            return math.ceil(self.reach / self.block_size)
        return math.ceil(math.ceil(length / settings.context_parallel) / self.block_size)

    def held(self, settings: CacheSettings) -> int:
        """Count the blocks that a request holds while it decodes, of those that do not grow with it.

        Of states that is the one that is written, and those of drafted tokens: older ones stay for their prefix only while nobody
        needs their blocks (`MambaManager.remove_skipped_blocks` in `v1/core/single_type_kv_cache_manager.py`, 0.32).
        """
        return 1 + settings.draft_tokens if self.kind == "state" else self.blocks(0, settings)
