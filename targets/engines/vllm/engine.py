"""vLLM on CUDA cards: what it refuses, how it spends the card's memory (by version), how fast it runs.

Sources: vLLM 0.32.0's code for the newest behaviour; `versions.py` for older ones; start-up logs for the fitted terms.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from passes.errors import Reason, ReasonKind
from passes.formats.format import Format
from passes.formats.kv_dtypes import cache_bits, head_bytes
from passes.ir.model import Block, ModelIR, remembered
from passes.ir.resident import cast_dense, resident_model
from passes.ir.state import FullKV, LatentKV, LayerState
from targets.engines.accounting import answer, weights_quantity
from targets.engines.engine import (
    Engine,
    KVEstimate,
    Memory,
    MemoryEstimate,
    Parallel,
    Scheduler,
    ServerLog,
    Settings,
)
from targets.engines.kv_layout import Layout, build_layout
from targets.engines.kv_spec import CacheSettings
from targets.engines.resident_weights import stage_blocks
from targets.engines.vllm.kernels import kernel_of
from targets.engines.vllm.memory import activations
from targets.engines.vllm.memory.features import (
    draft_states,
    served,
    weights_of_stages,
    with_state_types,
    without_encoders,
)
from targets.engines.vllm.rules.architectures import architecture_note, architecture_reasons, stage_reasons
from targets.engines.vllm.rules.checkpoint_cache import as_cached, cache_note
from targets.engines.vllm.rules.dtypes import computed_dtype, dtype_note, dtype_reasons
from targets.engines.vllm.rules.fp8_blocks import fp8_block_reasons
from targets.engines.vllm.rules.fused import absent_note, fused_reasons
from targets.engines.vllm.rules.kernels import kernel_reasons
from targets.engines.vllm.rules.kv_cache import cache_type_reasons, checkpoint_reasons
from targets.engines.vllm.rules.legality import (
    expert_reasons,
    load_time_reasons,
    order_reasons,
    sparse_reasons,
    storages,
)
from targets.engines.vllm.rules.methods import method_reasons, plugin_note, wheel_reasons
from targets.engines.vllm.rules.runner import has_states, subtracts_graphs, uses_v2_runner
from targets.engines.vllm.rules.shards import shard_reasons, spread_reasons
from targets.engines.vllm.rules.versions import KNOWN_VERSIONS, MARLIN_PADDING, Rules, rules_for
from targets.gpu import Gpu
from targets.quantity import Basis, Quantity
from targets.speed.card import capability_of
from targets.speed.kernels import Kernel
from targets.workload import Workload

if TYPE_CHECKING:
    from targets.launch.request import Launch, LaunchRequest
    from targets.serve.verifier import Verifier
    from targets.simulation.simulate import Composer

_GIB = 1 << 30
#: Cards with more memory than this get the larger defaults (vLLM's `EngineArgs.get_batch_defaults`).
_LARGE_CARD_BYTES, _HUGE_CARD_BYTES = 70 * _GIB, 160 * _GIB
#: Bytes a second between two cards that only a switch of their own gives (NVLink of server cards; a bridge has 112 GB/s).
_SWITCHED_LINK = 2e11
#: Compute capabilities × 10 between which experts in blocks of 4 bits have kernels beside Marlin's.
_HOPPER, _BLACKWELL, _RTX_BLACKWELL = 90, 100, 120
#: Below so much cache a gibibyte more or less is said.
_TIGHT_CACHE = 12 * _GIB
_BLOCK = 16
#: The first version without a loader of GGUF files (`model_loader/gguf_loader.py`).
_GGUF_LEFT = (0, 24, 0)
#: The first version whose wheel brings a torch for CUDA 13.
_CUDA_13 = (0, 20, 0)
#: Head size that DeepSeek's expanded keys and values were padded to before MLA (0.5–0.6, `deepseek_v2.py`).
_EXPANDED_HEAD = 256
#: Share of a card that may be asked for where the default does not do, and the smallest step of the profile run worth trying.
_FULLER, _SMALL_STEP = 0.95, 2048


class Vllm(Engine):
    """vLLM with its CUDA backend."""

    name: ClassVar[str] = "vllm"
    replicates: ClassVar[bool] = True
    takes_share: ClassVar[bool] = True
    weighed_formats: ClassVar[tuple[str, ...]] = (
        "fp8", "fp8-block", "w8a8", "w8a8-rtn", "w8a16-channel", "w8a16-channel-rtn", "w8a16-g128", "w8a16-g128-rtn",
        "w4a16-g128", "w4a16-g64", "w4a16-g32", "w4a16-g128-asym",
        "gptq-4-g128", "gptq-4-g64", "gptq-4-g32", "gptq-8-g128", "awq-4-g128", "awq-4-g64", "awq-4-g32", "nvfp4", "nf4", "fp8-online",
    )  # fmt: skip
    kv_dtypes: ClassVar[tuple[str, ...]] = (
        "auto", "bfloat16", "float16", "fp8", "int8_per_token_head", "fp8_per_token_head", "fp8_e5m2", "nvfp4_4over6", "nvfp4",
        "int4_per_token_head",
    )  # fmt: skip
    server: ClassVar[ServerLog | None] = ServerLog(
        tokens=re.compile(r"KV cache size: ([\d,]+) tokens"),
        concurrency=re.compile(r"Maximum concurrency for [\d,]+ tokens per request: ([\d.]+)x"),
    )
    fitted: ClassVar[tuple[tuple[str, str], ...]] = (("targets.engines.vllm.memory", "memory_fit.json"),)

    def spreads(self, cards: int) -> Iterator[Parallel]:
        """Tensor parallel, then every split into tensor and pipeline degrees."""
        yield from (Parallel(tp=cards // pp, pp=pp) for pp in range(1, cards + 1) if cards % pp == 0)

    def kernel(self, form: Format, gpu: Gpu) -> Kernel:
        """By the card's compute capability, or what another maker's card is like."""
        return kernel_of(form, capability_of(gpu))

    def built_for(self, version: str | None) -> int | None:
        """Number 13 from 0.20 on, whose wheel on PyPI needs torch 2.11; 12 before."""
        return 13 if rules_for(version)[0].version >= _CUDA_13 else 12

    def known_versions(self) -> tuple[str, ...]:
        """Versions whose behaviour differs in ways that are modelled."""
        return KNOWN_VERSIONS

    def by_itself(self, ir: ModelIR, gpu: Gpu, settings: Settings, workload: Workload) -> Mapping[str, float | str]:
        """Return batch, share of the card, runner, prefix caching, graphs and scheduling, by version."""
        rules, _ = rules_on_card(settings.version, gpu)
        said: dict[str, float | str] = dict(super().by_itself(ir, gpu, settings, workload))
        if not gpu.is_cpu:
            said["gpu_memory_utilization"] = settings.gpu_memory_utilization or rules.utilization
        if ir.load_time.name.startswith("fp8"):
            said["quantization"] = rules.online_fp8
        said["engine"] = f"V1, runner {'V2' if uses_v2_runner(ir, rules) else 'V1'}" if rules.v1 else "V0"
        said["prefix caching"] = _on(rules.hybrid_prefix_caching if has_states(ir) else rules.v1)
        said["memory of graphs"] = "taken from the cache's" if subtracts_graphs(ir, rules) else "on top of the budget"
        said["asynchronous scheduling"] = _on(rules.async_scheduling)
        fits = "prompt fits the cache" if rules.reserves_prompt else "first chunk fits"
        return said | {"a request is admitted": f"when its {fits}"}

    def illegal(self, ir: ModelIR, gpu: Gpu, settings: Settings) -> tuple[Reason, ...]:
        """Formats without a kernel on this card, parallel degrees that do not divide the model, KV types it lacks."""
        rules, _ = rules_on_card(settings.version, gpu)
        ir = as_cached(ir, rules)
        if gpu.vendor not in ("NVIDIA", "CPU"):
            # Of such a card nothing else is known.
            return (
                Reason(
                    "vendor_not_modelled", f"vLLM on {gpu.vendor} cards is not modelled", "choose an NVIDIA card",
                    kind=ReasonKind.NOT_MODELLED,
                ),
            )  # fmt: skip
        reasons = [*dtype_reasons(ir, gpu, settings.dtype, rules), *load_time_reasons(ir, gpu)]
        reasons += architecture_reasons(ir, rules)
        ir = computed(ir, gpu, settings, rules)
        reasons += self._format_reasons(ir, gpu, settings.parallel, rules)
        reasons += self._cache_reasons(ir, gpu, rules)
        reasons += expert_reasons(ir)
        reasons += fused_reasons(ir)
        reasons += [*shard_reasons(ir, settings.parallel), *stage_reasons(ir, settings.parallel.pp, rules)]
        reasons += spread_reasons(ir, settings.parallel.tp, settings.features.context_parallel)
        reasons += [] if gpu.is_cpu else fp8_block_reasons(ir, settings.parallel)
        reasons += [] if gpu.is_cpu else sparse_reasons(ir, gpu.capability or 0, rules)
        if settings.block_size is not None and settings.block_size % _BLOCK:
            message = (
                f"vLLM's attention kernels take cache blocks of multiples of {_BLOCK} tokens, not {settings.block_size}"
            )
            reasons.append(
                Reason(
                    "block_size_without_kernel", message, f"{_BLOCK}, or leave it out", options={"block_size": _BLOCK}
                )
            )
        return tuple(reasons)

    def _format_reasons(self, ir: ModelIR, gpu: Gpu, parallel: Parallel, rules: Rules) -> Iterator[Reason]:
        """Wheels without code for the card, formats that a version does not read there, matrices without a kernel."""
        capability = gpu.capability or 0
        yield from wheel_reasons(capability, rules)
        resident = resident_model(ir)
        outside = storages(resident, experts=False)
        refused: list[Reason] = []
        stored = (form for form in storages(resident) if form.is_quantized)
        for form in sorted(stored, key=lambda form: form.label):
            refused += order_reasons(form, rules)
            refused += method_reasons(form, ir.quant_method, capability, ir.dtype, rules, experts=form not in outside)
        yield from refused
        if not refused:
            yield from kernel_reasons(ir, capability, ir.dtype, rules, parallel)

    def _cache_reasons(self, ir: ModelIR, gpu: Gpu, rules: Rules) -> Iterator[Reason]:
        yield from checkpoint_reasons(ir, rules)
        yield from cache_type_reasons(ir, gpu.capability or 0, rules)

    def memory(self, ir: ModelIR, gpu: Gpu, settings: Settings, workload: Workload) -> MemoryEstimate:
        """The tightest rank's budget, terms and cache."""
        rules, note = rules_on_card(settings.version, gpu)
        stored, ir = ir, served(as_cached(resident_model(computed(ir, gpu, settings, rules)), rules), settings.features)
        estimate = self._estimate(ir, gpu, settings, workload, rules)
        memory, layout = estimate
        said = (
            note, gpu.note, dtype_note(stored, gpu, settings.dtype, rules), *stored_notes(stored, rules),
            _cold_note(memory, settings, rules),
        )  # fmt: skip
        notes = tuple(n for n in said if n)
        reasons = (
            *_state_reasons(ir, memory, layout, profile_of(gpu, settings, workload, rules), rules),
            *_override_reasons(memory, layout, settings),
        )
        return answer(memory, layout, ir, workload, reasons=reasons, notes=notes)

    def least_weights(self, ir: ModelIR, gpu: Gpu, settings: Settings) -> int:
        """Return the bytes of the fullest pipeline stage."""
        rules, _ = rules_on_card(settings.version, gpu)
        stages = weights_of_stages(self.as_run(ir, gpu, settings), settings.parallel, rules, settings.features)
        return max(size for size, _ in stages)

    def as_run(self, ir: ModelIR, gpu: Gpu, settings: Settings) -> ModelIR:
        """In the dtype that this version computes in, with the matrices and the cache as it keeps them."""
        rules, _ = rules_on_card(settings.version, gpu)
        return as_cached(resident_model(computed(ir, gpu, settings, rules)), rules)

    def queue(self, gpu: Gpu, settings: Settings, workload: Workload, kv: KVEstimate) -> Composer:
        """V1's scheduler; with pipeline stages one step stands for a batch in each, composed when the last is settled."""
        from targets.simulation import scheduler
        from targets.simulation.serving import cache_of

        rules, _ = rules_on_card(settings.version, gpu)
        asked, stages = self.scheduler(gpu, settings, workload), settings.parallel.pp
        lag = int(rules.async_scheduling and stages == 1 and not gpu.is_cpu)
        step = scheduler.Rules(asked.tokens * stages, min(asked.sequences, asked.tokens), lag, rules.reserves_prompt)
        return scheduler.Scheduler(step, cache_of(kv, workload, settings.block_size or _BLOCK))

    def _estimate(
        self, ir: ModelIR, gpu: Gpu, settings: Settings, workload: Workload, rules: Rules
    ) -> tuple[Memory, Layout]:
        parallel = settings.parallel
        profile = profile_of(gpu, settings, workload, rules)
        utilization = settings.gpu_memory_utilization or rules.utilization
        card = gpu.memory_bytes
        budget = Quantity(card.value * utilization, card.low * utilization, card.high * utilization, card.basis)
        if settings.reserve_bytes:
            kept = settings.reserve_bytes
            free = Quantity(card.value - kept, card.low - kept, card.high - kept, card.basis)
            budget = min(budget, free, key=lambda q: q.value)
        on_top = not subtracts_graphs(ir, rules)
        features = settings.features
        profiled = ir if features.profiles_media else without_encoders(ir)
        best: tuple[Memory, Layout] | None = None
        per_rank = []
        for stage, (size, draft) in enumerate(weights_of_stages(ir, parallel, rules, features)):
            last = stage == parallel.pp - 1
            taken = activations.overhead(profiled, replace(profile, samples=last and not features.pools), rules)
            weights = weights_quantity(ir, size, _weights_error(ir), Basis.EXACT)
            weights = weights + draft if draft.value else weights
            spent = weights + taken.subtracted
            left = budget - spent
            if settings.kv_cache_memory_bytes is not None:
                left = Quantity.exact(settings.kv_cache_memory_bytes)
            states = tuple(
                (with_state_types(state, features), n) for state, n in _stage_states(ir, parallel.pp, stage, rules)
            )
            layout = build_layout(
                (*states, *(draft_states(ir, features) if last else ())),
                cache_settings(ir, settings, profile, rules),
                rules,
            )
            if features.cache_blocks is not None and features.cache_blocks * layout.block_bytes <= left.value:
                left = Quantity.exact(features.cache_blocks * layout.block_bytes)
            needed = layout.request_bytes(workload.context) * (workload.concurrency or 1)
            total = spent + (taken.cuda_graphs if on_top else Quantity.exact(0)) + Quantity.exact(needed)
            memory = Memory(weights, left, taken.activations, taken.non_torch, taken.cuda_graphs, total, budget)
            per_rank.append({"stage": stage, "weights": size + draft.value, "kv_cache": left.value})
            if best is None or layout.concurrency(layout.blocks(left.value), workload.context) < best[1].concurrency(
                best[1].blocks(best[0].kv_cache.value), workload.context
            ):
                best = (memory, layout)
        assert best is not None
        if len(per_rank) > 1:
            best = (replace(best[0], per_rank=tuple(per_rank)), best[1])
        return best

    def unread_file(self, kind: str, settings: Settings) -> str | None:
        """GGUF to 0.23: its loader (`model_loader/gguf_loader.py`) keeps matrices and embeddings as they are stored."""
        rules, _ = rules_for(settings.version)
        if kind == "gguf" and self.device == "cuda" and rules.version < _GGUF_LEFT:
            return None
        if self.device == "cpu":
            return f"{self.name} reads no GGUF file"
        return f"vLLM {'.'.join(map(str, _GGUF_LEFT[:2]))} and newer read no GGUF file without the package vllm-gguf-plugin"

    def leaner(self, gpu: Gpu, settings: Settings, workload: Workload) -> tuple[tuple[str, float], ...]:
        """More of the card, a smaller step of the profile run, rows of the sampler for the asked requests only."""
        rules, _ = rules_on_card(settings.version, gpu)
        out: list[tuple[str, float]] = []
        free = settings.kv_cache_memory_bytes is None and settings.gpu_memory_utilization is None
        if free and _FULLER * gpu.memory_bytes.value + settings.reserve_bytes <= gpu.memory_bytes.value:
            out.append(("gpu_memory_utilization", _FULLER))
        if (
            rules.v1
            and settings.max_num_batched_tokens is None
            and batched_tokens(settings, gpu, workload, rules) > _SMALL_STEP
        ):
            out.append(("max_num_batched_tokens", _SMALL_STEP))
        rows = max(8, 1 << ((workload.concurrency or 1) - 1).bit_length())
        if settings.max_num_seqs is None and rows < default_sequences(gpu, rules):
            out.append(("max_num_seqs", rows))
        return tuple(out)

    def scheduler(self, gpu: Gpu, settings: Settings, workload: Workload) -> Scheduler:
        """By version and card."""
        rules, _ = rules_on_card(settings.version, gpu)
        sequences = settings.max_num_seqs or default_sequences(gpu, rules)
        return Scheduler(batched_tokens(settings, gpu, workload, rules), sequences)

    def cache_bytes(self, ir: ModelIR) -> float:
        """As its type says; a head's scales are spread over its elements."""
        heads = [block.state.head_dim for block, _ in ir.decoder.counts if isinstance(block.state, FullKV)]
        return element_bytes(ir) + (head_bytes(ir.kv_cache.dtype) / min(heads) if heads else 0)

    def launch(self, request: LaunchRequest) -> Launch:
        """`vllm serve` with a config file."""
        from targets.engines.vllm.launch import vllm_launch

        return vllm_launch(request, cpu=self.device == "cpu")

    def verifier(self) -> Verifier:
        """Its server, under the load of its own `vllm bench serve`."""
        from targets.engines.vllm.verify import VllmVerifier

        return VllmVerifier(self)

    def served_name(self, folder: Path) -> str:
        """As its config file says."""
        from targets.engines.vllm.launch import served_name

        return served_name(folder)


