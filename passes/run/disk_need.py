"""What a run keeps on disk while it works, in bytes: arithmetic of what `passes.walk.walk`, `passes.measure.fisher` and the others
write."""

from __future__ import annotations

from collections.abc import Sequence

from passes.base import Pass
from passes.ir.model import ModelIR
from passes.prune.depth import DepthPrune
from passes.quantize.exl2 import QuantizeExl2
from passes.quantize.mixed import QuantizeMixed
from passes.text.source import TextSource
from passes.text.split import FISHER_SEQUENCES, FITTED_SEQUENCES

#: Bytes of a hidden state: fp32 where the processor lacks bf16.
_ITEM_BYTES = 4


def scratch_bytes(
    source: ModelIR, target: ModelIR, passes: Sequence[Pass], calibration: TextSource | None, evaluation: TextSource
) -> int:
    """The most that lies in the work folder at once beside downloads: the walk's shards or a trial's, and hidden states.

    `calibration`: None where nothing looks at it.
    """
    depth, width = len(source.decoder.layers), source.hidden_size * _ITEM_BYTES
    walk = target.tensor_bytes
    hidden = [4 * evaluation.samples * evaluation.length * width]
    if calibration is not None:
        text = calibration.samples * calibration.length * width
        hidden.append(2 * text)
        hidden += [(one.count + 2) * text for one in passes if isinstance(one, DepthPrune) and not one.resolved]
        if any(isinstance(one, QuantizeExl2 | QuantizeMixed) and not one.resolved for one in passes):
            fitted = min(calibration.samples, FISHER_SEQUENCES) * calibration.length * width
            tried = min(calibration.samples, FITTED_SEQUENCES) * calibration.length * width
            hidden += [(depth + 3) * fitted, 2 * tried]
    return walk + max(hidden)
