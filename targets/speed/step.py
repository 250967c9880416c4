"""Seconds of one engine step: a roofline over matrices, experts, cache and links, plus launch overheads.

A step runs `decode` sequences by one token each and `prefill` prompt tokens beside them (chunked prefill). Every matrix is read
once whatever the number of tokens; arithmetic and reading overlap imperfectly, so they are joined by a power mean.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from passes.formats.format import Format
from passes.record import dataclass
from targets.gpu import Network
from targets.speed.kernels import Kernel
from targets.speed.work import Attention, Experts, Matmul, Work

#: Exponent of the power mean that joins reading and computing: infinity would be the plain roofline, 1 no overlap at all.
OVERLAP = 3.0
#: Tokens that a query of sparse latent attention attends to (`index_topk` of DeepSeek-V3.2 and GLM-5), and heads that its kernel is made
#: for: fewer are padded (vLLM's `flashmla_sparse.py`: 64 on Hopper; tensor parallelism leaves 8 or 16 on a card).
_CHOSEN, _KERNEL_HEADS = 2048, 64
#: By which share one card's experts may have more to do than the mean of all cards'; assumed, as no row of the data has it.
_UNEVEN = 0.25


@dataclass(frozen=True, slots=True)
class Card:
    """What a step needs of a card: bytes a second, operations a second by arithmetic, bytes a second of one direction of its
    link to the others, and the kind of that link (`targets.speed.card.wiring_of`). `kernel`: which kernel the engine runs for a
    format on it. `capability`: CUDA compute capability or what another maker's card is like; 0 for a processor. `network`: what is
    between machines, where cards are of several. `bridge`: bytes a second of one direction of a bridge that joins two, where there is one.
    """

    kernel: Callable[[Format], Kernel]
    capability: float
    bandwidth: float
    flops: Mapping[str, float]
    link: float
    wiring: str
    network: Network | None = None
    bridge: float | None = None

    def rate(self, arithmetic: str) -> float:
        """Return operations a second; the 16-bit rate where the card has no faster one."""
        return self.flops.get(arithmetic) or self.flops["bf16"]


@dataclass(frozen=True, slots=True)
class Link:
    """What cards take to sum their activations over one kind of link: seconds whatever the size, seconds more a hop of the ring,
    and the fraction of the link's bytes a second that it reaches.
    """

    fixed_s: float
    hop_s: float
    share: float

    def all_reduce_s(self, bytes_sent: float, bytes_per_s: float, cards: int) -> float:
        """Return seconds of an all-reduce in which each card sends `bytes_sent` over a link of `bytes_per_s`."""
        return self.fixed_s + 2 * (cards - 1) * self.hop_s + bytes_sent / (bytes_per_s * self.share)


@dataclass(frozen=True, slots=True)
class Rates:
    """Efficiencies and overheads of one engine on one generation of cards.

    `memory`, `compute`: fraction of the card's peak by kernel family; `expert_memory`, `expert_compute`: the same for the kernels
    of routed experts. `cache`, `attention`: fraction of the bandwidth that reading the cache reaches, and of the 16-bit rate that
    attention over a prompt reaches.

    Seconds: `layer_s` per layer, `expert_layer_s` more where experts are routed, `recurrent_layer_s` where a state is kept,
    `kernel_layer_s` more per layer by kernel family (quantizing activations, unpacking), `step_s` per step, `sequence_s` per running
    sequence and step, `token_s` per prompt token and layer at a width of 4,096 (what is neither matrix nor attention). `links`: by kind.
    Of the host, before the first token: `host_s` a request, `serial_s` of a thread in turns, `template_s` more where it parses the template
    of a chat each time, `host_token_s` a prompt's token,
    `workers_s` a request more where cards are several, whose workers are processes of their own. `first_use_s`: what the first prompts
    after a start may wait for kernels of recurrent layers to be compiled. `launch_layer_s`: of the host, to launch a layer's kernels one by
    one, where no CUDA graph does it (eager): no step is shorter, however fast the card is; 0 with graphs. `sparse_whole`: the kernel of
    sparse attention computes as many tokens as may be chosen, whether there are so many or not.

    `tile`: rows that each hit expert's tokens are padded by, by kernel family. `routing`: exponent on the number of tokens, below 1
    because tokens share experts more than uniform routing would. `recurrence`: how much of a recurrent state a prompt's token moves,
    of what a generated one does.
    `occupancy`: cache a running request takes, over what its prompt and half its answer would. `graphs`: sequences of the largest CUDA
    graph that decoding runs as (0: none); a batch is padded to the next captured size (`padded`).
    """

    memory: Mapping[str, float]
    compute: Mapping[str, float]
    expert_memory: Mapping[str, float]
    expert_compute: Mapping[str, float]
    cache: float
    attention: float
    layer_s: float
    expert_layer_s: float
    recurrent_layer_s: float
    kernel_layer_s: Mapping[str, float]
    step_s: float
    sequence_s: float
    token_s: float
    links: Mapping[str, Link]
    tile: Mapping[str, float]
    routing: float
    recurrence: float
    host_s: float
    host_token_s: float
    occupancy: float
    graphs: int
    serial_s: float
    workers_s: float
    first_use_s: float
    template_s: float = 0.0
    launch_layer_s: float = 0.0
    sparse_whole: bool = False

    @property
    def eager(self) -> bool:
        """Whether kernels are launched one by one."""
        return self.launch_layer_s > 0

    def request_s(self, cards: int) -> float:
        """Return the seconds of the host between a request's being sent and the engine's seeing it, but for its prompt's tokens."""
        return self.host_s + (self.workers_s if cards > 1 else 0.0)


