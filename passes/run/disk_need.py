"""What a run keeps on disk while it works, in bytes: the walk's shards, and hidden states as the passes' costs say."""

from __future__ import annotations

from collections.abc import Sequence

from passes.base import Pass
from passes.ir.model import ModelIR
from passes.steps.cost import WalkSize, states_bytes
from passes.text.source import TextSource


def scratch_bytes(
    source: ModelIR, target: ModelIR, passes: Sequence[Pass], calibration: TextSource | None, evaluation: TextSource
) -> int:
    """Return the most that lies in the work folder at once beside downloads: the walk's shards or a trial's, and hidden states.

    `calibration`: None where nothing looks at it.
    """
    hidden = [4 * states_bytes(source, evaluation.samples * evaluation.length)]
    if calibration is not None:
        walk = WalkSize(calibration.samples, calibration.length)
        hidden.append(2 * states_bytes(source, walk.tokens))
        hidden += [cost.disk for pass_ in passes for cost in pass_.cost(source, walk).values()]
    return target.tensor_bytes + max(hidden)
