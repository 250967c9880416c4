"""What ExLlamaV2 and ExLlamaV3 share: layers laid over the cards one after the other, a cache of whole pages, no CUDA graphs.

Weights are resident as stored, the embedding in the host's memory. The cache holds fp16, or integers with one fp16 scale for
32 elements (`exllamav2/cache.py`, `exllamav3/cache/quant.py`), in pages of 256 tokens; what a layer keeps in slots, one a request, stands
outside of it. A card keeps besides: the CUDA context and libraries, scratch for a prompt chunk of 2,048 tokens (the feed-forward's
inputs and outputs, one matrix dequantized to fp16), attention's own and, on the last card, logits. The context is assumed, a desktop on
the same card counted into its upper end; the scratch follows the engines' own `scratch_space`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from passes.errors import Reason
from passes.formats.dense import Dense
from passes.formats.format import Format, KernelFamily
from passes.formats.kv_dtypes import OWN, cache_bits, integers
from passes.ir.architectures.config import Config
from passes.ir.model import Block, Linear, ModelIR, Role
from passes.ir.purpose import purpose
from passes.ir.state import LatentKV, LayerState, NoState, Recurrent
from passes.record import replace
from targets.engines.accounting import answer, weights_quantity
from targets.engines.engine import (
    Engine,
    KVEstimate,
    Memory,
    MemoryEstimate,
    Parallel,
    Scheduler,
    Settings,
    vendor_not_modelled,
)
from targets.engines.kv_layout import Layout, build_layout
from targets.engines.kv_spec import CacheSettings
from targets.engines.resident_weights import embedding_bytes, stage_blocks, weights_per_stage
from targets.engines.vllm.rules.versions import Rules, rules_for
from targets.gpu import Gpu
from targets.quantity import Basis, Quantity
from targets.speed.kernels import Kernel
from targets.workload import Workload

if TYPE_CHECKING:
    from targets.launch.request import Launch, LaunchRequest
    from targets.serve.verifier import Verifier
    from targets.simulation.simulate import Queue

_MIB = 1 << 20
#: Tokens a page, and tokens of a prompt chunk (`max_input_len`, `chunk_size`).
PAGE, CHUNK = 256, 2048
#: CUDA context, cuBLAS and the extension's kernels on one card; at most with a desktop's windows beside them (a CodeLlama-13B at 2.65 bits
#: took 2.2 GiB beside weights and cache, turboderp-org/exllamav2#3, where the engine's own scratch explains 0.6 to 1.2).
_CONTEXT, _DESKTOP = Quantity(400 * _MIB, 250 * _MIB, 512 * _MIB, Basis.ASSUMED), 1024 * _MIB


def _beside(reserve: int) -> Quantity:
    """What is on the card beside the model's: a desktop is in the upper end, as far as a reserve does not keep room for it."""
    return replace(_CONTEXT, high=_CONTEXT.high + max(0, _DESKTOP - reserve))


def _assumed(reserve: int) -> str:
    told = "memory beside weights and cache is assumed, not measured"
    if reserve >= _DESKTOP:
        return told
    most = "up to 1 GiB" + (" with the reserve" if reserve else "")
    return f"{told}; a desktop on the same card ({most}) is in the upper end"


