"""What vLLM computes in: the model's dtype, and what it falls back to on cards without bfloat16.

Sources: `config/model.py:_resolve_auto_dtype`, `_FLOAT16_NOT_SUPPORTED_MODELS`, `platforms/cuda.py:check_if_supports_dtype` (0.9 on).
"""

from __future__ import annotations

from collections.abc import Iterator

from passes.errors import Reason
from passes.ir.model import ModelIR
from targets.engines.vllm.rules.versions import Rules
from targets.gpu import Gpu

#: The least compute capability × 10 with bfloat16.
_BFLOAT16 = 80


def computed_dtype(ir: ModelIR, gpu: Gpu, asked: str | None, rules: Rules) -> str:
    """Return safetensors' name of what the model computes in where no other is asked for.

    Its own; bfloat16 for one in float32 (before 0.9.1 float16); on a card without it float16, or float32 where families refuse that.
    """
    if gpu.is_cpu or asked not in (None, "auto"):
        return ir.dtype
    refuses = ir.model_type in rules.no_float16
    dtype = ir.dtype
    if dtype == "F32" or (dtype == "F16" and refuses):
        dtype = "BF16" if rules.names_dtypes else "F16"
    if dtype == "BF16" and _lacks_bfloat16(gpu) and rules.names_dtypes:
        return "F32" if refuses else "F16"
    return dtype


def dtype_reasons(ir: ModelIR, gpu: Gpu, asked: str | None, rules: Rules) -> Iterator[Reason]:
    """Say what a version refuses to compute in, for this model or on this card."""
    refuses = ir.model_type in rules.no_float16
    if computed_dtype(ir, gpu, asked, rules) == "F16" and refuses:
        yield Reason("float16_refused", f"vLLM runs {ir.model_type} models in no float16", "dtype bfloat16")
    if computed_dtype(ir, gpu, asked, rules) == "BF16" and _lacks_bfloat16(gpu):
        yield Reason("bf16_needs_sm80", f"{gpu.name} has no bfloat16", "dtype fp32" if refuses else "dtype fp16")


def dtype_note(ir: ModelIR, gpu: Gpu, asked: str | None, rules: Rules) -> str | None:
    """Return what a model computes in where that is not what it is stored in."""
    dtype = computed_dtype(ir, gpu, asked, rules)
    if dtype == ir.dtype:
        return None
    if ir.dtype == "F16" and dtype == "BF16":
        return f"vLLM runs {ir.model_type} models in no float16: its auto computes in bfloat16"
    if ir.dtype == "F32" and not _lacks_bfloat16(gpu):
        return f"vLLM's auto computes a model in float32 in {'bfloat16' if dtype == 'BF16' else 'float16'} (--dtype float32 keeps it)"
    if dtype == "F16":
        return f"{gpu.name} has no bfloat16: vLLM computes in float16 there"
    return f"{gpu.name} has no bfloat16, and vLLM runs {ir.model_type} models in no float16: it computes in float32, with twice the weights"


def _lacks_bfloat16(gpu: Gpu) -> bool:
    return gpu.capability is not None and gpu.capability < _BFLOAT16
