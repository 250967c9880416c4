"""What every family's description is made of: the names around the layers, the stacks, what a layer keeps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from passes.ir.architectures.config import Config, not_understood
from passes.ir.architectures.parts import EMPTY, Maker, Part, total
from passes.ir.heads import Head
from passes.ir.model import Block, Role, Stack
from passes.ir.state import ChunkedKV, FullKV, LayerState, SlidingKV
from passes.record import dataclass


@dataclass(frozen=True, slots=True)
class Names:
    """Where a decoder's tensors stand: `base` before `layers.{i}.`, embedding and final norm; `head` the output head."""

    base: str = "model."
    head: str = "lm_head"
    embedding: str = "embed_tokens"
    norm: str = "norm"


@dataclass(frozen=True, slots=True)
class Description:
    """Stacks and outer parts of a model, or of one of its towers."""

    stacks: tuple[Stack, ...]
    outer: Part = EMPTY

    def __add__(self, other: Description) -> Description:
        return Description(self.stacks + other.stacks, self.outer + other.outer)


#: Describes the decoder of one family.
Family = Callable[[Config, Maker, Names], Description]


def by_architecture(families: Mapping[str, Family]) -> Callable[[Config, str, Maker, Names], Description]:
    """Return what describes a decoder by the family of its architecture. It raises KeyError for one that is not in the table."""
    return lambda config, architecture, m, names: families[architecture](config, m, names)


def make_stack(name: str, prefix: str, blocks: Sequence[Block], first_index: int = 0) -> Stack:
    """Factor one block per layer into a stack of classes."""
    return Stack(name, prefix, (), (), first_index).with_blocks(tuple(blocks))


def decoder(names: Names, blocks: Sequence[Block], outer: Part, mtp: Sequence[Stack] = ()) -> Description:
    """Describe a decoder whose layers stand under `<base>layers.{i}.`."""
    return Description((make_stack("decoder", names.base + "layers.{i}.", blocks), *mtp), outer)


def ends(
    m: Maker, config: Config, names: Names, tied: bool, *, norm_bias: bool = False, head_bias: bool = False
) -> Part:
    """Make embedding, final norm and head; a tied head is not stored, except where the checkpoint has a copy of it."""
    hidden, vocab = config.integer("hidden_size", "n_embd", "d_model"), config.integer("vocab_size")
    part = m.embedding(names.base + names.embedding, vocab, hidden)
    part += m.norms(hidden, names.base + names.norm, bias=norm_bias)
    if tied and not m.has(f"{names.head}.weight", default=False):
        return part
    return part + m.head(names.head, vocab, hidden, bias=head_bias)


def with_head(description: Description, head: Head, config: Config, m: Maker) -> Description:
    """Return the description with a head in place of the language model's."""
    hidden = config.integer("hidden_size")
    labels = head.labels or config.integer("num_labels", default=max(1, len(config.mapping("id2label", {}) or (0, 1))))
    last = len(head.matrices) - 1
    own = total(
        *(
            m.linear(name, Role.OTHER, labels if number == last else hidden, hidden, bias=bias, quantizable=False)
            for number, (name, bias) in enumerate(head.matrices)
        )
    )
    kept = tuple(linear for linear in description.outer.linears if linear.role is not Role.HEAD)
    return Description(description.stacks, Part(kept, description.outer.tensors) + own)


def is_tied(config: Config, default: bool) -> bool:
    """Tell whether embedding and head share their weights."""
    return config.flag("tie_word_embeddings", default=default)


def attention_state(config: Config, layer_type: str, kv: FullKV) -> LayerState:
    """Choose the cache kind of an attention layer by its `layer_types` entry (transformers' names)."""
    sizes = (kv.kv_heads, kv.head_dim, kv.v_head_dim)
    if layer_type in ("full_attention", "attention"):
        return kv
    if layer_type == "sliding_attention":
        return SlidingKV(*sizes, window=config.integer("sliding_window"))
    if layer_type == "chunked_attention":
        return ChunkedKV(*sizes, chunk=config.integer("attention_chunk_size"))
    raise not_understood(config.name, f"{config.path}: layer type {layer_type!r} is not known")