@dataclass(frozen=True, slots=True)
class Step:
    """What is in one step: `decode` sequences at a mean context of `context` tokens, and `prefill` tokens of `prompts` prompts,
    each of which attends to `prefill_context` tokens in the mean. `cache_bytes`: bytes of one cache element.
    """

    decode: float
    context: float
    prefill: float = 0.0
    prefill_context: float = 0.0
    prompts: float = 0.0
    cache_bytes: float = 2.0


def distinct_experts(copies: int, active: float, tokens: float) -> float:
    """Count the experts of a layer that at least one of `tokens` tokens is routed to, were routing uniform: E (1 - (1 - k/E)^n)."""
    return float(copies * (1.0 - (1.0 - active / copies) ** tokens))


def padded(sequences: float, graphs: int) -> float:
    """Return the rows that a step of so many decoding sequences computes: those of the next CUDA graph. `graphs`: rows of the largest.

    vLLM captures 1, 2, 4, multiples of 8 up to 256 and of 16 above (`config/vllm.py`, `cudagraph_capture_sizes`).
    """
    if sequences > graphs:
        return sequences
    for size in (1, 2, 4):
        if sequences <= size:
            return size
    unit = 8 if sequences <= 256 else 16
    return min(unit * math.ceil(sequences / unit), graphs)


def step_seconds(work: Work, card: Card, rates: Rates, step: Step, tp: int = 1, sharing: int = 1) -> float:
    """Return seconds of one step of a model spread over `tp` cards. `sharing`: replicas over whose cards its experts are spread, all of
    which step together and are as busy (vLLM's data parallel, whether experts are whole or cut).
    """
    return step_model(work, card, rates, tp, sharing)(step)


