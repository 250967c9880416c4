"""What a server is asked for beside its model and sizes: adapters, drafting, offload, media, graphs. Each moves its memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from passes.record import dataclass

if TYPE_CHECKING:
    from passes.ir.model import ModelIR


@dataclass(frozen=True, slots=True)
class Adapters:
    """LoRA adapters held on the card: how many at once, of which rank at most. `sharded`: both halves are cut by tensor parallelism."""

    rank: int = 16
    slots: int = 1
    sharded: bool = False
    element_bytes: int = 2


@dataclass(frozen=True, slots=True)
class Drafting:
    """Speculative decoding: so many `tokens` are drafted a step by a `method`. `own`: by layers of the model itself (MTP). `draft`: the
    model that drafts, None where none does (n-grams), or where nothing is known of it but its method (`assumed`).
    """

    method: str
    tokens: int
    own: bool = False
    draft: ModelIR | None = None
    whole: bool = False
    """The draft is on every rank whole, not cut."""
    assumed: bool = False


@dataclass(frozen=True, slots=True)
class Features:
    """Everything off or at the engine's default, unless asked.

    `offload_bytes`: of weights kept in the machine's memory, each rank. `text_only`: encoders of pictures and sound are not loaded;
    `media`: how many items of a kind (`image`, `video`, `audio`) a request may have, of kinds that are limited;
    `profiles_media`: they run in the profile run; `whole_encoders`: each rank holds them whole. `prefix_caching`: None, the engine's
    default. `graphs`: False captures none; `largest_graph`: the most tokens of a captured one. `cache_blocks`: of the cache, whatever
    the memory. `context_parallel`: ranks over which the tokens of the cache are spread. `state_bytes`, `convolution_bytes`: of an
    element of recurrent states. `pools`: it answers with vectors or scores, not with tokens.
    `expert_kernels`: what multiplies experts, by the engine's name; None, its choice. `whole_prompts`: prompts are not cut over steps.
    `reads_gguf`: the package that reads GGUF files stands beside an engine that reads none by itself.
    """

    adapters: Adapters | None = None
    drafting: Drafting | None = None
    offload_bytes: int = 0
    text_only: bool = False
    media: tuple[tuple[str, int], ...] = ()
    profiles_media: bool = True
    whole_encoders: bool = False
    prefix_caching: bool | None = None
    graphs: bool = True
    largest_graph: int | None = None
    cache_blocks: int | None = None
    context_parallel: int = 1
    state_bytes: int | None = None
    convolution_bytes: int | None = None
    pools: bool = False
    expert_kernels: str | None = None
    whole_prompts: bool = False
    reads_gguf: bool = False

    @property
    def pictures(self) -> int:
        """Pictures of a request at most, where their number is limited and no videos are let in; else 0."""
        media = dict(self.media)
        return media.get("image", 0) if media.get("video") == 0 else 0


#: A server that is asked for nothing besides.
PLAIN = Features()
