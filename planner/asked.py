"""From the names users write to chains of passes and back to words, and from a chain to the description it makes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

from passes.base import NATIVE, Pass
from passes.chain import conflict
from passes.errors import InputError, NotModelledError, Reason, unknown_name
from passes.formats.format import format_named
from passes.formats.kv_dtypes import NAMES, NOT_MODELLED, OWN, kv_dtype
from passes.ir.model import ModelIR, remembered
from passes.ir.resident import cast_dense
from passes.kv_cache import KVCachePass
from passes.quantize.format_names import dense_dtype, pass_named

#: How plans call weights that are served as they are stored.
AS_IS = "as-is"


def chain_of(weights: str | None, kv_cache_dtype: str) -> tuple[Pass, ...]:
    """Return the passes that a format's name and a KV type stand for. Raises InputError for unknown names."""
    chain: list[Pass] = []
    dtype = kv_dtype(kv_cache_dtype)
    if dtype is None and kv_cache_dtype in NOT_MODELLED:
        message = f"vLLM's KV-cache type {kv_cache_dtype!r}, {NOT_MODELLED[kv_cache_dtype]}, is not modelled"
        raise NotModelledError(message, remedy="ask about fp8, or nvfp4")
    if dtype is None:
        raise unknown_name("KV-cache type", kv_cache_dtype, NAMES, remedy=f"one of {', '.join(NAMES)}")
    scheme = pass_named(weights) if weights else None
    if scheme is not None:
        chain.append(scheme)
    if dtype.name != OWN:
        chain.append(KVCachePass(dtype.name))
    return tuple(chain)


#: Methods as people write them; others in capitals.
_METHODS: Mapping[str, str] = {"rtn": "rounding", "smoothquant": "SmoothQuant", "autoround": "AutoRound"}


@lru_cache(maxsize=1024)
def spoken(pass_: Pass) -> str:
    """Say a pass in plain words with the name that `check --weights` takes: `4 bit in groups of 64 by GPTQ (w4a16-g64)`."""
    name, method = pass_.weights_name, pass_.rounds_by
    form = format_named(name) if name is not None else None
    if form is None or method is None:
        return pass_.title()
    groups = f" in groups of {form.group_size}" if form.group_size > 0 else ""
    rows = " with a scale a row" if form.group_size < 0 and form.block is None else ""
    made = " while loading" if pass_.load_time else f" by {_METHODS.get(method, method.upper())}"
    tool = f" with {pass_.backend}" if pass_.backend not in (NATIVE, method) else ""
    head = pass_.options().get("head_bits", _USUAL_HEAD)
    return f"{form.bits:g} bit{groups}{rows}{made}{tool} ({name}{'' if head == _USUAL_HEAD else f'-h{head}'})"


#: Bits of an output head that need no saying: those of a name that says none.
_USUAL_HEAD = 6


@remembered
def rewrite(ir: ModelIR, chain: tuple[Pass, ...]) -> tuple[ModelIR, tuple[Reason, ...]]:
    """Return the description after a chain, and why its passes are illegal; an illegal pass is still described where it can be."""
    reasons: list[Reason] = []
    for step in chain:
        reasons += step.illegal(ir)
        ir = step.rewrite(ir)
    between = conflict(chain)
    return ir, (*reasons, *((between,) if between else ()))


def with_dtype(ir: ModelIR, weights: str | None, dtype: str | None) -> ModelIR:
    """Return the model in the dtype that was asked by `--dtype` or a dense `--weights`."""
    name = dense_dtype(weights) if weights else None
    asked = name or _DTYPES.get((dtype or "auto").lower())
    if dtype and dtype.lower() not in _DTYPES:
        raise InputError(f"unknown dtype {dtype!r}", remedy=f"one of {', '.join(_DTYPES)}")
    if asked is None or asked == ir.dtype:
        return ir
    return cast_dense(ir, asked)


_DTYPES: Mapping[str, str | None] = {
    "auto": None, "bfloat16": "BF16", "bf16": "BF16", "float16": "F16", "half": "F16", "fp16": "F16", "float32": "F32", "float": "F32",
    "fp32": "F32",
}  # fmt: skip
