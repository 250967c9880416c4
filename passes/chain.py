"""The pass graph: which passes, in which legal order, and its text and JSON forms.

    source ──► prune ──► quantize ──► kv_cache ──► checkpoint

Order is prune → distil → quantize → KV cache: pruning after
quantization would throw away compensated errors, and cache scales must be seen on the final weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from passes.base import Pass
from passes.blocks.model_class import unwalkable
from passes.distill.distill import Distill
from passes.errors import InputError, Reason, unknown_name
from passes.formats.compressed_tensors import FloatQuantized
from passes.formats.format import FORMATS, Format
from passes.ir.model import ModelIR
from passes.kv_cache import KVCachePass
from passes.prune.depth import DepthPrune
from passes.prune.experts import ExpertPrune
from passes.prune.sparse import Sparsify
from passes.prune.width import WidthPrune
from passes.quantize.at_load import QuantizeAtLoad
from passes.quantize.exl2 import QuantizeExl2
from passes.quantize.mixed import QuantizeMixed
from passes.quantize.quantize import Quantize

if TYPE_CHECKING:
    from passes.algorithms.method import Method

#: Stages in the order in which they may stand in a chain; passes of one stage exclude each other, prunings do not.
_STAGES = ("prune", "distill", "quantize", "kv_cache")
_REPEATABLE = ("prune",)

_PASSES: Mapping[str, type[Pass]] = {
    kind.name: kind
    for kind in (
        DepthPrune, WidthPrune, ExpertPrune, Sparsify, Distill, Quantize, QuantizeMixed, QuantizeExl2, QuantizeAtLoad,
        KVCachePass,
    )
}  # fmt: skip


def stage(one: Pass) -> str:
    """The stage of a pass: the first word of its name."""
    return next((name for name in _STAGES if one.name.startswith(name)), one.name)


def illegal(ir: ModelIR, passes: Sequence[Pass]) -> tuple[Reason, ...]:
    """Why a chain cannot be applied: its order, or a pass that is illegal on what the earlier ones made."""
    stages = [stage(one) for one in passes]
    ranks = [_STAGES.index(name) if name in _STAGES else len(_STAGES) for name in stages]
    if ranks != sorted(ranks):
        return (
            Reason(
                "pass_order", f"passes stand in the order {' → '.join(stages)}", f"order them {' → '.join(_STAGES)}"
            ),
        )
    twice = [name for name in set(stages) if stages.count(name) > 1 and name not in _REPEATABLE]
    if twice:
        return (Reason("pass_twice", f"{twice[0]} stands twice in the chain", "keep one of them"),)
    if (reason := refused(passes) or _zeros_refused(passes)) is not None:
        return (reason,)
    for one in passes:
        reasons = one.illegal(ir)
        if reasons:
            return reasons
        ir = one.rewrite(ir)
    return ()


def outside(passes: Sequence[Pass]) -> Pass | None:
    """The pass of a chain that an outside tool makes; None where all is native."""
    return next((one for one in passes if one.backend != "native"), None)


def calibrated(passes: Sequence[Pass], target: ModelIR) -> bool:
    """Whether a chain that ends in `target` has to see text: it compensates errors, measures choices, or finds scales."""
    native = [one for one in passes if one.backend == "native"]
    waits = any(not one.resolved for one in native)
    return waits or target.calibrated_scales or method_of(native).needs_hessian


def looks_at_text(passes: Sequence[Pass], target: ModelIR) -> bool:
    """Whether calibration text is needed: by the walk, or by an outside tool."""
    return outside(passes) is not None or calibrated(passes, target)


def missing(ir: ModelIR, passes: Sequence[Pass]) -> tuple[str, ...]:
    """What `apply` lacks to run a legal chain on a model, in words; empty when it can."""
    out = [found for one in passes if (found := one.missing())]
    if (why := unwalkable(ir)) is not None and calibrated(passes, rewrite(ir, passes)):
        out.append(f"nothing can be calibrated: {why}")
    return tuple(out)


def refused(passes: Sequence[Pass]) -> Reason | None:
    """Why an outside tool cannot make its pass in a chain; None where it can, or where all is native."""
    if (made := outside(passes)) is None:
        return None
    from passes.backends import find_backend

    if any(isinstance(one, Sparsify) for one in passes):
        return Reason("backend_drops_zeros", f"{made.backend} would fill the zeros again", "backend: native")
    if any(isinstance(one, KVCachePass) and one.scales for one in passes):
        return Reason(
            "backend_no_kv_scales",
            f"cache scales are found in the native walk, not by {made.backend}",
            "backend: native",
        )
    return find_backend(made.backend).refuses(made)


def _zeros_refused(passes: Sequence[Pass]) -> Reason | None:
    """Why zeros do not go with the rounding of a chain: they are chosen in GPTQ's loop, or before values that follow the weights (FP8)."""
    if not any(isinstance(one, Sparsify) for one in passes):
        return None
    for one in passes:
        if isinstance(one, QuantizeExl2) or (isinstance(one, Quantize | QuantizeMixed) and one.method != "gptq"):
            if isinstance(one, Quantize) and one.method == "rtn" and isinstance(one.storage, FloatQuantized):
                continue
            message = f"zeros are chosen together with GPTQ's rounding, not with {one.method}'s"
            return Reason("zeros_need_gptq", message, "quantize with gptq or to fp8, or drop one of the passes")
    return None


