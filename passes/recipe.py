"""What a chain asks of the walk: the algorithm of its quantize pass, with the zeros of its sparsity pass."""

from __future__ import annotations

from collections.abc import Sequence

from passes.base import Pass
from passes.prune.sparse import Sparsify
from passes.quantize.exl2_pass import QuantizeExl2
from passes.quantize.methods import Method, method
from passes.quantize.mixed import QuantizeMixed
from passes.quantize.quantize import Quantize


def method_of(passes: Sequence[Pass]) -> Method:
    """The algorithm; none for what an outside tool makes."""
    made_here = [one for one in passes if one.backend == "native"]
    quantize = next((one for one in made_here if isinstance(one, Quantize | QuantizeMixed | QuantizeExl2)), None)
    mask = next((one.mask for one in passes if isinstance(one, Sparsify)), None)
    if isinstance(quantize, Quantize | QuantizeMixed):
        return method(quantize.method, mask, quantize.damping)
    return method(None if quantize is None else quantize.method, mask)