def _on(kept: bool) -> str:
    return "on" if kept else "off"


@remembered
def stored_notes(ir: ModelIR, rules: Rules) -> tuple[str | None, ...]:
    """What a version has to say of a model as it is stored, on whatever it runs."""
    return plugin_note(_names(ir), rules), absent_note(ir), cache_note(ir, rules), architecture_note(ir, rules)


def _state_reasons(
    ir: ModelIR, memory: Memory, layout: Layout, profile: activations.Profile, rules: Rules
) -> tuple[Reason, ...]:
    """With full decode graphs the cache must have a block for the state of every sequence (`config/compilation.py`)."""
    blocks = layout.blocks(memory.kv_cache.value)
    if not rules.states_for_graphs or profile.eager or not has_states(ir) or not 0 < blocks < profile.sequences:
        return ()
    message = f"the cache has {blocks:,} blocks for states, fewer than max_num_seqs {profile.sequences:,}: vLLM stops before it serves"
    fewer = {"max_num_seqs": blocks}
    return (Reason("too_few_state_blocks", message, f"max_num_seqs {blocks}", fewer, ReasonKind.TOO_LARGE, fewer),)


def _override_reasons(memory: Memory, layout: Layout, settings: Settings) -> tuple[Reason, ...]:
    """A cache of so many blocks, whatever is left for it, is allotted all the same (`num_gpu_blocks_override`)."""
    blocks = settings.features.cache_blocks
    if blocks is None or blocks * layout.block_bytes <= memory.kv_cache.value:
        return ()
    fits = layout.blocks(memory.kv_cache.value)
    message = f"{blocks:,} blocks of cache take {blocks * layout.block_bytes / _GIB:.2f} GiB, room is for {fits:,}"
    remedy = f"--num-gpu-blocks-override {fits}, or leave it out"
    return (Reason("cache_blocks_do_not_fit", message, remedy, {"fits": fits}, ReasonKind.TOO_LARGE),)


