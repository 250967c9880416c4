"""What a layer keeps per sequence while a model generates: its cache kind. Values only; engines turn them into bytes.

All sizes are in elements, so that a KV dtype can be chosen later, except `Recurrent`, whose parts have dtypes of their own.
"""

from __future__ import annotations

from passes.record import dataclass


@dataclass(frozen=True, slots=True)
class FullKV:
    """Keys and values of every token so far: MHA, GQA (`kv_heads` < heads) or MQA (`kv_heads` = 1)."""

    kv_heads: int
    head_dim: int
    v_head_dim: int

    @property
    def elements_per_token(self) -> int:
        """Key and value elements one token adds, all KV heads."""
        return self.kv_heads * (self.head_dim + self.v_head_dim)


@dataclass(frozen=True, slots=True)
class SlidingKV(FullKV):
    """Keys and values of the last `window` tokens only."""

    window: int


@dataclass(frozen=True, slots=True)
class ChunkedKV(FullKV):
    """Keys and values of the current chunk of `chunk` tokens only (Llama 4's local layers)."""

    chunk: int


@dataclass(frozen=True, slots=True)
class LatentKV:
    """Multi-head latent attention (DeepSeek V2, arXiv 2405.04434): one shared latent and one rope key a token.

    `index_dim`: elements a token of the sparse-attention indexer's own key cache (DeepSeek V3.2), 0 where there is none.
    """

    latent_rank: int
    rope_dim: int
    index_dim: int = 0

    @property
    def elements_per_token(self) -> int:
        """Latent and rope elements one token adds; never divided by tensor parallelism."""
        return self.latent_rank + self.rope_dim


@dataclass(frozen=True, slots=True)
class StatePart:
    """One tensor of a recurrent state, for one sequence; `sharded_axis` is the one that tensor parallelism divides."""

    name: str
    shape: tuple[int, ...]
    dtype: str | None = None
    """safetensors dtype; None = the model's own."""
    sharded_axis: int = 0


@dataclass(frozen=True, slots=True)
class Recurrent:
    """State of constant size a sequence: `kind` is `mamba1`, `mamba2`, `gdn` (gated delta net), `kda`, `short_conv` or `lightning`."""

    kind: str
    parts: tuple[StatePart, ...]


@dataclass(frozen=True, slots=True)
class SharedKV:
    """Reads the cache of an earlier layer and keeps none of its own (Gemma 3n/4). `source` is that layer's index."""

    source: int


@dataclass(frozen=True, slots=True)
class CrossKV(FullKV):
    """Keys and values of an encoder's output (`tokens` of them at most), computed once a sequence (Llama 3.2 Vision)."""

    tokens: int


@dataclass(frozen=True, slots=True)
class CompressedKV:
    """Keys that serve as values too, the last `window` tokens plus one entry for every `ratio` tokens (DeepSeek V4).

    `head_dim` elements an entry, one head; `ratio` 0: the window only. `index_dim`: elements an entry of the indexer's cache.
    """

    head_dim: int
    window: int
    ratio: int
    index_dim: int = 0


@dataclass(frozen=True, slots=True)
class NoState:
    """A layer that keeps nothing between tokens (an MLP-only block, an encoder block)."""


LayerState = FullKV | SlidingKV | ChunkedKV | LatentKV | Recurrent | SharedKV | CrossKV | CompressedKV | NoState
