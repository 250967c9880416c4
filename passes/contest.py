"""Which of a few ways to store a model is nearest to it end to end: each is walked on a part of the text, judged on another part.

Estimates of single matrices leave out how errors meet. Before a measured choice is written, the best allocations and the uniform
one are held against each other here; where allocation does not pay, uniform wins.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from passes.assemble import outer_tensors
from passes.base import Pass
from passes.checkpoint import Checkpoint, Weights, write_shard
from passes.decoded import DecodedCheckpoint, as_dense
from passes.evaluate import Measured, Side, evaluate
from passes.ir.model import ModelIR
from passes.recipe import method_of
from passes.walk import Walk

if TYPE_CHECKING:
    import torch

#: Sequences that candidates are fitted to at most, and the share of all that judges them.
_FITTED, _JUDGING_SHARE = 16, 8


def fitted_part(tokens: torch.Tensor) -> torch.Tensor:
    """What choices are fitted to: all of `tokens` `[S, T]` but the last eighth, which judges them. A lone sequence is all there is."""
    return tokens[: max(1, len(tokens) - len(_judging(tokens)))]


def _judging(tokens: torch.Tensor) -> torch.Tensor:
    return tokens[-max(1, len(tokens) // _JUDGING_SHARE) :]


def divergences(
    candidates: Sequence[Pass],
    dense: ModelIR,
    weights: Weights,
    tokens: torch.Tensor,
    folder: Path,
    dtype: torch.dtype,
    device: torch.device,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[float]:
    """KL in nats a token of each candidate on the last eighth of `tokens` `[S, T]`, fitted to the first ones."""
    judging, fitted = _judging(tokens), fitted_part(tokens)[:_FITTED]
    out = []
    for number, one in enumerate(candidates):
        out.append(trial([one], one.rewrite(dense), Side(dense, weights), fitted, judging, folder, dtype, device).kl)
        progress(number + 1, len(candidates))
    return out


def trial(
    passes: Sequence[Pass],
    target: ModelIR,
    source: Side,
    fitted: torch.Tensor,
    judging: torch.Tensor,
    folder: Path,
    dtype: torch.dtype,
    device: torch.device,
    reference: Side | None = None,
) -> Measured:
    """Walk `source` to `target` on the token ids `fitted` `[S, T]` and measure the result on `judging`; nothing is kept.

    `reference`: what the result is held against, where that is not `source` (a model before blocks were dropped).
    """
    shutil.rmtree(folder, ignore_errors=True)
    try:
        Walk(source.ir, target, source.weights, method_of(passes), fitted, folder, (device,), dtype).run()
        write_shard(folder / "shards" / "model-00000.safetensors", outer_tensors(target, source.weights))
        decoded = DecodedCheckpoint(Checkpoint(folder / "shards"), target, dtype)
        return evaluate(reference or source, Side(as_dense(source.ir, target), decoded), judging, dtype, device)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