class Exllama(Engine):
    """The accounting common to both generations; each says what it reads and which cache types it has."""

    cache_bits: ClassVar[Mapping[str, float]]
    formats: ClassVar[tuple[str, ...]]
    format_remedy: ClassVar[str]
    recurrent: ClassVar[bool]
    #: Which TabbyAPI serves it (its README and `backends/exllamav2/version.py`; EXL2 left its main branch).
    served_by: ClassVar[str]
    capability: ClassVar[int]
    kv_dtypes: ClassVar[tuple[str, ...]] = ("auto", "q8", "q6", "q4")

    def spreads(self, cards: int) -> Iterator[Parallel]:
        """Yield matrices cut over the cards, then layers laid over them one after the other."""
        yield Parallel(tp=cards)
        if cards > 1:
            yield Parallel(pp=cards)

    def kernel(self, form: Format, gpu: Gpu) -> Kernel:
        """Choose its own kernels, or the one for GPTQ; all multiply in 16 bit, on every card."""
        if form.kernel is KernelFamily.W16:
            return Kernel(form.kernel, "bf16")
        return Kernel("exl-gptq" if form.kernel is KernelFamily.GPTQ else "exl", "bf16")

    def illegal(self, ir: ModelIR, gpu: Gpu, settings: Settings) -> tuple[Reason, ...]:
        """Refuse formats, cache kinds and types, and cards that the engine lacks."""
        if gpu.vendor not in ("NVIDIA", "CPU"):
            return (vendor_not_modelled(self.name, gpu),)
        reasons: list[Reason] = []
        if gpu.is_cpu:
            reasons.append(
                Reason("engine_needs_cuda", f"{self.name} runs on NVIDIA cards, not on {gpu.name}", "engine vllm-cpu")
            )
        elif (gpu.capability or 0) < self.capability:
            needs = f"{self.capability // 10}.{self.capability % 10}"
            reasons.append(Reason("card_too_old", f"{self.name} needs compute capability {needs}", "a newer card"))
        if not (ends := purpose(ir)).writes:
            message = f"{self.name} writes text, and {ir.name} answers with a {ends}"
            reasons.append(Reason("engine_only_writes", message, "engine vllm"))
        if ir.load_time.name != "none":
            message = f"{self.name} quantizes nothing while it loads"
            reasons.append(Reason("no_load_time_quantization", message, self.format_remedy))
        for form in sorted({lin.storage.engine_name for block, _ in ir.decoder.counts for lin in block.linears}):
            if form not in (Dense.kind, *self.formats):
                reasons.append(
                    Reason(f"{form}_not_in_{self.name}", f"{self.name} does not read {form}", self.format_remedy)
                )
        if ir.kv_cache.dtype not in self.cache_bits:
            known = ", ".join(self.cache_bits)
            reasons.append(
                Reason("kv_dtype_unknown", f"{self.name} has no {ir.kv_cache.dtype} cache", f"one of {known}")
            )
        for block, _ in ir.decoder.counts:
            if isinstance(block.state, LatentKV) or (isinstance(block.state, Recurrent) and not self.recurrent):
                reasons.append(
                    Reason("architecture_not_read", f"{self.name} does not run {ir.architecture}", "engine vllm")
                )
                break
        return tuple(reasons)

    def memory(self, ir: ModelIR, gpu: Gpu, settings: Settings, workload: Workload) -> MemoryEstimate:
        """Return the tightest card's weights, scratch and cache; layers are spread evenly over the cards."""
        cards = settings.parallel.gpus
        card = gpu.memory_bytes
        utilization = settings.gpu_memory_utilization or 1.0
        kept = settings.reserve_bytes
        beside = _beside(kept)
        budget = Quantity(
            card.value * utilization - kept, card.low * utilization - kept, card.high * utilization - kept, card.basis
        )
        ranks = list[tuple[Memory, Layout]]()
        for stage, size in enumerate(weights_per_stage(ir, Parallel(pp=cards))):
            if stage == 0:
                size -= embedding_bytes(ir)
            weights = weights_quantity(ir, size, 0.01, Basis.CALIBRATED)
            scratch = self._scratch(ir, workload.context, last=stage == cards - 1)
            slots = Quantity.exact(
                self._slot_bytes(ir, cards, stage, self.scheduler(gpu, settings, workload).sequences)
            )
            left = budget - (weights + scratch + beside + slots)
            if settings.kv_cache_memory_bytes is not None:
                left = Quantity.exact(settings.kv_cache_memory_bytes)
            layout = self._layout(ir, cards, stage)
            needed = layout.request_bytes(workload.context) * (workload.concurrency or 1)
            total = weights + scratch + beside + slots + Quantity.exact(needed)
            ranks.append((Memory(weights, left, scratch, beside, Quantity.exact(0), total, budget), layout))
        best = min(ranks, key=lambda rank: (rank[1].blocks(rank[0].kv_cache.value), rank[0].kv_cache.value))
        notes = tuple(n for n in (gpu.note, _assumed(kept)) if n)
        return answer(*best, ir, workload, notes=notes)

    def least_weights(self, ir: ModelIR, gpu: Gpu, settings: Settings) -> int:
        """Return the bytes of the fullest card; the embedding stays in the machine's memory."""
        first, *others = weights_per_stage(ir, Parallel(pp=settings.parallel.gpus))
        return max(first - embedding_bytes(ir), *others, 0)

    def _scratch(self, ir: ModelIR, context: int, *, last: bool) -> Quantity:
        widest = max((_widest(block) for block, _ in ir.decoder.counts), default=0)
        largest = max((_largest(block.linears) for block, _ in ir.decoder.counts), default=0)
        logits = 0
        if last:
            logits = 4 * ir.vocab_size * 2
            largest = max(largest, self.dequantized_head(_largest(head_of(ir))))
        size = 2 * (CHUNK * (4 * ir.hidden_size + 2 * widest) + largest) + logits
        low, high = self.attention_bytes(max((block.heads for block, _ in ir.decoder.counts), default=0), context)
        return Quantity(size + low, 0.7 * size, 1.5 * size + high, Basis.ASSUMED)

    def _layout(self, ir: ModelIR, cards: int, stage: int) -> Layout:
        states = tuple(
            (block.state, count)
            for block, count in stage_blocks(ir, cards, stage)
            if not isinstance(block.state, NoState) and self.slot_bytes(ir, block.state) is None
        )
        element = self.cache_bytes(ir) + self.unpacked_bytes(ir, sum(count for _, count in states))
        settings = CacheSettings(PAGE, element, 2, 1, CHUNK, prefix_caching=False)
        return build_layout(states, settings, _page_rules())

    def _slot_bytes(self, ir: ModelIR, cards: int, stage: int, requests: int) -> int:
        blocks = stage_blocks(ir, cards, stage)
        return requests * sum(count * (self.slot_bytes(ir, block.state) or 0) for block, count in blocks)

    def most_sequences(self, gpu: Gpu, settings: Settings) -> int | None:
        """Return what is set; else it is as many as are asked: the launch files set so many."""
        return settings.max_num_seqs

    def scheduler(self, gpu: Gpu, settings: Settings, workload: Workload) -> Scheduler:
        """Return chunks of a prompt, and as many sequences as are asked, or the most that it runs."""
        requests = self.most_sequences(gpu, settings) or workload.concurrency or 1
        return Scheduler(settings.max_num_batched_tokens or CHUNK, requests)

    def queue(self, gpu: Gpu, settings: Settings, workload: Workload, kv: KVEstimate) -> Queue:
        """Compose steps as the dynamic generator does, with pages for whole answers."""
        from targets.simulation.exllama import Generator
        from targets.simulation.serving import cache_of

        limits = self.scheduler(gpu, settings, workload)
        return Generator(limits.tokens, limits.sequences, cache_of(kv, workload, PAGE))

    def cache_bytes(self, ir: ModelIR) -> float:
        """Return the bytes of a cached key or value, by the cache's type."""
        return self.cache_bits.get(ir.kv_cache.dtype, 16.0) / 8

    def unpacked_bytes(self, ir: ModelIR, layers: int) -> float:
        """Return the bytes a cached key or value that a card with so many layers keeps beside the cache itself."""
        return 0.0

    def slot_bytes(self, ir: ModelIR, state: LayerState) -> int | None:
        """Return the bytes a request that a layer keeps outside of the paged cache; None: it keeps pages."""
        return None

    def dequantized_head(self, elements: int) -> int:
        """Count the elements of the head that are dequantized at once."""
        return 0

    def attention_bytes(self, heads: int, context: int) -> tuple[float, float]:
        """Return the bytes of scratch of attention's scores, with the fast kernels and at most."""
        return 0.0, 0.0

    def launch(self, request: LaunchRequest) -> Launch:
        """Start TabbyAPI with a config file."""
        from targets.engines.exllama.launch import tabby_launch

        return tabby_launch(request, self.served_by, self.cache_mode(request.ir.kv_cache.dtype))

    def served_name(self, folder: Path) -> str:
        """Read it from its config file."""
        from targets.engines.exllama.launch import served_name

        return served_name(folder)

    def verifier(self) -> Verifier:
        """Drive it through TabbyAPI, where a checkout is named."""
        from targets.engines.exllama.verify import TabbyVerifier

        return TabbyVerifier(self)

    @abstractmethod
    def cache_mode(self, dtype: str) -> str:
        """Return how TabbyAPI names a cache type."""


