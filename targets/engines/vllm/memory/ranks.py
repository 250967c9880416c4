"""What every rank's share of a card is spent on, the rank that is left with least cache, and why that does not do."""

from __future__ import annotations

from collections.abc import Iterator

from passes.errors import Reason, ReasonKind
from passes.ir.model import ModelIR, remembered
from passes.ir.purpose import purpose
from passes.ir.state import Recurrent
from passes.record import replace
from targets.engines.accounting import weights_quantity
from targets.engines.engine import Memory, Settings
from targets.engines.kv_layout import Layout, build_layout
from targets.engines.vllm.defaults import batched_tokens, default_sequences
from targets.engines.vllm.memory import activations
from targets.engines.vllm.memory.cache import cache_settings, stage_states
from targets.engines.vllm.memory.encoder import whole_item
from targets.engines.vllm.memory.features import draft_states, weights_of_stages, with_state_types, without_encoders
from targets.engines.vllm.rules.runner import has_states, subtracts_graphs
from targets.engines.vllm.rules.versions import Rules
from targets.gpu import Gpu
from targets.quantity import Basis, Quantity
from targets.workload import Workload

_GIB = 1 << 30
#: Bytes a second between two cards that only a switch of their own gives (NVLink of server cards; a bridge has 112 GB/s).
_SWITCHED_LINK = 2e11
#: Below so much cache a gibibyte more or less is said.
_TIGHT_CACHE = 12 * _GIB
#: Recurrent layers whose models keep states at every block (`SupportsMambaPrefixCaching` in `models/`, 0.17 to 0.26).
_KEPT_AT_BLOCKS = frozenset({"mamba1", "mamba2"})


def profile_of(gpu: Gpu, settings: Settings, workload: Workload, rules: Rules) -> activations.Profile:
    """Return what the profile run sees with these settings."""
    return activations.Profile(
        tokens=batched_tokens(settings, gpu, workload, rules),
        sequences=settings.max_num_seqs or default_sequences(gpu, rules),
        tp=settings.parallel.tp,
        dp=settings.parallel.dp,
        ep=settings.parallel.ep,
        pp=settings.parallel.pp,
        eager=settings.enforce_eager or not settings.features.graphs,
        capability=gpu.capability or 90,
        context=workload.context,
        linked=(gpu.link_bytes_per_s or 0) >= _SWITCHED_LINK,
        integrated=activations.is_integrated(gpu),
        largest_graph=settings.features.largest_graph,
        pictures=settings.features.pictures or workload.pictures,
        drafts=settings.features.drafting is not None,
    )


def with_whole_items(ir: ModelIR, gpu: Gpu, settings: Settings, workload: Workload, rules: Rules) -> Settings:
    """Return the settings with the least step that holds the largest picture or video, where none is set and a smaller one does not start:
    versions that do not raise it themselves are refused (`item_reasons`), and told what they would have with it.
    """
    if settings.max_num_batched_tokens or not settings.features.profiles_media:
        return settings
    item = whole_item(ir, workload.context, rules)
    return (
        replace(settings, max_num_batched_tokens=item)
        if item > batched_tokens(settings, gpu, workload, rules)
        else settings
    )


def tightest_rank(ir: ModelIR, gpu: Gpu, settings: Settings, workload: Workload, rules: Rules) -> tuple[Memory, Layout]:
    """Return the terms and the cache's layout of the rank whose cache holds fewest requests at once; of those that hold as many, as where
    no rank holds one, the rank that is left with least. Terms of all ranks with them.
    """
    ranks = list(_ranks(ir, gpu, settings, workload, rules))
    memory, layout = min(ranks, key=lambda rank: (_held_at_once(rank, workload), _left(rank[0])))
    if len(ranks) == 1:
        return memory, layout
    each = (
        {"stage": stage, "weights": rank.weights.value, "kv_cache": rank.kv_cache.value}
        for stage, (rank, _) in enumerate(ranks)
    )
    return replace(memory, per_rank=tuple(each)), layout