def rewrite(ir: ModelIR, passes: Sequence[Pass]) -> ModelIR:
    """The description after a chain. The chain must be legal."""
    for one in passes:
        ir = one.rewrite(ir)
    return ir


def draw(passes: Sequence[Pass]) -> str:
    """One line: `source ─► quantize{gptq, w4a16-g64} ─► kv_cache{dtype=fp8} ─► checkpoint`."""
    return " ─► ".join(["source", *(one.text() for one in passes), "checkpoint"])


def to_json(passes: Sequence[Pass]) -> list[dict[str, Any]]:
    """The chain as JSON values; `from_json` reads it back equal."""
    return [{"pass": one.name, **{key: _value(value) for key, value in one.options().items()}} for one in passes]


def from_json(values: Sequence[Mapping[str, Any]]) -> tuple[Pass, ...]:
    """A chain read back. Raises InputError for unknown passes, formats or options."""
    return tuple(_read_pass(value) for value in values)


def _value(value: Any) -> Any:
    if isinstance(value, Format):
        return {"format": value.kind, **{f.name: _value(getattr(value, f.name)) for f in dataclasses.fields(value)}}  # type: ignore[arg-type]
    return [_value(each) for each in value] if isinstance(value, tuple) else value


def _read_pass(value: Mapping[str, Any]) -> Pass:
    fields = dict(value)
    name = str(fields.pop("pass", ""))
    if name not in _PASSES:
        raise unknown_name("pass", name, _PASSES, remedy=f"known passes: {', '.join(_PASSES)}")
    try:
        return _PASSES[name](**{key: _read_value(each) for key, each in fields.items()})
    except TypeError as error:
        raise InputError(f"pass {name}: {error}", remedy="make the plan again with this version") from error


def _read_value(value: Any) -> Any:
    if isinstance(value, Mapping) and "format" in value:
        fields = {key: _read_value(each) for key, each in value.items() if key != "format"}
        return FORMATS.find(str(value["format"]), remedy="make the plan again with this version")(**fields)
    return tuple(_read_value(each) for each in value) if isinstance(value, list) else value


def method_of(passes: Sequence[Pass]) -> Method:
    """The algorithm; none for what an outside tool makes."""
    from passes.algorithms.method import method

    made_here = [one for one in passes if one.backend == "native"]
    quantize = next((one for one in made_here if isinstance(one, Quantize | QuantizeMixed | QuantizeExl2)), None)
    mask = next((one.mask for one in passes if isinstance(one, Sparsify)), None)
    if isinstance(quantize, Quantize | QuantizeMixed):
        return method(quantize.method, mask, quantize.damping)
    return method(None if quantize is None else quantize.method, mask)
