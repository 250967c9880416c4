"""vLLM on CUDA cards: what it refuses, how it spends the card's memory (by version), how fast it runs.

Sources: vLLM 0.32.0's code for the newest behaviour; `versions.py` for older ones; start-up logs for the fitted terms.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from passes.errors import Reason
from passes.formats.format import Format
from passes.formats.kv_dtypes import head_bytes
from passes.ir.model import ModelIR, remembered
from passes.ir.resident import cast_dense, resident_model
from passes.ir.state import FullKV
from targets.engines.accounting import answer
from targets.engines.engine import (
    Engine,
    KVEstimate,
    MemoryEstimate,
    Parallel,
    Scheduler,
    ServerLog,
    ServerMetrics,
    Settings,
    vendor_not_modelled,
)
from targets.engines.vllm.defaults import batched_tokens, default_sequences, rules_as_set
from targets.engines.vllm.kernels import kernel_of
from targets.engines.vllm.memory.cache import BLOCK, caches_prefixes, element_bytes, with_own_indexers
from targets.engines.vllm.memory.features import served, weights_of_stages
from targets.engines.vllm.memory.ranks import (
    cold_note,
    item_reasons,
    override_reasons,
    profile_of,
    state_reasons,
    step_reasons,
    tightest_rank,
    with_whole_items,
)
from targets.engines.vllm.rules.architectures import architecture_note, architecture_reasons, stage_reasons
from targets.engines.vllm.rules.checkpoint_cache import as_cached, cache_note
from targets.engines.vllm.rules.dtypes import computed_dtype, dtype_note, dtype_reasons
from targets.engines.vllm.rules.fp8_blocks import fp8_block_reasons
from targets.engines.vllm.rules.fused import absent_note, fused_reasons, padded, with_joined_inputs
from targets.engines.vllm.rules.kernels import kernel_reasons, padding_note
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
from targets.engines.vllm.rules.shards import shard_reasons, spread_reasons, stored_cut_reasons
from targets.engines.vllm.rules.versions import KNOWN_VERSIONS, Rules, rules_for
from targets.gpu import Gpu
from targets.speed.card import capability_of
from targets.speed.kernels import Kernel
from targets.workload import Workload

if TYPE_CHECKING:
    from targets.engines.pasted import Pasted
    from targets.launch.request import Launch, LaunchRequest
    from targets.serve.verifier import Verifier
    from targets.simulation.simulate import Queue

#: The first version without a loader of GGUF files (`model_loader/gguf_loader.py`).
_GGUF_LEFT = (0, 24, 0)
#: The first version whose wheel brings a torch for CUDA 13.
_CUDA_13 = (0, 20, 0)
#: Share of a card that may be asked for where the default does not do, and the smallest step of the profile run worth trying.
_FULLER, _SMALL_STEP = 0.95, 2048
#: Rows of the sampler that cost nothing worth telling, and the smallest step where nothing fits otherwise.
_FEW_ROWS, _SHORT_STEP = 8, 512


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
    #: `vllm/v1/metrics/loggers.py` of 0.32.0; before 0.10 the cache's share had another name.
    metrics: ClassVar[ServerMetrics | None] = ServerMetrics(
        running=("vllm:num_requests_running",), waiting=("vllm:num_requests_waiting",),
        cache_share=("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"), preemptions=("vllm:num_preemptions_total",),
    )  # fmt: skip
    fitted: ClassVar[tuple[tuple[str, str], ...]] = (("targets.engines.vllm.memory", "memory_fit.json"),)

    def spreads(self, cards: int) -> Iterator[Parallel]:
        """Yield tensor parallel, then every split into tensor and pipeline degrees."""
        yield from (Parallel(tp=cards // pp, pp=pp) for pp in range(1, cards + 1) if cards % pp == 0)

    def kernel(self, form: Format, gpu: Gpu) -> Kernel:
        """Choose by the card's compute capability, or what another maker's card is like."""
        return kernel_of(form, capability_of(gpu))

    def built_for(self, version: str | None) -> int | None:
        """Return the number of its CUDA: 13 from 0.20 on, whose wheel on PyPI needs torch 2.11; 12 before."""
        return 13 if rules_for(version)[0].version >= _CUDA_13 else 12

    def known_versions(self) -> tuple[str, ...]:
        """List the versions whose behaviour differs in ways that are modelled."""
        return KNOWN_VERSIONS

    def by_itself(self, ir: ModelIR, gpu: Gpu, settings: Settings, workload: Workload) -> Mapping[str, float | str]:
        """Return batch, share of the card, runner, prefix caching, graphs and scheduling, by version."""
        rules, _ = rules_as_set(settings, gpu)
        said: dict[str, float | str] = dict(super().by_itself(ir, gpu, settings, workload))
        if not gpu.is_cpu:
            said["gpu_memory_utilization"] = settings.gpu_memory_utilization or rules.utilization
        if ir.load_time.name.startswith("fp8"):
            said["quantization"] = rules.online_fp8
        said["engine"] = f"V1, runner {'V2' if uses_v2_runner(ir, rules) else 'V1'}" if rules.v1 else "V0"
        said["prefix caching"] = _on(caches_prefixes(has_states(ir), settings, rules))
        said["memory of graphs"] = "taken from the cache's" if subtracts_graphs(ir, rules) else "on top of the budget"
        said["asynchronous scheduling"] = _on(rules.async_scheduling)
        fits = "prompt fits the cache" if rules.reserves_prompt else "first chunk fits"
        return said | {"a request is admitted": f"when its {fits}"}

    def illegal(self, ir: ModelIR, gpu: Gpu, settings: Settings) -> tuple[Reason, ...]:
        """Refuse formats without a kernel on this card, parallel degrees that do not divide the model, KV types it lacks."""
        rules, _ = rules_as_set(settings, gpu)
        ir = as_cached(ir, rules)
        if gpu.vendor not in ("NVIDIA", "CPU"):
            # Of such a card nothing else is known.
            return (vendor_not_modelled("vLLM", gpu),)
        reasons = [*dtype_reasons(ir, gpu, settings.dtype, rules), *load_time_reasons(ir, gpu)]
        reasons += architecture_reasons(ir, rules)
        ir = with_joined_inputs(computed(ir, gpu, settings, rules), rules)
        reasons += self._format_reasons(ir, gpu, settings.parallel, rules)
        reasons += self._cache_reasons(ir, gpu, rules)
        reasons += expert_reasons(ir)
        reasons += fused_reasons(ir)
        reasons += [*shard_reasons(ir, settings.parallel), *stage_reasons(ir, settings.parallel.pp, rules)]
        reasons += stored_cut_reasons(ir, settings.parallel.tp)
        reasons += spread_reasons(ir, settings.parallel.tp, settings.features.context_parallel)
        reasons += [] if gpu.is_cpu else fp8_block_reasons(ir, settings.parallel, rules, gpu.capability or 0)
        reasons += [] if gpu.is_cpu else sparse_reasons(ir, gpu.capability or 0, rules)
        if settings.block_size is not None and settings.block_size % BLOCK:
            message = (
                f"vLLM's attention kernels take cache blocks of multiples of {BLOCK} tokens, not {settings.block_size}"
            )
            reasons.append(
                Reason("block_size_without_kernel", message, f"{BLOCK}, or leave it out", options={"block_size": BLOCK})
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
        """Estimate the tightest rank's budget, terms and cache."""
        rules, note = rules_as_set(settings, gpu)
        run = with_own_indexers(as_cached(resident_model(computed(ir, gpu, settings, rules)), rules), rules)
        stored, ir = ir, served(run, settings.features)
        too_large = item_reasons(ir, gpu, settings, workload, rules)
        settings = with_whole_items(ir, gpu, settings, workload, rules)
        memory, layout = tightest_rank(ir, gpu, settings, workload, rules)
        dtype = computed_dtype(stored, gpu, settings.dtype, rules)
        said = (
            note, gpu.note, dtype_note(stored, gpu, settings.dtype, rules), *stored_notes(stored, rules),
            padding_note(stored, gpu.capability or 0, dtype, rules, settings.parallel), cold_note(memory, settings, rules),
        )  # fmt: skip
        notes = tuple(n for n in said if n)
        profile = profile_of(gpu, settings, workload, rules)
        reasons = (
            *too_large,
            *state_reasons(ir, memory, layout, profile, rules),
            *step_reasons(ir, layout, profile, rules),
            *override_reasons(memory, layout, settings),
        )
        return answer(memory, layout, ir, workload, reasons=reasons, notes=notes)

    def least_weights(self, ir: ModelIR, gpu: Gpu, settings: Settings) -> int:
        """Return the bytes of the fullest pipeline stage."""
        rules, _ = rules_as_set(settings, gpu)
        stages = weights_of_stages(self.as_run(ir, gpu, settings), settings.parallel, rules, settings.features)
        return max(size for size, _ in stages)

    def as_run(self, ir: ModelIR, gpu: Gpu, settings: Settings) -> ModelIR:
        """Return the model in the dtype that this version computes in, with the matrices and the cache as it keeps them."""
        rules, _ = rules_as_set(settings, gpu)
        return as_cached(resident_model(computed(ir, gpu, settings, rules)), rules)

    def queue(self, gpu: Gpu, settings: Settings, workload: Workload, kv: KVEstimate) -> Queue:
        """Return V1's scheduler; with pipeline stages one step stands for a batch in each, composed when the last is settled."""
        from targets.simulation import scheduler
        from targets.simulation.serving import cache_of

        rules, _ = rules_as_set(settings, gpu)
        asked, stages = self.scheduler(gpu, settings, workload), settings.parallel.pp
        lag = int(rules.async_scheduling and stages == 1 and not gpu.is_cpu)
        step = scheduler.Rules(asked.tokens * stages, min(asked.sequences, asked.tokens), lag, rules.reserves_prompt)
        cache = cache_of(
            kv, workload, settings.block_size or BLOCK, caches_prefixes(bool(kv.state_bytes), settings, rules)
        )
        return scheduler.Scheduler(step, cache)

    def unread_file(self, kind: str, settings: Settings) -> str | None:
        """Say why a file is not read; GGUF is, to 0.23 and by its package since: the loader (`model_loader/gguf_loader.py`, now
        vllm-gguf-plugin's) keeps matrices and embeddings as they are stored.
        """
        rules, _ = rules_for(settings.version)
        reads = rules.version < _GGUF_LEFT or settings.features.reads_gguf
        if kind == "gguf" and self.device == "cuda" and reads:
            return None
        if self.device == "cpu":
            return f"{self.name} reads no GGUF file"
        return f"vLLM {'.'.join(map(str, _GGUF_LEFT[:2]))} and newer read no GGUF file without the package vllm-gguf-plugin"

    def leaner(self, gpu: Gpu, settings: Settings, workload: Workload) -> tuple[tuple[str, float], ...]:
        """Offer more of the card, a smaller step of the profile run, rows of the sampler for the asked requests only."""
        rules, _ = rules_as_set(settings, gpu)
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
        rows = max(_FEW_ROWS, 1 << ((workload.concurrency or 1) - 1).bit_length())
        if settings.max_num_seqs is None and rows < default_sequences(gpu, rules):
            out.append(("max_num_seqs", rows))
        return tuple(out)

    def frugal(self, gpu: Gpu, settings: Settings, workload: Workload) -> tuple[tuple[str, float], ...]:
        """Offer rows of the sampler for exactly the asked requests, steps so short that long prompts take several, and no CUDA graphs."""
        rules, _ = rules_as_set(settings, gpu)
        rows, out = workload.concurrency or 1, list[tuple[str, float]]()
        if settings.max_num_seqs is None and workload.concurrency is not None and rows < _FEW_ROWS:
            out.append(("max_num_seqs", rows))
        short = rules.v1 and settings.max_num_batched_tokens is None and not settings.features.whole_prompts
        if short and batched_tokens(settings, gpu, workload, rules) > _SHORT_STEP >= rows:
            out.append(("max_num_batched_tokens", _SHORT_STEP))
        if not settings.enforce_eager and settings.features.graphs:
            out.append(("enforce_eager", True))
        return tuple(out)

    def most_sequences(self, gpu: Gpu, settings: Settings) -> int:
        """Return what is set, else the version's default for the card."""
        return settings.max_num_seqs or default_sequences(gpu, rules_as_set(settings, gpu)[0])

    def scheduler(self, gpu: Gpu, settings: Settings, workload: Workload) -> Scheduler:
        """Return tokens and sequences of a step, by version and card."""
        rules, _ = rules_as_set(settings, gpu)
        return Scheduler(batched_tokens(settings, gpu, workload, rules), self.most_sequences(gpu, settings))

    def cache_bytes(self, ir: ModelIR) -> float:
        """Return the bytes that its type says; a head's scales are spread over its elements."""
        heads = [block.state.head_dim for block, _ in ir.decoder.counts if isinstance(block.state, FullKV)]
        return element_bytes(ir) + (head_bytes(ir.kv_cache.dtype) / min(heads) if heads else 0)

    def pasted(
        self, words: Sequence[str], known: Sequence[str], version: str | None, model: str | None
    ) -> Pasted | None:
        """Read `vllm serve …`, its container or its Python, with what is set in front."""
        from targets.engines.vllm.arguments.served import pasted

        return pasted(words, known, version, model)

    def launch(self, request: LaunchRequest) -> Launch:
        """Start `vllm serve` with a config file."""
        from targets.engines.vllm.launch import vllm_launch

        return vllm_launch(request, cpu=self.device == "cpu")

    def verifier(self) -> Verifier:
        """Drive its server, under the load of its own `vllm bench serve`."""
        from targets.engines.vllm.verify import VllmVerifier

        return VllmVerifier(self)

    def served_name(self, folder: Path) -> str:
        """Read it from its config file."""
        from targets.engines.vllm.launch import served_name

        return served_name(folder)


def _on(kept: bool) -> str:
    return "on" if kept else "off"


@remembered
def stored_notes(ir: ModelIR, rules: Rules) -> tuple[str | None, ...]:
    """Return what a version has to say of a model as it is stored, on whatever it runs."""
    return plugin_note(_names(ir), rules), absent_note(ir), cache_note(ir, rules), architecture_note(ir, rules)


def computed(ir: ModelIR, gpu: Gpu, settings: Settings, rules: Rules) -> ModelIR:
    """Return the model in what vLLM computes in on the card, its fused matrices as they are padded."""
    return padded(cast_dense(ir, computed_dtype(ir, gpu, settings.dtype, rules)))


def _names(ir: ModelIR) -> Iterator[str]:
    """What the formats of a model, stored or made while loading, are called."""
    yield from (name for name in (ir.quant_method, ir.load_time.name) if name)