def _held_at_once(rank: tuple[Memory, Layout], workload: Workload) -> float:
    memory, layout = rank
    return layout.concurrency(layout.blocks(memory.kv_cache.value), workload.context)


def _left(memory: Memory) -> tuple[float, float]:
    """Bytes that are left for the cache, and, where those are set, what of the budget is left beside them."""
    return memory.kv_cache.value, memory.budget.value - memory.total.value


def _ranks(
    ir: ModelIR, gpu: Gpu, settings: Settings, workload: Workload, rules: Rules
) -> Iterator[tuple[Memory, Layout]]:
    """A rank of each pipeline stage: what its weights and its profile run leave for the cache."""
    parallel, features = settings.parallel, settings.features
    profile, budget = profile_of(gpu, settings, workload, rules), _budget(gpu, settings, rules)
    on_top = not subtracts_graphs(ir, rules)
    profiled = ir if features.profiles_media else without_encoders(ir)
    # A launch has what only reads pool (`launch.py`): no sampler runs.
    writes = purpose(ir).writes and not features.pools
    for stage, (size, draft) in enumerate(weights_of_stages(ir, parallel, rules, features)):
        last = stage == parallel.pp - 1
        seen = profile if last and writes else replace(profile, samples=False)
        taken = activations.overhead(profiled, seen, rules)
        weights = weights_quantity(ir, size, _weights_error(ir), Basis.EXACT)
        weights = weights + draft if draft.value else weights
        spent = weights + taken.subtracted
        states = [(with_state_types(state, features), n) for state, n in stage_states(ir, parallel.pp, stage, rules)]
        states += draft_states(ir, features) if last else ()
        layout = build_layout(tuple(states), cache_settings(ir, settings, profile, rules), rules)
        left = _cache_bytes(budget - spent, layout, settings)
        needed = layout.request_bytes(workload.context) * (workload.concurrency or 1)
        total = spent + (taken.cuda_graphs if on_top else Quantity.exact(0)) + Quantity.exact(needed)
        yield Memory(weights, left, taken.activations, taken.non_torch, taken.cuda_graphs, total, budget), layout


def _budget(gpu: Gpu, settings: Settings, rules: Rules) -> Quantity:
    """The share of the card, or what others leave of it where that is less."""
    utilization = settings.gpu_memory_utilization or rules.utilization
    card, kept = gpu.memory_bytes, settings.reserve_bytes
    share = Quantity(card.value * utilization, card.low * utilization, card.high * utilization, card.basis)
    if not kept:
        return share
    free = Quantity(card.value - kept, card.low - kept, card.high - kept, card.basis)
    return min(share, free, key=lambda budget: budget.value)


def _cache_bytes(left: Quantity, layout: Layout, settings: Settings) -> Quantity:
    """What is left for the cache, or what is set in its place; so many blocks are no more than fit (`override_reasons`)."""
    if settings.kv_cache_memory_bytes is not None:
        left = Quantity.exact(settings.kv_cache_memory_bytes)
    blocks = settings.features.cache_blocks
    if blocks is not None and blocks * layout.block_bytes <= left.value:
        return Quantity.exact(blocks * layout.block_bytes)
    return left


def state_reasons(
    ir: ModelIR, memory: Memory, layout: Layout, profile: activations.Profile, rules: Rules
) -> tuple[Reason, ...]:
    """Say that with full decode graphs the cache must have a block for the state of every sequence (`config/compilation.py`)."""
    blocks = layout.blocks(memory.kv_cache.value)
    if not rules.states_for_graphs or profile.eager or not has_states(ir) or not 0 < blocks < profile.sequences:
        return ()
    message = f"the cache has {blocks:,} blocks for states, fewer than max_num_seqs {profile.sequences:,}: vLLM stops before it serves"
    fewer = {"max_num_seqs": blocks}
    return (Reason("too_few_state_blocks", message, f"max_num_seqs {blocks}", fewer, ReasonKind.TOO_LARGE, fewer),)