@cache
def _page_rules() -> Rules:
    """Whole pages for every layer, as vLLM kept them before it had groups."""
    return replace(rules_for("0.8")[0], hybrid_groups=False, chunked_groups=False)


def architecture_of(ir: ModelIR) -> str:
    """Return the architecture that config.json names, empty where it names none."""
    return next(iter(Config(ir.config, ir.name).names("architectures", default=())), "")


def architecture_reasons(engine: str, known: Collection[str], ir: ModelIR, remedy: str) -> tuple[Reason, ...]:
    """Refuse the architecture that config.json names, where the engine has no model for it; nothing where it names none."""
    architecture = architecture_of(ir)
    if not architecture or architecture in known:
        return ()
    message = f"{engine} has no model for the architecture {architecture}"
    return (Reason(f"architecture_not_in_{engine}", message, remedy, {"architecture": architecture}),)


def placement_reasons(
    engine: str, ir: ModelIR, kind: type[LayerState], expected: Callable[[int], bool]
) -> tuple[Reason, ...]:
    """Refuse layers of a kind that the config places one by one (`layer_types`), where the engine expects them by the layer's number."""
    layers = range(len(ir.decoder.layers))
    placed = [isinstance(ir.decoder.block(layer).state, kind) for layer in layers]
    if not any(placed) or placed == [expected(layer) for layer in layers]:
        return ()
    message = f"{engine} tells this architecture's kinds of layers by their number, and here they stand otherwise"
    return (Reason(f"layer_kinds_not_in_{engine}", message, "engine vllm, or a chain that drops no blocks"),)


def cache_types(widths: Iterable[int]) -> dict[str, float]:
    """Return bits an element by name of the fp16 cache, and of those of integers of some widths, their scales included."""
    return {OWN: cache_bits(OWN)} | dict(map(integers, widths))


def _widest(block: Block) -> int:
    return int(max((lin.out_features * (lin.active if lin.copies > 1 else 1) for lin in block.linears), default=0))


def _largest(linears: Iterable[Linear]) -> int:
    return max((lin.out_features * lin.in_features for lin in linears), default=0)


def head_of(ir: ModelIR) -> tuple[Linear, ...]:
    """Return the matrix to the vocabulary; the embedding where the two are tied, which both engines store once more."""
    roles = {Role.HEAD, Role.EMBEDDING} if ir.tied_embeddings else {Role.HEAD}
    return tuple(lin for lin in ir.outer if lin.role in roles)
