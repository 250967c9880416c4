"""What a pasted `vllm serve` command asks of `check`: its model with what it overrides, what drafts, the quantization it names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from passes.errors import InputError, Reason
from passes.ir.architectures import build_ir
from passes.ir.model import ModelIR
from passes.ir.quant_config.read import quantized
from passes.ir.sources import Source, open_model
from targets.engines.engine import Settings
from targets.engines.vllm.arguments.asked import Asked, with_draft

#: Quantizations of a command that name what a checkpoint is, by the `quant_method` of its config; `_marlin` is a kernel of it.
_KERNELS = ("_marlin", "_bitblas")
#: Names of the same format.
_SAME = {
    "modelopt_fp4": "modelopt",
    "modelopt_mixed": "modelopt",
    "auto-round": "auto_round",
    "inc": "auto_round",
    "gguf": "gguf",
}
#: What a quantization that the engine makes while loading is refused on: a checkpoint that has one already, of another kind.
_ONLINE = (
    "fp8",
    "fp8_per_tensor",
    "fp8_per_block",
    "bitsandbytes",
    "mxfp8",
    "int8_per_channel_weight_only",
    "torchao",
    "experts_int8",
    "online",
)


@dataclass(frozen=True, slots=True)
class Served:
    """The model of a command, and what it is asked with."""

    source: Source
    settings: Settings
    reasons: tuple[Reason, ...] = ()
    notes: tuple[str, ...] = ()


def served(asked: Asked, model: str) -> Served:
    """Return the model that a command serves. Raises InputError for names that are not known."""
    source = open_model(model, revision=asked.revision)
    notes: list[str] = []
    if asked.overrides:
        source = replace(source, ir=overridden(source.ir, asked.overrides))
        notes.append(f"the model's config with {', '.join(sorted(map(str, asked.overrides)))} overridden")
    settings, drafted = _drafting(asked, source.ir)
    return Served(source, settings, _mismatch(asked, source.ir), (*notes, *drafted))


def overridden(ir: ModelIR, overrides: Mapping[str, Any]) -> ModelIR:
    """Return a model whose config has keys at other values. Where its layers stay as they are, so does what was read of their files."""
    config = _merged(ir.config, overrides)
    before, after = (quantized(build_ir(each, ir.name)) for each in (ir.config, config))
    if before.stacks == after.stacks and before.outer == after.outer:
        return replace(ir, config=config, max_context=after.max_context)
    return replace(after, notes=ir.notes)


def _merged(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(config)
    for key, value in overrides.items():
        inner = merged.get(key)
        merged[key] = _merged(inner, value) if isinstance(inner, Mapping) and isinstance(value, Mapping) else value
    return merged


def _drafting(asked: Asked, ir: ModelIR) -> tuple[Settings, tuple[str, ...]]:
    """The settings with the model that drafts, and what is assumed of it."""
    drafting = asked.settings.features.drafting
    if drafting is None:
        return asked.settings, ()
    speed = "speeds are those without drafting"
    if drafting.own:
        if any(stack.name == "mtp" for stack in ir.stacks):
            return asked.settings, (speed,)
        return with_draft(asked.settings, own=False, assumed=True), (
            f"{ir.name}'s own layers for drafting ({drafting.method}) are not described: one of its size is assumed", speed,
        )  # fmt: skip
    if asked.draft is None:
        return asked.settings, (speed,)
    try:
        draft = open_model(asked.draft).ir
    except InputError:
        if not drafting.assumed or drafting.method == "draft_model":
            raise
        return asked.settings, (
            f"{asked.draft} is not known here: a head of {drafting.method} for {ir.name} is assumed", speed,
        )  # fmt: skip
    return with_draft(asked.settings, draft=draft, assumed=False), (speed,)


def _mismatch(asked: Asked, ir: ModelIR) -> tuple[Reason, ...]:
    """A quantization that is named and is not the checkpoint's (`config/model.py:_verify_quantization`)."""
    named = asked.quantization
    if named is None or (asked.weights is not None and ir.quant_method is None):
        return ()
    kind = _SAME.get(named, named)
    for suffix in _KERNELS:
        kind = kind.removesuffix(suffix)
    stored = ir.quant_method
    if stored is None:
        if named in _ONLINE:
            return ()
        message = f"--quantization {named} asks for a checkpoint that is quantized so, and {ir.name} is not quantized"
        return (Reason("quantization_mismatch", message, "leave --quantization out, or name a quantized checkpoint"),)
    if kind.replace("-", "_") == stored.replace("-", "_"):
        return ()
    message = f"--quantization {named} is not the checkpoint's own, which is {stored}"
    return (Reason("quantization_mismatch", message, "leave --quantization out: the checkpoint says what it is"),)
