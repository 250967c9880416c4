"""ModelIR: a model's description, factored so that rewriting and summing it costs microseconds.

A model is a few *stacks* (the decoder; a vision tower, an MTP head where there is one) of layers, plus the matrices outside
them (embedding, head). A stack names each layer's *block class*; 80 equal layers are one class, and the 256 experts of a
layer are one `Linear` with `copies=256`. Sums over a class are memoised per (class, option), so DeepSeek-V3's 45,000
matrices cost as much as a handful. The exact list of tensors is expanded lazily by `tensors()`, for the chosen plan only:
it says tensor for tensor what the checkpoint on disk holds.

Nothing here imports torch. Every value is frozen; a pass makes a new ModelIR from an old one (`dataclasses.replace`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import field, fields
from enum import StrEnum
from functools import cached_property, lru_cache, wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from passes.formats.dense import Dense
from passes.formats.format import Format
from passes.formats.tensor import Tensor
from passes.ir.state import LayerState, NoState
from passes.record import dataclass, replace

#: A matrix stored as it is, in BF16.
DENSE = Dense()

#: The state of layers that keep nothing.
NO_STATE = NoState()


class Role(StrEnum):
    """What a matrix does. Tensor parallelism, fusion and quantization defaults follow from it."""

    EMBEDDING = "embedding"
    POSITION = "position"
    HEAD = "head"
    Q = "q"
    K = "k"
    V = "v"
    QKV = "qkv"
    O = "o"  # noqa: E741
    Q_DOWN = "q_down"
    Q_UP = "q_up"
    KV_DOWN = "kv_down"
    KV_UP = "kv_up"
    INDEXER = "indexer"
    GATE = "gate"
    UP = "up"
    GATE_UP = "gate_up"
    DOWN = "down"
    ROUTER = "router"
    SHARED_GATE = "shared_gate"
    MIXER_IN = "mixer_in"
    MIXER_OUT = "mixer_out"
    MIXER_GATE = "mixer_gate"
    PROJECTOR = "projector"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Stacking:
    """How the source stores a bank of experts as ONE tensor: `[copies, out, in]`, or `[copies, in, out]` when `transposed`.

    `tensor` is its whole name relative to the block. `parts` are the names (with `{e}`) and output rows that the bank splits
    into when a format stores each expert's matrices apart (`gate_up_proj` -> `gate_proj`, `up_proj`); interleaved when the
    rows of the parts alternate (gpt-oss).
    """

    tensor: str
    transposed: bool
    parts: tuple[tuple[str, int], ...]
    interleaved: bool = False


@dataclass(frozen=True, slots=True)
class Linear:
    """A weight matrix, or `copies` equal ones (the experts of a layer), by description.

    `name` is relative to the block (absolute outside of stacks), without `.weight`; `{e}` stands for the expert.
    `agree`: matrices of one block with the same key must take the same option (engines fuse them: q/k/v, gate/up, experts).
    `reads`: matrices of one block with the same key see the same input, so one Hessian serves them.
    `quantizable`: False for what every recipe keeps dense (embedding, head, router, vision tower).
    """

    name: str
    role: Role
    out_features: int
    in_features: int
    storage: Format = DENSE
    bias: str | None = None
    """dtype of the bias, None without one."""
    copies: int = 1
    active: float = 1
    """Copies that one token uses (experts per token); equals `copies` where all are used."""
    agree: str = ""
    reads: str = ""
    quantizable: bool = True
    stacking: Stacking | None = None
    shared_expert: bool = False

    @property
    def weights(self) -> int:
        """Number of weights, all copies, bias excluded."""
        return self.copies * self.out_features * self.in_features

    def tensors(self) -> Iterator[Tensor]:
        """Give the stored tensors, names still relative."""
        if self.stacking is not None and (whole := self._whole(self.stacking)) is not None:
            yield from whole
            if self.bias:
                yield Tensor(f"{self.stacking.tensor}_bias", self.bias, (self.copies, self.out_features))
            return
        parts = self.stacking.parts if self.stacking is not None else ((self.name, self.out_features),)
        for expert in range(self.copies):
            for part, rows in parts:
                name = part.replace("{e}", str(expert))
                yield from self.storage.tensors(name, rows, self.in_features)
                if self.bias:
                    yield Tensor(f"{name}.bias", self.bias, (self.storage.stored_rows(rows),))

    def _whole(self, stacking: Stacking) -> tuple[Tensor, ...] | None:
        """The bank as whole tensors, None where its format stores every expert apart."""
        if not isinstance(self.storage, Dense):
            return self.storage.stacked(stacking.tensor, self.copies, self.out_features, self.in_features)
        shape = (self.in_features, self.out_features) if stacking.transposed else (self.out_features, self.in_features)
        return (Tensor(stacking.tensor, self.storage.dtype, (self.copies, *shape)),)

    @property
    def bytes(self) -> int:
        """Bytes of all stored tensors of this matrix, all copies, bias included."""
        if self.stacking is not None:
            return self.copies * sum(t.bytes for t in replace(self, copies=1).tensors())
        rows = self.storage.stored_rows(self.out_features)
        bias = Tensor("", self.bias, (rows,)).bytes if self.bias else 0
        return self.copies * (self.storage.bytes(self.out_features, self.in_features) + bias)


class Block:
    """One class of layers: its matrices, its other tensors, what it keeps per sequence.

    Immutable, compared by content; its hash is computed once, because every memoised sum is keyed by it.
    """

    __slots__ = ("_hash", "heads", "linears", "state", "tensors")

    linears: tuple[Linear, ...]
    tensors: tuple[Tensor, ...]
    state: LayerState
    heads: int

    def __init__(
        self,
        linears: tuple[Linear, ...],
        tensors: tuple[Tensor, ...] = (),
        state: LayerState = NO_STATE,
        heads: int = 0,
    ) -> None:
        object.__setattr__(self, "linears", linears)
        object.__setattr__(self, "tensors", tensors)
        object.__setattr__(self, "state", state)
        object.__setattr__(self, "heads", heads)
        object.__setattr__(self, "_hash", hash((linears, tensors, state, heads)))

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"Block is immutable (tried to set {name})")

    def __reduce__(self) -> tuple[type[Block], tuple[Any, ...]]:
        """Travel to another process by content: a hash is of the process that computed it."""
        return Block, (self.linears, self.tensors, self.state, self.heads)

    def __hash__(self) -> int:
        return self._hash  # type: ignore[attr-defined,no-any-return]

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, Block) and (self.linears, self.tensors, self.state, self.heads) == (
            other.linears, other.tensors, other.state, other.heads,
        )  # fmt: skip

    def __repr__(self) -> str:
        return f"Block(linears={self.linears!r}, tensors={self.tensors!r}, state={self.state!r}, heads={self.heads})"

    def replace(self, **changes: Any) -> Block:
        """Change some fields of the block."""
        return Block(
            **({"linears": self.linears, "tensors": self.tensors, "state": self.state, "heads": self.heads} | changes)
        )

    def map_linears(self, change: Callable[[Linear], Linear]) -> Block:
        """Rewrite every matrix of the block by `change`."""
        return self.replace(linears=tuple(change(linear) for linear in self.linears))


@lru_cache(maxsize=1 << 14)
def block_bytes(block: Block) -> int:
    """Count the bytes that a layer of this class takes on disk, headers excluded."""
    return sum(linear.bytes for linear in block.linears) + sum(tensor.bytes for tensor in block.tensors)


@dataclass(frozen=True)
class Stack:
    """A run of layers: `prefix` holds `{i}` for the layer's index; `layers[i]` is an index into `classes`.

    `name` is `decoder`, `vision`, `audio`, `encoder` or `mtp`.
    """

    name: str
    prefix: str
    classes: tuple[Block, ...]
    layers: tuple[int, ...]
    first_index: int = 0

    @cached_property
    def counts(self) -> tuple[tuple[Block, int], ...]:
        """Each class with how many layers are of it."""
        layers = Counter(self.layers)
        return tuple((block, layers[index]) for index, block in enumerate(self.classes) if layers[index])

    def block(self, layer: int) -> Block:
        """Find the class of one layer (0-based position in this stack)."""
        return self.classes[self.layers[layer]]

    def layer_prefix(self, layer: int) -> str:
        """Name what the tensors of one layer begin with."""
        return self.prefix.replace("{i}", str(layer + self.first_index))

    def tensors(self) -> Iterator[Tensor]:
        """Give every tensor of the stack, with its full name."""
        for layer in range(len(self.layers)):
            prefix, block = self.layer_prefix(layer), self.block(layer)
            for linear in block.linears:
                for tensor in linear.tensors():
                    yield Tensor(prefix + tensor.name, tensor.dtype, tensor.shape)
            for tensor in block.tensors:
                yield Tensor(prefix + tensor.name, tensor.dtype, tensor.shape)

    def map_blocks(self, change: Callable[[Block], Block]) -> Stack:
        """Rewrite every class of the stack; equal classes stay one."""
        return replace(self, classes=tuple(change(block) for block in self.classes))

    def with_blocks(self, blocks: tuple[Block, ...]) -> Stack:
        """Take one block per layer, factored again into classes."""
        classes = tuple(dict.fromkeys(blocks))
        index = {block: position for position, block in enumerate(classes)}
        return replace(self, classes=classes, layers=tuple(index[block] for block in blocks))


@dataclass(frozen=True, slots=True)
class KVCache:
    """How the cache is kept: `dtype` by its name in `passes.formats.kv_dtypes`.

    `scales`: the checkpoint stores calibrated per-layer `k_scale` and `v_scale`. `declared`: the type that the checkpoint's config asks
    for where `dtype` is left open; whether it gets it is the engine's matter.
    """

    dtype: str = "auto"
    scales: bool = False
    declared: str | None = None


@dataclass(frozen=True, slots=True)
class LoadTime:
    """What the engine, not the checkpoint, does to the weights (bitsandbytes, online fp8): resident state only."""

    name: str = "none"


@dataclass(frozen=True)
class ModelIR:
    """A model's description. `config` is its config.json; it is carried along, never compared or hashed."""

    name: str
    architecture: str
    model_type: str
    dtype: str
    """safetensors dtype the model computes in: BF16, F16 or F32."""
    hidden_size: int
    vocab_size: int
    max_context: int
    stacks: tuple[Stack, ...]
    outer: tuple[Linear, ...]
    """Matrices outside the stacks, absolute names: embedding, head, projector."""
    outer_tensors: tuple[Tensor, ...] = ()
    """Other tensors outside the stacks, absolute names: the final norm."""
    tied_embeddings: bool = False
    kv_cache: KVCache = KVCache()
    load_time: LoadTime = LoadTime()
    quant_method: str | None = None
    """`quantization_config.quant_method` of an already quantized source; None for a dense one."""
    spread: float = 0.0
    """Relative 90 % half width of the bytes of its weights, where how they are stored is assumed; 0 where files or their config say it."""
    rounded_bits: float = 0.0
    """Bits a weight that the decoder's numbers were rounded to before they were read, as those of a GGUF; 0 where they were not."""
    config: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    notes: tuple[str, ...] = field(default=(), compare=False)
    """What was assumed or ignored while reading the model, for people."""

    def __getstate__(self) -> dict[str, Any]:
        """Travel to another process without what this one has computed, hashes among it."""
        return {each.name: self.__dict__[each.name] for each in fields(self)}

    def __hash__(self) -> int:
        return self._hash

    @cached_property
    def _hash(self) -> int:
        """Of what is compared; the planner looks up thousands of sums by it."""
        return hash((
            self.name, self.architecture, self.model_type, self.dtype, self.hidden_size, self.vocab_size, self.stacks, self.outer,
            self.kv_cache, self.load_time,
        ))  # fmt: skip

    @cached_property
    def decoder(self) -> Stack:
        """The stack that generates text."""
        return next(stack for stack in self.stacks if stack.name == "decoder")

    @cached_property
    def weights(self) -> int:
        """Number of weights in matrices and other tensors, of the description (exact for dense models)."""
        stacked = sum(
            count * (sum(map(_weights, block.linears)) + sum(tensor.elements for tensor in block.tensors))
            for stack in self.stacks
            for block, count in stack.counts
        )
        return stacked + sum(map(_weights, self.outer)) + sum(tensor.elements for tensor in self.outer_tensors)

    @cached_property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors of the checkpoint, headers excluded. From memoised sums."""
        stacked = sum(count * block_bytes(block) for stack in self.stacks for block, count in stack.counts)
        return stacked + sum(lin.bytes for lin in self.outer) + sum(t.bytes for t in self.outer_tensors)

    @cached_property
    def calibrated_scales(self) -> bool:
        """Whether the checkpoint holds scales of what flows through the model: keys and values, or a matrix's inputs."""
        blocks = (block for block, _ in self.decoder.counts)
        return self.kv_cache.scales or any(lin.storage.static_inputs for block in blocks for lin in block.linears)

    @cached_property
    def has_experts(self) -> bool:
        """Whether a block of the decoder has banks of experts."""
        return any(linear.copies > 1 for block, _ in self.decoder.counts for linear in block.linears)

    def tensors(self) -> Iterator[Tensor]:
        """Give every tensor of the checkpoint, with its full name. Lazy; for the chosen plan only."""
        for linear in self.outer:
            yield from linear.tensors()
        yield from self.outer_tensors
        for stack in self.stacks:
            yield from stack.tensors()

    def outer_names(self) -> list[str]:
        """List the names of the tensors outside of the decoder's blocks that no pass changes: dense ones, and towers."""
        names = [t.name for lin in self.outer if not lin.storage.is_quantized for t in lin.tensors()]
        names += [t.name for t in self.outer_tensors]
        for stack in self.stacks:
            if stack.name != "decoder":
                names += [tensor.name for tensor in stack.tensors()]
        return names

    def with_decoder(self, decoder: Stack) -> ModelIR:
        """Replace the decoder."""
        return replace(self, stacks=tuple(decoder if stack.name == "decoder" else stack for stack in self.stacks))