def computed(ir: ModelIR, gpu: Gpu, settings: Settings, rules: Rules) -> ModelIR:
    """The model in what vLLM computes in on the card."""
    return cast_dense(ir, computed_dtype(ir, gpu, settings.dtype, rules))


def _names(ir: ModelIR) -> Iterator[str]:
    """What the formats of a model, stored or made while loading, are called."""
    yield from (name for name in (ir.quant_method, ir.load_time.name) if name)


def _weights_error(ir: ModelIR) -> float:
    """Experts in blocks of 4 bits are padded as the kernel likes (gpt-oss: printed 2.4 % below to 0.8 % above what is counted)."""
    return 0.025 if any(lin.storage.expert_blocks for block, _ in ir.decoder.counts for lin in block.linears) else 0.005


def _cold_note(memory: Memory, settings: Settings, rules: Rules) -> str | None:
    if settings.enforce_eager or not rules.counts_reserved or not 0 < memory.kv_cache.value < _TIGHT_CACHE:
        return None
    return (
        "the state of torch.compile's cache moves the KV cache: the interval's lower end is a first start, its upper end a start with"
        " the cache of an earlier one"
    )


def batched_tokens(settings: Settings, gpu: Gpu, workload: Workload, rules: Rules) -> int:
    """max_num_batched_tokens: as set, else the version's default for the card."""
    if settings.max_num_batched_tokens:
        return settings.max_num_batched_tokens
    if not rules.v1:
        # V0 without chunked prefill profiles a whole context; above 32K chunked prefill starts by itself with 2048.
        return max(2048, workload.context) if workload.context <= 32768 else 2048
    huge = rules.huge_cards and gpu.memory_bytes.value >= _HUGE_CARD_BYTES
    default = 16384 if huge else 8192 if _is_large(gpu, rules) else 2048
    return min(default, (settings.max_num_seqs or default_sequences(gpu, rules)) * workload.context)


