"""vLLM's KV-cache allocator as arithmetic: pages, groups, blocks, and the tokens and concurrency it prints.

A faithful model of vLLM 0.32's `get_kv_cache_groups`, `unify_kv_cache_spec_page_size`, `get_max_concurrency_for_kv_cache_config`
and the specs' `max_memory_usage_bytes`, with older versions' behaviour from `versions.Rules`. The test oracle
(`tests/engine`) loads tiny models of every cache kind into the real engine and compares the printed figures exactly.

    page      what one layer stores for one block of tokens (or, for a recurrent layer, its whole state)
    bucket    layers whose cache behaves alike; buckets are split into groups of equally many layers
    block     one page of every layer of a group: the unit that all groups draw from one pool
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property, lru_cache

from passes.formats.tensor import DTYPE_BITS
from passes.ir.state import (
    ChunkedKV,
    CompressedKV,
    CrossKV,
    FullKV,
    LatentKV,
    LayerState,
    NoState,
    Recurrent,
    SharedKV,
    SlidingKV,
    StatePart,
)
from passes.record import dataclass
from targets.engines.kv_spec import CacheSettings, Spec
from targets.engines.packed_layout import index_entry_bytes, packed_groups
from targets.engines.vllm.rules.versions import Rules


@dataclass(frozen=True)
class Layout:
    """How the cache of one rank is cut. `groups`: (spec, layers) each; `block_bytes`: what one block of the pool takes."""

    groups: tuple[tuple[Spec, int], ...]
    block_bytes: int
    settings: CacheSettings
    rules: Rules

    def blocks_per_request(self, length: int) -> int:
        """Count the blocks of the pool that one request of `length` tokens holds at most."""
        counted = self._counted
        if length not in counted:
            counted[length] = sum(spec.blocks(length, self.settings) for spec, _ in self.groups)
        return counted[length]

    @cached_property
    def _counted(self) -> dict[int, int]:
        """Blocks by length: the same few are asked for whatever is left for the cache."""
        return {}

    def request_bytes(self, length: int) -> int:
        """Return the bytes of the pool that one request of `length` tokens holds at most."""
        return self.blocks_per_request(length) * self.block_bytes

    def blocks(self, available_bytes: float) -> int:
        """Return how many blocks fit in the memory given to the cache."""
        return max(0, int(available_bytes // self.block_bytes)) if self.block_bytes else 0

    def starts(self, available_bytes: float, length: int) -> bool:
        """Return whether the engine accepts `length` as max_model_len."""
        reserved = self.block_bytes if self.rules.null_block else 0
        return self.request_bytes(length) <= available_bytes - reserved

    def concurrency(self, blocks: int, length: int) -> float:
        """Count the requests of `length` tokens that fit at once, as printed."""
        return blocks / self.blocks_per_request(length) if self.groups else math.inf

    def tokens(self, blocks: int, length: int) -> int:
        """Return the KV-cache size in tokens, as this version prints it."""
        if not self.groups:
            return 0
        if self.rules.tokens_from_concurrency:
            return int(self.concurrency(blocks, length) * length)
        return blocks // len(self.groups) * self.settings.block_size

    def longest(self, available_bytes: float, limit: int) -> int:
        """Return the longest context that one request may have (0: none), by bisection as the engine does."""
        if self.starts(available_bytes, limit):
            return limit
        low, high = 0, limit - 1 if self.starts(available_bytes, 1) else 0
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.starts(available_bytes, middle) else (low, middle - 1)
        return low

    def bytes_per_token(self) -> float:
        """Return what one more token of a long sequence takes: layers that keep every token only."""
        growing = sum(self.block_bytes / spec.block_size for spec, _ in self.groups if spec.grows)
        return growing / self.settings.context_parallel

    def windows(self) -> tuple[float, int]:
        """Return what a token inside a window takes, bytes, and how many tokens of a sequence are kept so once its prompt is computed."""
        kept = [
            (self.block_bytes / spec.block_size, spec.reach + spec.block_size) for spec, _ in self.groups if spec.slides
        ]
        each = sum(rate for rate, _ in kept)
        return each, round(sum(rate * tokens for rate, tokens in kept) / each) if each else 0

    def state_bytes(self) -> int:
        """Return the bytes that a sequence holds whatever its length while it decodes: states, and what it attends to across."""
        same = [spec.held(self.settings) for spec, _ in self.groups if not (spec.grows or spec.slides)]
        return sum(same) * self.block_bytes


def build_layout(states: Sequence[tuple[LayerState, int]], settings: CacheSettings, rules: Rules) -> Layout:
    """Return the layout of a rank that holds these layers, each kind with its count, in the model's order of first appearance."""
    return _build(tuple(states), settings, rules)


@lru_cache(maxsize=4096)
def _build(states: tuple[tuple[LayerState, int], ...], settings: CacheSettings, rules: Rules) -> Layout:
    compressed = [(state, count) for state, count in states if isinstance(state, CompressedKV)]
    if compressed and rules.hybrid_groups:
        groups, block_bytes = packed_groups(compressed, widest_group=rules.packs_widest_group)
        return Layout(groups, block_bytes, settings, rules)
    settings = _with_state_alignment(states, settings)
    buckets: dict[Spec, int] = {}
    for state, count in states:
        spec = layer_spec(state, settings, rules)
        if spec is not None:
            buckets[spec] = buckets.get(spec, 0) + count
    if not buckets:
        return Layout((), 0, settings, rules)
    if _uniform(buckets):
        # All layers need equally many slots: one group, whatever their page sizes.
        first = next(iter(buckets))
        page_bytes = sum(spec.page_bytes * count for spec, count in buckets.items())
        return Layout(((first, sum(buckets.values())),), page_bytes, settings, rules)
    groups, page, size = _split(_unified(buckets), rules)
    return Layout(groups, page * size, settings, rules)