def step_model(work: Work, card: Card, rates: Rates, tp: int = 1, sharing: int = 1) -> Callable[[Step], float]:
    """Return what tells the seconds of steps (`step_seconds`), with all that depends on no step worked out."""
    overhead, head = overhead_seconds(work, card, rates), _matrix(work.head, card, rates, tp)
    matrices = [_matrix(matmul, card, rates, tp if matmul.sharded else 1) for matmul in work.matmuls]

    def seconds_of(step: Step) -> float:
        """Return the seconds of one step."""
        tokens = step.decode + step.prefill if step.prefill else padded(step.decode, rates.graphs)
        seconds = overhead + rates.sequence_s * step.decode
        seconds += rates.token_s * step.prefill * work.layers * work.hidden / 4096
        for read, weights, rate in matrices:
            seconds += _join(read, 2 * (weights * tokens) / rate)
        read, weights, rate = head
        seconds += _join(read, 2 * (weights * (step.decode + step.prompts)) / rate)
        for experts in work.experts:
            seconds += _experts_seconds(experts, card, rates, tokens * sharing, tp * sharing)
        if sharing > 1:
            seconds += exchange_seconds(work, card, rates, tokens, tp, sharing)
        for attention in work.attention:
            seconds += attention.layers * _attention_seconds(attention, card, rates, step, tp)
        moving = step.decode + rates.recurrence * step.prefill
        seconds += moving * work.state_bytes / tp / (card.bandwidth * rates.cache)
        if tp > 1:
            # ring all-reduce after attention and after the MLP; each moves 2 (tp - 1) / tp of the 16-bit activations
            moved = 2 * (tp - 1) / tp * 2 * work.hidden * tokens
            seconds += 2 * work.layers * _all_reduce_s(card, rates, moved, tp)
        return seconds

    return seconds_of


def _all_reduce_s(card: Card, rates: Rates, moved: float, cards: int) -> float:
    """Seconds of an all-reduce; a ring over several machines is as slow as the network between two of them."""
    kind, link = ("nvlink", card.bridge) if card.bridge and cards == 2 else (card.wiring, card.link)
    inside, network = rates.links[kind].all_reduce_s(moved, link, cards), card.network
    if network is None or cards <= network.cards:
        return inside
    return max(inside, moved / network.bytes_per_s) + 2 * (math.ceil(cards / network.cards) - 1) * network.latency_s


def exchange_seconds(work: Work, card: Card, rates: Rates, tokens: float, tp: int, sharing: int) -> float:
    """Return the seconds in which replicas that share their experts send each other a step's tokens, of so many each.

    In each layer with experts the hidden states of all replicas are gathered before, and their sums scattered after (vLLM's default
    `allgather_reducescatter`, `device_communicators/all2all.py`), a share of them by each rank of a replica (`use_sequence_parallel_moe`):
    together an all-reduce of all of them over all their cards.
    """
    cards = tp * sharing
    moved = 2 * (cards - 1) / cards * 2 * work.hidden * tokens * sharing
    return work.expert_layers * _all_reduce_s(card, rates, moved, cards)


def unseen_seconds(work: Work, card: Card, rates: Rates, step: Step, tp: int, sharing: int) -> float:
    """Return the seconds of a step that replicas which share their experts may take more than is expected of them: the exchange again, and
    a card whose experts are asked for more often than the others' (`_UNEVEN`), for which all wait.
    """
    tokens = step.decode + step.prefill
    experts = sum(_experts_seconds(each, card, rates, tokens * sharing, tp * sharing) for each in work.experts)
    return exchange_seconds(work, card, rates, tokens, tp, sharing) + _UNEVEN * experts


def handing_on_seconds(work: Work, card: Card, rates: Rates, tokens: float, tp: int, pp: int) -> float:
    """Return the seconds in which `pp` pipeline stages hand a step of so many tokens on, one to the next.

    Inside of a machine a message's own; between machines each sends vLLM's two tensors, hidden states and residual (`IntermediateTensors`),
    in 16 bit, over the network.
    """
    network, fixed = card.network, rates.links[card.wiring].fixed_s
    if network is None or tp > network.cards:
        return (pp - 1) * fixed
    between = math.ceil(tp * pp / network.cards) - 1
    return (pp - 1) * fixed + between * (network.latency_s + 2 * 2 * work.hidden * tokens / network.bytes_per_s)


