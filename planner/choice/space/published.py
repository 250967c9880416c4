"""Checkpoints that others made of a spec's model and published: candidates that need no work, as good as their format is expected to be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from passes.base import NATIVE, Pass
from passes.errors import InputError
from passes.ir.model import ModelIR
from passes.ir.names import Published, find, published_of, released_so
from passes.ir.sources import described
from passes.quantize.format_names import pass_named
from planner.quality.expected import Quality, expected_quality

if TYPE_CHECKING:
    from planner.spec.parts.choices import QuantizeChoice
    from planner.spec.spec import Spec


def published_checkpoints(spec: Spec, ir: ModelIR) -> Iterator[tuple[Published, ModelIR]]:
    """Give the published checkpoints of a spec's model that its passes allow, each with its description.

    None of a model that somebody quantized already, of one that is not named but lies in a folder, and where the spec has something made of
    it: pruning, or weights by an outside tool.
    """
    from planner.spec.parts.choices import PruneChoice  # a check asks for descriptions, without a spec

    choice, match = spec.passes.quantize, find(spec.model)
    if choice == "forbid" or not as_released(ir) or match is None or ir.name not in (match.id, spec.model):
        return
    if choice.backend != NATIVE or isinstance(spec.passes.prune, PruneChoice):
        return
    for made in published_of(ir.name):
        if _allowed(choice, made) and (served := description(ir, made)) is not None:
            yield made, served


def as_released(ir: ModelIR) -> bool:
    """Tell whether a model is what its maker released, in 16 bits or in fewer (DeepSeek-R1 in FP8): what others made of it is its
    sibling.
    """
    return ir.quant_method is None or released_so(ir.name)


@lru_cache(maxsize=64)
def description(dense: ModelIR, made: Published) -> ModelIR | None:
    """Return the description of a published checkpoint of a dense model: as its name is answered, else as its format
    stores that model; None for what cannot be described.
    """
    try:
        known = described(made.id)
    except InputError:
        return None
    if known is not None and known.quant_method is not None:
        return known
    stored = equivalent(made)
    if stored.illegal(dense):
        return None
    return replace(stored.rewrite(dense), name=made.id, quant_method=made.quant_method)


def published_quality(dense: ModelIR, made: Published, passes: tuple[Pass, ...]) -> Quality:
    """Return what a published checkpoint, and passes on it, are expected to lose against the dense model: as its format does."""
    return expected_quality(dense, (equivalent(made), *passes))


def equivalent(made: Published) -> Pass:
    """Return the pass that would make such a checkpoint."""
    stored = pass_named(made.weights)
    assert stored is not None, f"conventions.json: {made.id} is stored in no quantized format"
    return stored


def _allowed(choice: QuantizeChoice, made: Published) -> bool:
    if choice.formats is not None and made.weights not in choice.formats:
        return False
    return choice.methods is None or equivalent(made).rounds_by in choice.methods
