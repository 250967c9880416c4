"""Puts passes into a chain: which, in which legal order, and the chain's text and JSON forms.

source ──► prune ──► distill ──► quantize ──► kv_cache ──► checkpoint
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from passes.base import NATIVE, Pass, Stage
from passes.blocks.model_class import unwalkable
from passes.errors import InputError, Reason
from passes.formats.format import FORMATS, Format
from passes.ir.model import ModelIR
from passes.registry import Registry

if TYPE_CHECKING:
    from passes.algorithms.learned.rounding import Tuning
    from passes.algorithms.method import Method
    from passes.backends.backend import Backend


#: Every pass by its name, in the order in which the planner weighs those of one stage.
PASSES: Registry[type[Pass]] = Registry(
    "pass",
    {
        "prune_depth": "passes.prune.depth:DepthPrune",
        "prune_width": "passes.prune.width:WidthPrune",
        "prune_experts": "passes.prune.experts:ExpertPrune",
        "prune_sparse": "passes.prune.sparse:Sparsify",
        "distill": "passes.distill.distill:Distill",
        "quantize": "passes.quantize.quantize:Quantize",
        "quantize_mixed": "passes.quantize.mixed:QuantizeMixed",
        "quantize_exl2": "passes.quantize.exl2:QuantizeExl2",
        "quantize_at_load": "passes.quantize.at_load:QuantizeAtLoad",
        "kv_cache": "passes.kv_cache:KVCachePass",
    },
    group="tightfit.passes",
)

#: Every outside tool by its name.
BACKENDS: Registry[type[Backend[Any]]] = Registry(
    "backend",
    {
        "llmcompressor": "passes.backends.libraries:LlmCompressor",
        "gptqmodel": "passes.backends.libraries:GptqModel",
        "autoround": "passes.backends.libraries:AutoRound",
        "exllamav2": "passes.backends.converters:ExllamaV2",
        "exllamav3": "passes.backends.converters:ExllamaV3",
    },
    group="tightfit.backends",
)


def find_backend(name: str) -> Backend[Any]:
    """Return an outside tool by its name. Raises InputError with the nearest names."""
    return BACKENDS.find(name, remedy=f"one of {', '.join((NATIVE, *BACKENDS.names()))}")()


def illegal(ir: ModelIR, passes: Sequence[Pass]) -> tuple[Reason, ...]:
    """Say why a chain cannot be applied: its order, passes that exclude each other, or one that is illegal on what the others left."""
    stages = [pass_.stage for pass_ in passes]
    if stages != sorted(stages, key=list(Stage).index):
        message = f"passes stand in the order {' → '.join(stages)}"
        return (Reason("pass_order", message, f"order them {' → '.join(Stage)}"),)
    twice = next((stage for stage in stages if stages.count(stage) > 1 and not stage.repeatable), None)
    if twice is not None:
        return (Reason("pass_twice", f"{twice} stands twice in the chain", "keep one of them"),)
    if (reason := conflict(passes)) is not None:
        return (reason,)
    for pass_ in passes:
        if reasons := pass_.illegal(ir):
            return reasons
        ir = pass_.rewrite(ir)
    return ()


def conflict(passes: Sequence[Pass]) -> Reason | None:
    """Say why passes do not go together: one excludes another, or an outside tool cannot make its own; None where they do."""
    for pass_ in passes:
        if (reason := pass_.conflict(passes)) is not None:
            return reason
    if (made_outside := outside(passes)) is None:
        return None
    return find_backend(made_outside.backend).refuses(made_outside)


def outside(passes: Sequence[Pass]) -> Pass | None:
    """Return the pass of a chain that an outside tool makes; None where all is native."""
    return next((pass_ for pass_ in passes if pass_.backend != NATIVE), None)


def needs_text(passes: Sequence[Pass], planned: ModelIR) -> bool:
    """Return whether running a chain that ends in `planned` reads calibration text: to compensate errors, measure a choice, or find
    scales.
    """
    return planned.calibrated_scales or any(pass_.needs_text for pass_ in passes)


def nothing_to_make(passes: Sequence[Pass]) -> bool:
    """Return whether a chain leaves the checkpoint, and the values of its weights, as they are."""
    return all(pass_.load_time and pass_.rounds_by is None for pass_ in passes)


def walk_needs_text(passes: Sequence[Pass], planned: ModelIR) -> bool:
    """Return whether blocks are run on calibration text here, and not by an outside tool alone."""
    return needs_text([pass_ for pass_ in passes if pass_.backend == NATIVE], planned)


def missing(ir: ModelIR, passes: Sequence[Pass]) -> tuple[str, ...]:
    """Say what `apply` lacks to run a legal chain on a model, in words; empty where it can."""
    lacks, planned = [], ir
    for pass_ in passes:
        if lack := pass_.missing(planned):
            lacks.append(lack)
        planned = pass_.rewrite(planned)
    if (why := unwalkable(ir)) is not None and walk_needs_text(passes, planned):
        lacks.append(f"nothing can be calibrated: {why}")
    return tuple(lacks)


def rewrite(ir: ModelIR, passes: Sequence[Pass]) -> ModelIR:
    """Return the description after a chain. The chain must be legal."""
    for pass_ in passes:
        ir = pass_.rewrite(ir)
    return ir


def draw(passes: Sequence[Pass]) -> str:
    """Draw one line: `source ─► quantize{gptq, w4a16-g64} ─► kv_cache{dtype=fp8} ─► checkpoint`."""
    return " ─► ".join(["source", *(pass_.text() for pass_ in passes), "checkpoint"])


def to_json(passes: Sequence[Pass]) -> list[dict[str, Any]]:
    """Return the chain as JSON values; `from_json` reads it back equal."""
    return [{"pass": pass_.name, **{key: _value(value) for key, value in pass_.options().items()}} for pass_ in passes]


def from_json(values: Sequence[Mapping[str, Any]]) -> tuple[Pass, ...]:
    """Return a chain read back. Raises InputError for unknown passes, formats or options."""
    return tuple(_read_pass(value) for value in values)


def _value(value: Any) -> Any:
    if isinstance(value, Format):
        return {"format": value.kind, **{f.name: _value(getattr(value, f.name)) for f in dataclasses.fields(value)}}  # type: ignore[arg-type]
    return [_value(each) for each in value] if isinstance(value, tuple) else value


def _read_pass(value: Mapping[str, Any]) -> Pass:
    fields = dict(value)
    name = str(fields.pop("pass", ""))
    kind = PASSES.find(name, remedy=f"known passes: {', '.join(PASSES.names())}")
    try:
        return kind(**{key: _read_value(option) for key, option in fields.items()})
    except TypeError as error:
        raise InputError(f"pass {name}: {error}", remedy="make the plan again with this version") from error


def _read_value(value: Any) -> Any:
    if isinstance(value, Mapping) and "format" in value:
        fields = {key: _read_value(each) for key, each in value.items() if key != "format"}
        return FORMATS.find(str(value["format"]), remedy="make the plan again with this version")(**fields)
    return tuple(_read_value(each) for each in value) if isinstance(value, list) else value


def method(passes: Sequence[Pass]) -> Method:
    """Return the walk's algorithm: rounding to nearest, as each pass in turn changes it."""
    from passes.algorithms.method import RoundToNearest

    algorithm: Method = RoundToNearest()
    for pass_ in passes:
        algorithm = pass_.algorithm(algorithm)
    return algorithm


def tuning(passes: Sequence[Pass]) -> Tuning | None:
    """Return how the walk tunes each block that it has stored; None where no pass asks for it."""
    return next((pass_.tuning for pass_ in passes if pass_.tuning is not None), None)