def overhead_seconds(work: Work, card: Card, rates: Rates) -> float:
    """Return seconds a step takes however little is in it: launches, scheduling, sampling."""
    storages = {part.storage for part in work.matmuls} | {part.storage for part in work.experts}
    families = {card.kernel(storage).family for storage in storages}
    layer = rates.layer_s + sum(rates.kernel_layer_s.get(family, 0.0) for family in families)
    seconds = rates.step_s + layer * work.layers + rates.expert_layer_s * work.expert_layers
    return seconds + rates.recurrent_layer_s * work.recurrent_layers


def launch_seconds(work: Work, rates: Rates) -> float:
    """Return the seconds that launching a step's kernels takes of the host; layers with experts have twice as many."""
    return rates.launch_layer_s * (work.layers + work.expert_layers)


def _join(read: float, compute: float) -> float:
    if read < 0.02 * compute or compute < 0.02 * read:
        return max(read, compute)
    return float((read**OVERLAP + compute**OVERLAP) ** (1 / OVERLAP))


def _matrix(matmul: Matmul, card: Card, rates: Rates, share: int) -> tuple[float, float, float]:
    """A matrix of which each of `share` cards has its part: seconds to read that, its weights, and operations a second on them."""
    kernel = card.kernel(matmul.storage)
    read = matmul.bytes / share / (card.bandwidth * rates.memory[kernel.family])
    return read, matmul.weights / share, card.rate(kernel.arithmetic) * rates.compute[kernel.family]


def _experts_seconds(experts: Experts, card: Card, rates: Rates, tokens: float, tp: int) -> float:
    kernel = card.kernel(experts.storage)
    family = kernel.family
    hit = distinct_experts(experts.copies, experts.active, tokens**rates.routing if tokens > 1 else tokens)
    read = experts.bytes * hit / experts.copies / tp / (card.bandwidth * rates.expert_memory[family])
    rows = tokens * experts.active + hit * rates.tile[family]
    flops = 2 * experts.weights / experts.copies * rows / tp
    return _join(read, flops / (card.rate(kernel.arithmetic) * rates.expert_compute[family]))


def _attention_seconds(attention: Attention, card: Card, rates: Rates, step: Step, tp: int) -> float:
    """Seconds of one layer's attention: decoding reads the cache, a prompt computes."""
    if attention.sparse:
        return _sparse_seconds(attention, card, rates, step, tp)
    share = 1 if attention.latent else min(tp, attention.kv_heads)
    seen = min(step.context, attention.window) if attention.window else step.context
    seconds = (
        step.cache_bytes * attention.elements_per_token * seen * step.decode / share / (card.bandwidth * rates.cache)
    )
    if step.prefill:
        pairs = min(step.prefill_context, attention.window) if attention.window else step.prefill_context
        seconds += attention.pair_flops * pairs * step.prefill / tp / (card.rate("bf16") * rates.attention)
    return seconds


def _sparse_seconds(attention: Attention, card: Card, rates: Rates, step: Step, tp: int) -> float:
    """Seconds of one layer's sparse latent attention (DeepSeek-V3.2, vLLM's `flashmla_sparse.py`): of each token, decoded or of a prompt,
    an indexer scores all that it sees, whole on every card, and a kernel attends to those that it chooses, folded, at padded heads.
    """
    seen, prompt = min(step.context, _CHOSEN), min(step.prefill_context, _CHOSEN)
    attended = (_CHOSEN, _CHOSEN) if rates.sparse_whole else (seen, prompt)
    heads = math.ceil(attention.heads / tp / _KERNEL_HEADS) * _KERNEL_HEADS
    peak = card.rate("bf16") * rates.attention
    pair = 2 * heads * 2 * attention.elements_per_token / peak
    indexed = attention.index_flops / (card.rate("fp8") * rates.attention)
    read = step.cache_bytes * attention.elements_per_token * seen * step.decode / (card.bandwidth * rates.cache)
    seconds = _join(read, pair * attended[0] * step.decode) + indexed * step.context * step.decode
    return seconds + step.prefill * (pair * attended[1] + indexed * step.prefill_context)
