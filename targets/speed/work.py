"""What one step of a model has to read and compute, summed from its description.

Everything an engine's step time depends on, in a handful of numbers: bytes and multiplications by kernel, experts that can be
hit, cache elements a token, state a sequence. Sums are memoised per block class, so a plan's thousandth candidate costs a lookup.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache

from passes.formats.format import Format
from passes.ir.model import Block, Linear, ModelIR, Role, remembered
from passes.ir.state import ChunkedKV, CrossKV, FullKV, LatentKV, LayerState, NoState, Recurrent, SharedKV, SlidingKV
from passes.record import dataclass

#: Roles whose matrices every tensor-parallel rank keeps whole (DeepSeek's down projections, routers, indexers).
_FEED_FORWARD = frozenset({Role.GATE, Role.UP, Role.DOWN})
REPLICATED = frozenset({Role.ROUTER, Role.Q_DOWN, Role.KV_DOWN, Role.INDEXER, Role.SHARED_GATE})


@dataclass(frozen=True, slots=True)
class Matmul:
    """Matrices of one storage format that every token uses: bytes as stored, number of weights, over all their layers."""

    storage: Format
    sharded: bool
    bytes: int
    weights: int


@dataclass(frozen=True, slots=True)
class Experts:
    """Matrices of routed experts of one format, over `layers` layers: `copies` exist in a layer, a token uses `active`."""

    storage: Format
    copies: int
    active: float
    layers: int
    bytes: int
    weights: int


@dataclass(frozen=True, slots=True)
class Attention:
    """Layers with one kind of cache.

    `elements_per_token` of one layer; `pair_flops`: floating point operations for one (query token, cached token) pair of one
    layer while a prompt is prefilled; `window`: most tokens a query sees, 0 = all; `latent`: the cache is one for all heads,
    never sharded. `sparse`: a query attends to no more tokens than an indexer chooses, at `heads` heads; `index_flops`: operations of the
    indexer for one pair, which every card computes whole; 0 where there is none.
    """

    layers: int
    elements_per_token: int
    kv_heads: int
    pair_flops: int
    window: int
    latent: bool
    heads: int = 0
    index_flops: int = 0

    @property
    def sparse(self) -> bool:
        """Whether an indexer chooses what is attended to."""
        return self.index_flops > 0


@dataclass(frozen=True, slots=True)
class Work:
    """A model's work. `head`: the output head, used by sampled tokens only; `state_bytes`: recurrent state that a sequence reads and
    writes in a step. `layers`: pairs of a mixer (attention or a state) and a feed-forward part; a block of one of them is half a layer, as
    it has about half of its kernels and one of its two all-reduces.
    """

    matmuls: tuple[Matmul, ...]
    experts: tuple[Experts, ...]
    attention: tuple[Attention, ...]
    head: Matmul
    layers: float
    expert_layers: int
    recurrent_layers: int
    state_bytes: int
    hidden: int
    vocab: int


@remembered
def work_of(ir: ModelIR) -> Work:
    """Count the work of a model's decoder and head; towers beside it (vision, drafts) do not run while it generates."""
    decoder, counts = ir.decoder, ir.decoder.counts
    matmuls: Counter[tuple[Format, bool]] = Counter()
    matmul_weights: Counter[tuple[Format, bool]] = Counter()
    experts: dict[tuple[Format, int, float], list[int]] = {}
    attention: Counter[tuple[LayerState, int, int, int]] = Counter()
    state_bytes = expert_layers = recurrent_layers = 0
    halves = 0
    for block, count in counts:
        work = _block_work(block)
        for matmul in work.matmuls:
            matmuls[matmul.storage, matmul.sharded] += count * matmul.bytes
            matmul_weights[matmul.storage, matmul.sharded] += count * matmul.weights
        for expert in work.experts:
            sums = experts.setdefault((expert.storage, expert.copies, expert.active), [0, 0, 0])
            sums[0] += count
            sums[1] += count * expert.bytes
            sums[2] += count * expert.weights
        expert_layers += count * bool(work.experts)
        halves += count * _halves(block)
        state = decoder.block(block.state.source).state if isinstance(block.state, SharedKV) else block.state
        if isinstance(state, Recurrent):
            state_bytes += count * _state_bytes(state)
            recurrent_layers += count
        else:
            attention[state, block.heads, _latent_outputs(block), _index_flops(block)] += count
    return Work(
        matmuls=tuple(Matmul(f, s, b, matmul_weights[f, s]) for (f, s), b in matmuls.items()),
        experts=tuple(Experts(f, c, a, n, b, w) for (f, c, a), (n, b, w) in experts.items()),
        attention=tuple(
            kind for (state, *shape), n in attention.items() if (kind := _attention(state, n, *shape)) is not None
        ),
        head=_head(ir.outer, ir.tied_embeddings),
        layers=halves / 2,
        expert_layers=expert_layers,
        recurrent_layers=recurrent_layers,
        state_bytes=state_bytes,
        hidden=ir.hidden_size,
        vocab=ir.vocab_size,
    )