P = ParamSpec("P")
T = TypeVar("T")


def remembered(function: Callable[Concatenate[ModelIR, P], T]) -> Callable[Concatenate[ModelIR, P], T]:
    """Memoise a pure function of a description, and of hashable arguments, in the description itself.

    By the object, unlike `lru_cache`: descriptions that compare equal may differ in config and notes. What was found goes with it.
    """
    name = f"{function.__module__}.{function.__qualname__}"

    @wraps(function)
    def known(ir: ModelIR, /, *args: P.args, **kwargs: P.kwargs) -> T:
        found: dict[object, T] = vars(ir).setdefault(name, {})
        key = (args, *kwargs.items()) if kwargs else args
        try:
            return found[key]
        except KeyError:
            return found.setdefault(key, function(ir, *args, **kwargs))

    return known


def _weights(linear: Linear) -> int:
    return linear.weights + (linear.copies * linear.out_features if linear.bias else 0)


def untied_head(ir: ModelIR, storage: Format) -> Linear:
    """Make the output head of a model that ties it to its embedding a matrix of its own, by the name that readers know it by."""
    embedding = next(linear for linear in ir.outer if linear.role is Role.EMBEDDING)
    prefix = embedding.name.split("model.")[0] if "model." in embedding.name else ""
    name = f"{prefix}lm_head"
    return Linear(name, Role.HEAD, embedding.out_features, embedding.in_features, storage, quantizable=False)