def default_sequences(gpu: Gpu, rules: Rules) -> int:
    """max_num_seqs by version and card."""
    return 1024 if rules.v1 and _is_large(gpu, rules) else 256


def _is_large(gpu: Gpu, rules: Rules) -> bool:
    """Whether a card gets the larger defaults: by its name in the first versions of V1, then by its memory, some names excepted."""
    name = gpu.name.lower()
    if rules.large_names:
        return any(part in name for part in rules.large_names)
    return gpu.memory_bytes.value >= _LARGE_CARD_BYTES and not any(part in name for part in rules.small_names)


def profile_of(gpu: Gpu, settings: Settings, workload: Workload, rules: Rules) -> activations.Profile:
    """What the profile run sees with these settings."""
    return activations.Profile(
        tokens=batched_tokens(settings, gpu, workload, rules),
        sequences=settings.max_num_seqs or default_sequences(gpu, rules),
        tp=settings.parallel.tp,
        pp=settings.parallel.pp,
        eager=settings.enforce_eager or not settings.features.graphs,
        capability=gpu.capability or 90,
        context=workload.context,
        linked=(gpu.link_bytes_per_s or 0) >= _SWITCHED_LINK,
        integrated=activations.is_integrated(gpu),
        largest_graph=settings.features.largest_graph,
        pictures=settings.features.pictures or workload.pictures,
    )


