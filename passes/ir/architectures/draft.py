"""From the blocks of a family to a ModelIR: what every decoder has around its layers."""

from __future__ import annotations

from collections.abc import Sequence

from passes.ir.architectures.config import Config, not_understood
from passes.ir.architectures.parts import Maker, Part
from passes.ir.model import Block, ModelIR, Stack
from passes.ir.state import ChunkedKV, FullKV, LayerState, SlidingKV


def make_stack(name: str, prefix: str, blocks: Sequence[Block], first_index: int = 0) -> Stack:
    """A stack from one block per layer, factored into classes."""
    return Stack(name, prefix, (), (), first_index).with_blocks(tuple(blocks))


def make_ir(
    config: Config,
    root: Config,
    dtype: str,
    stacks: Sequence[Stack],
    outer: Part,
    *,
    tied: bool,
    max_context: int | None = None,
) -> ModelIR:
    """The IR of a model: `config` is that of the text decoder, `root` the whole config.json."""
    architectures = root.get("architectures", default=[])
    return ModelIR(
        name=root.name,
        architecture=architectures[0] if architectures else "",
        model_type=root.text("model_type", ""),
        dtype=dtype,
        hidden_size=config.int("hidden_size", "n_embd"),
        vocab_size=config.int("vocab_size"),
        max_context=max_context
        or config.int("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length"),
        stacks=tuple(stacks),
        outer=outer.linears,
        outer_tensors=outer.tensors,
        tied_embeddings=tied,
        config=root.values,
    )


def ends(
    m: Maker, config: Config, *, prefix: str, tied: bool, head: str = "lm_head", embedding: str = "embed_tokens", norm: str = "norm",
    norm_bias: bool = False, head_bias: bool = False,
) -> Part:  # fmt: skip
    """Embedding, final norm and head; a tied head is not stored."""
    hidden, vocab = config.int("hidden_size", "n_embd"), config.int("vocab_size")
    start = m.embedding(prefix + embedding, vocab, hidden)
    end = m.norms(hidden, prefix + norm, bias=norm_bias)
    return start + end if tied else start + end + m.head(head, vocab, hidden, bias=head_bias)


#: `layer_types` as transformers writes them, and what such a layer keeps.
FULL_TYPES = frozenset({"full_attention", "attention"})
SLIDING_TYPES = frozenset({"sliding_attention"})


def attention_state(
    config: Config, layer_type: str, kv: FullKV, window: int | None = None, chunk: int | None = None
) -> LayerState:
    """The cache kind of an attention layer by its `layer_types` entry."""
    sizes = (kv.kv_heads, kv.head_dim, kv.v_head_dim)
    if layer_type in FULL_TYPES:
        return kv
    if layer_type in SLIDING_TYPES:
        return SlidingKV(*sizes, window=config.int("sliding_window") if window is None else window)
    if layer_type == "chunked_attention":
        return ChunkedKV(*sizes, chunk=config.int("attention_chunk_size") if chunk is None else chunk)
    raise not_understood(config.name, f"{config.path}: layer type {layer_type!r} is not known")