@dataclass(frozen=True, slots=True)
class _BlockWork:
    matmuls: tuple[Matmul, ...]
    experts: tuple[Experts, ...]


@lru_cache(maxsize=1 << 14)
def _block_work(block: Block) -> _BlockWork:
    matmuls: list[Matmul] = []
    experts: dict[tuple[Format, int, float], list[int]] = {}
    for linear in block.linears:
        if linear.copies > 1 and linear.active < linear.copies:
            sums = experts.setdefault((linear.storage, linear.copies, linear.active), [0, 0])
            sums[0] += linear.bytes
            sums[1] += linear.weights
        else:
            matmuls.append(Matmul(linear.storage, linear.role not in REPLICATED, linear.bytes, linear.weights))
    return _BlockWork(tuple(matmuls), tuple(Experts(f, c, a, 1, b, w) for (f, c, a), (b, w) in experts.items()))


def _latent_outputs(block: Block) -> int:
    """Outputs of the matrix that unfolds a latent cache: all heads' keys without rope, and values."""
    return sum(linear.out_features for linear in block.linears if linear.role is Role.KV_UP)


def _halves(block: Block) -> int:
    """Count a block's parts: a mixer, a feed-forward part."""
    feeds = any(linear.role in _FEED_FORWARD for linear in block.linears)
    return max(1, feeds + (not isinstance(block.state, NoState)))


def _index_flops(block: Block) -> int:
    """Operations of a sparse attention's indexer for one pair: a dot product of each of its heads, whose queries are its largest matrix."""
    return 2 * max((linear.out_features for linear in block.linears if linear.role is Role.INDEXER), default=0)


def _attention(state: LayerState, layers: int, heads: int, latent_outputs: int, index_flops: int) -> Attention | None:
    if isinstance(state, LatentKV):
        # prompts run unfolded, with full keys and values (DeepSeek-V2, arXiv 2405.04434, section 2.1; vLLM's MLA backends)
        flops = 2 * (latent_outputs + heads * state.rope_dim)
        chosen = index_flops if state.index_dim else 0
        return Attention(layers, state.elements_per_token, 1, flops, 0, True, heads, chosen)
    if isinstance(state, CrossKV) or not isinstance(state, FullKV):
        return None
    window = state.window if isinstance(state, SlidingKV) else state.chunk if isinstance(state, ChunkedKV) else 0
    flops = 2 * heads * (state.head_dim + state.v_head_dim)
    return Attention(layers, state.elements_per_token, state.kv_heads, flops, window, False)


_STATE_BYTES = {"F32": 4, "BF16": 2, "F16": 2}


def _state_bytes(state: Recurrent) -> int:
    """Bytes of one layer's state of one sequence, read and written once a step."""
    total = 0
    for part in state.parts:
        size = _STATE_BYTES.get(part.dtype or "BF16", 2)
        for axis in part.shape:
            size *= axis
        total += size
    return 2 * total


def _head(outer: tuple[Linear, ...], tied: bool) -> Matmul:
    """The output head; with tied embeddings the embedding matrix serves as one."""
    wanted = Role.EMBEDDING if tied else Role.HEAD
    for linear in outer:
        if linear.role is wanted:
            return Matmul(linear.storage, True, linear.bytes, linear.weights)
    raise ValueError("the description has no output head")