def element_bytes(ir: ModelIR) -> float:
    """Bytes of one cached key or value, scales of whole heads apart."""
    return cache_bits(ir.kv_cache.dtype, 32 if ir.dtype == "F32" else 16) / 8


def cache_settings(ir: ModelIR, settings: Settings, profile: activations.Profile, rules: Rules) -> CacheSettings:
    """What the cache layout depends on, on a CUDA card."""
    return CacheSettings(
        settings.block_size or _BLOCK, element_bytes(ir), 4 if ir.dtype == "F32" else 2, profile.tp,
        profile.tokens * _in_flight(ir, profile.pp, rules), _caches_prefixes(ir, settings, rules),
        head_bytes=head_bytes(ir.kv_cache.dtype), context_parallel=settings.features.context_parallel,
        draft_tokens=settings.features.drafting.tokens if settings.features.drafting else 0,
    )  # fmt: skip


def _caches_prefixes(ir: ModelIR, settings: Settings, rules: Rules) -> bool:
    asked = settings.features.prefix_caching
    return (rules.hybrid_prefix_caching or not has_states(ir)) if asked is None else asked


def _in_flight(ir: ModelIR, pp: int, rules: Rules) -> int:
    """Batches that may hold a recycled block: with asynchronous scheduling two; across stages one each, and one more in V2."""
    if rules.in_flight_batches == 1 or pp == 1:
        return rules.in_flight_batches
    return pp + int(uses_v2_runner(ir, rules))


