"""What a model loses against what it was made of: a published quantization of a known model has lost before anything is done to it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from passes.base import Pass
from passes.ir.model import ModelIR
from passes.ir.names import made_of, released_so
from passes.ir.sources import described
from passes.quantize.format_names import pass_named
from planner.quality.expected import Quality, expected_quality

#: What is said of a goal on quality where nobody knows what was lost already.
NOT_JUDGED = "not judged: the checkpoint is quantized already; its loss against the model it was made from is not known"


def loss_since_origin(ir: ModelIR, passes: Sequence[Pass]) -> Quality:
    """Return what a model after a chain is expected to have lost against the model it was made of, which is itself unless it is a
    quantization of a known one; where it is quantized and that is not known (`origin_unknown`), what the chain alone loses.
    """
    if ir.quant_method is None or (origin := _origin(ir.name)) is None:
        return expected_quality(ir, passes)
    dense, stored = origin
    return expected_quality(dense, (stored, *passes))


def origin_unknown(ir: ModelIR) -> bool:
    """Tell whether a model is quantized, was not released so by its maker, and what it was made of is not known."""
    quantized = ir.quant_method is not None and any(
        linear.storage.is_quantized for block, _ in ir.decoder.counts for linear in block.linears
    )
    return quantized and not released_so(ir.name) and _origin(ir.name) is None


@lru_cache(maxsize=64)
def _origin(name: str) -> tuple[ModelIR, Pass] | None:
    """The model that a checkpoint of this name was made of, and the pass that would make it."""
    found = made_of(name)
    if found is None or (stored := pass_named(found[1].weights)) is None or (dense := described(found[0])) is None:
        return None
    return dense, stored