def step_reasons(ir: ModelIR, layout: Layout, profile: activations.Profile, rules: Rules) -> tuple[Reason, ...]:
    """Say that a step must hold one block where prompts are cut at blocks to keep their states (`config/vllm.py:validate_block_size`): of
    models whose states are kept at prompts' ends only ("align"; Mamba's are kept at every block then, "all").
    """
    kinds = {block.state.kind for block, _ in ir.decoder.counts if isinstance(block.state, Recurrent)}
    aligned = rules.steps_hold_blocks and layout.settings.prefix_caching and kinds and not kinds & _KEPT_AT_BLOCKS
    block = layout.settings.block_size
    if not aligned or block <= profile.tokens:
        return ()
    message = (
        f"with prefix caching vLLM {rules.said} cuts prompts at blocks, here of {block:,} tokens, and a step holds {profile.tokens:,} "
        "(max_num_batched_tokens): it stops before it loads"
    )
    return (_step_too_small("block_larger_than_step", message, block),)


def item_reasons(ir: ModelIR, gpu: Gpu, settings: Settings, workload: Workload, rules: Rules) -> tuple[Reason, ...]:
    """Say that a step must hold the largest picture or video whole (`v1/core/encoder_cache_manager.py:compute_mm_encoder_budget`)."""
    item = whole_item(ir, workload.context, rules) if settings.features.profiles_media else 0
    step = batched_tokens(settings, gpu, workload, rules)
    pictures = settings.features.pictures or workload.pictures
    if item <= step or pictures or (rules.raises_steps and not settings.max_num_batched_tokens):
        return ()
    message = (
        f"a video takes {item:,} tokens, which see each other and cannot be cut, and a step of vLLM {rules.said} holds {step:,} here "
        "(max_num_batched_tokens): it stops before it serves"
    )
    return (_step_too_small("item_larger_than_step", message, item),)


def _step_too_small(code: str, message: str, tokens: int) -> Reason:
    """The reason against a step that must hold so many tokens, which names the setting."""
    step = {"max_num_batched_tokens": tokens}
    return Reason(code, message, f"max_num_batched_tokens {tokens}", step, options=step)


def override_reasons(memory: Memory, layout: Layout, settings: Settings) -> tuple[Reason, ...]:
    """Say where a cache of so many blocks is more than is left: it is allotted all the same (`num_gpu_blocks_override`)."""
    blocks = settings.features.cache_blocks
    if blocks is None or blocks * layout.block_bytes <= memory.kv_cache.value:
        return ()
    fits = layout.blocks(memory.kv_cache.value)
    message = f"{blocks:,} blocks of cache take {blocks * layout.block_bytes / _GIB:.2f} GiB, room is for {fits:,}"
    remedy = f"--num-gpu-blocks-override {fits}, or leave it out"
    return (Reason("cache_blocks_do_not_fit", message, remedy, {"fits": fits}, ReasonKind.TOO_LARGE),)


@remembered
def _weights_error(ir: ModelIR) -> float:
    """Experts in blocks of 4 bits are padded as the kernel likes (gpt-oss: printed 2.4 % below to 0.8 % above what is counted)."""
    return 0.025 if any(lin.storage.expert_blocks for block, _ in ir.decoder.counts for lin in block.linears) else 0.005


def cold_note(memory: Memory, settings: Settings, rules: Rules) -> str | None:
    """Say what a compiler's cache moves, where the KV cache is small enough for it to matter; None elsewhere."""
    if settings.enforce_eager or not rules.counts_reserved or not 0 < memory.kv_cache.value < _TIGHT_CACHE:
        return None
    return (
        "the state of torch.compile's cache moves the KV cache: the interval's lower end is a first start, its upper end a start with"
        " the cache of an earlier one"
    )