def _stage_states(ir: ModelIR, pp: int, stage: int, rules: Rules) -> tuple[tuple[LayerState, int], ...]:
    """The layers' caches of one pipeline stage, with their counts."""
    return tuple((_as_stored(block, rules), count) for block, count in stage_blocks(ir, pp, stage))


def _as_stored(block: Block, rules: Rules) -> LayerState:
    """A layer's cache as this version keeps it: without MLA, latents were expanded to heads padded to 256."""
    if isinstance(block.state, LatentKV) and not rules.mla:
        return FullKV(block.heads, _EXPANDED_HEAD, _EXPANDED_HEAD)
    return block.state


def rules_on_card(version: str | None, gpu: Gpu) -> tuple[Rules, str | None]:
    """A version's behaviour on a card: V1 needs compute capability 8.0; before 0.10.2 older cards fell back to V0. Below 9.0 and on RTX
    Blackwell experts in blocks of 4 bits are Marlin's, which goes on padding them, and TensorRT-LLM's on other Blackwell (vLLM 0.33's
    oracles of fused experts).
    """
    return rules_of(version, gpu.capability or 0)


@lru_cache(maxsize=1 << 8)
def rules_of(version: str | None, capability: int) -> tuple[Rules, str | None]:
    """Return the same by a card's compute capability × 10 alone."""
    rules, note = rules_for(version)
    if 0 < capability < _HOPPER or capability >= _RTX_BLACKWELL:
        rules = replace(rules, expert_padding=MARLIN_PADDING)
    elif capability >= _BLACKWELL:
        rules = replace(rules, expert_padding=rules.blackwell_padding)
    if rules.v1 and rules.version < (0, 10, 2) and 0 < capability < 80:
        rules = replace(rules, v1=False, hybrid_groups=False, chunked_groups=False, sorts_without_package=False)
    return rules, note