def layer_spec(state: LayerState, settings: CacheSettings, rules: Rules) -> Spec | None:
    """Return what one layer stores; None where it stores nothing of its own."""
    block = settings.block_size
    if isinstance(state, NoState | SharedKV):
        return None
    if isinstance(state, LatentKV):
        elements = state.elements_per_token
        if rules.mla_alignment:
            elements = math.ceil(elements / rules.mla_alignment) * rules.mla_alignment
        page = block * settings.latent_bytes if settings.latent_bytes else _page(elements, block, settings)
        # An indexer's keys are a layer of their own in vLLM (`DeepseekV32IndexerCache`), in bytes whatever the cache's type.
        return Spec("mla", page + block * index_entry_bytes(state.index_dim), block)
    if isinstance(state, Recurrent):
        checkpoints = {"mamba2": rules.state_checkpoints, "gdn": rules.gdn_checkpoints}.get(state.kind, 0)
        return Spec("state", _state_bytes(state, settings), block, checkpoints)
    if isinstance(state, CompressedKV):
        entry = state.head_dim + state.index_dim
        if not state.ratio:
            return Spec("sliding", _page(entry, block, settings), block, state.window)
        return Spec("full", _page(math.ceil(entry * block / state.ratio), 1, settings), block)
    # A KV head that several ranks need is stored by each of them.
    heads = max(1, state.kv_heads // settings.tp)
    page = _page(heads * (state.head_dim + state.v_head_dim), block, settings) + 2 * heads * block * settings.head_bytes
    if isinstance(state, SlidingKV) and rules.hybrid_groups:
        return Spec("sliding", page, block, state.window)
    if isinstance(state, ChunkedKV) and rules.chunked_groups:
        return Spec("chunked", page, block, state.chunk)
    if isinstance(state, CrossKV):
        return Spec("cross", page, block, state.tokens)
    return Spec("full", page, block)


def _page(elements: int, block: int, settings: CacheSettings) -> int:
    return int(elements * block * settings.element_bytes)


def _state_bytes(state: Recurrent, settings: CacheSettings) -> int:
    return sum(_part_bytes(part, settings) for part in state.parts)


def _part_bytes(part: StatePart, settings: CacheSettings) -> int:
    if part.dtype:
        size = DTYPE_BITS[part.dtype] // 8
    else:
        # Convolutions keep inputs, in the model's dtype; what is summed over the sequence may be kept finer by the engine.
        size = settings.model_bytes if part.name.startswith("conv") else settings.state_bytes or settings.model_bytes
    sharded = part.sharded_axis >= 0 and part.shape[part.sharded_axis] % settings.tp == 0
    return math.prod(part.shape) // (settings.tp if sharded else 1) * size


def _with_state_alignment(states: tuple[tuple[LayerState, int], ...], settings: CacheSettings) -> CacheSettings:
    """Raise the attention block until its page is as large as the largest recurrent state (vLLM's hybrid rule)."""
    recurrent = [state for state, _ in states if isinstance(state, Recurrent)]
    attention = [state for state, _ in states if isinstance(state, FullKV | LatentKV)]
    if not recurrent or not attention:
        return settings
    state_bytes = max(_state_bytes(state, settings) for state in recurrent)
    first = attention[0]
    if isinstance(first, LatentKV):
        per_token, align = first.elements_per_token * settings.element_bytes, max(settings.block_size, 128)
    else:
        heads = max(1, first.kv_heads // settings.tp)
        per_token, align = heads * (first.head_dim + first.v_head_dim) * settings.element_bytes, settings.block_size
    align = max(align, settings.mamba_alignment)
    return replace(settings, block_size=max(settings.block_size, align * math.ceil(state_bytes / (align * per_token))))


def _uniform(buckets: dict[Spec, int]) -> bool:
    first = next(iter(buckets))
    if first.kind in ("full", "mla"):
        return all(spec.kind in ("full", "mla") for spec in buckets)
    return all(
        spec.kind == first.kind and spec.reach == first.reach and spec.block_size == first.block_size
        for spec in buckets
    )


def _unified(buckets: dict[Spec, int]) -> dict[Spec, int]:
    """Give all pages the size of the largest: attention by larger blocks where that divides, everything else by padding."""
    largest = max(spec.page_bytes for spec in buckets)
    out: dict[Spec, int] = {}
    for spec, count in buckets.items():
        changed = spec
        if spec.page_bytes != largest:
            divides = spec.kind != "state" and largest % spec.page_bytes == 0
            block = spec.block_size * (largest // spec.page_bytes) if divides else spec.block_size
            changed = replace(spec, page_bytes=largest, block_size=block)
        out[changed] = out.get(changed, 0) + count
    return out


def _split(buckets: dict[Spec, int], rules: Rules) -> tuple[tuple[tuple[Spec, int], ...], int, int]:
    """Split buckets into groups of equally many layers. Returns the groups, the page and the layers a group."""
    merged: dict[Spec, int] = {}
    for spec, count in buckets.items():
        # Full layers of one geometry merge whatever their origin; others by identity.
        merged[spec] = merged.get(spec, 0) + count
    least, most = min(merged.values()), max(merged.values())
    size = most if most < least * rules.group_slack else least
    groups = [(spec, size) for spec, count in merged.items() for _ in range(math.ceil(count / size))]
    return tuple(groups), next(iter(merged)).page_bytes, size
