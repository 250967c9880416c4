"""Which of a few ways to store a model is nearest to it end to end: each is walked on a part of the text, judged on another part.

Estimates of single matrices leave out how errors meet. Before a measured choice is written, the best allocations and the uniform
one are held against each other here; where allocation does not pay, uniform wins.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from passes import chain
from passes.base import Pass
from passes.blocks.decoded_weights import DecodedCheckpoint, as_dense
from passes.files.checkpoint import Checkpoint, Weights, write_shard
from passes.ir.model import ModelIR
from passes.measure.evaluate import Measured, Side, evaluate
from passes.run.assemble import outer_tensors
from passes.steps.step import once, part_of
from passes.text.split import FITTED_SEQUENCES, fitted_part, judging_part
from passes.walk.state import BlockReport
from passes.walk.walk import Walk

if TYPE_CHECKING:
    import torch


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
    """KL in nats a token of each candidate on the judging part of `tokens` `[S, T]`, fitted to the first ones of the others.

    `folder` keeps what was found: a run that was killed goes on there. `progress` counts blocks of walks and evaluations.
    """
    judging, fitted = judging_part(tokens), fitted_part(tokens)[:FITTED_SEQUENCES]
    out, total = [], len(candidates) * (each := 3 * len(dense.decoder.layers))
    for number, one in enumerate(candidates):
        done = number * each

        def divergence(parts: Path, one: Pass = one, done: int = done) -> dict[str, float]:
            found = trial(
                [one], one.rewrite(dense), Side(dense, weights), fitted, judging, parts, dtype, device,
                progress=part_of(progress, done, total),
            )  # fmt: skip
            return {"kl": found.kl}

        out.append(float(once(folder / f"candidate-{number}.json", divergence)["kl"]))
        progress(done + each, total)
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
    progress: Callable[[int], None] = lambda done: None,
) -> Measured:
    """Walk `source` to `target` on the token ids `fitted` `[S, T]` and measure the result on `judging`.

    `reference`: what the result is held against, where that is not `source` (a model before blocks were dropped). `folder` keeps what was
    done: a run that was killed goes on there. Who has kept the result removes it. `progress` counts blocks: of the walk, then of both
    models that are compared.
    """
    walked = 0

    def block(report: BlockReport, blocks: int) -> None:
        nonlocal walked
        walked = report.block + 1
        progress(walked)

    Walk(
        source.ir, target, source.weights, chain.method(passes), fitted, folder, (device,), dtype, progress=block
    ).run()  # fmt: skip
    write_shard(folder / "shards" / "model-00000.safetensors", outer_tensors(target, source.weights))
    result = Side(as_dense(source.ir, target), DecodedCheckpoint(Checkpoint(folder / "shards"), target, dtype))
    return evaluate(
        reference or source, result, judging, folder / "evaluate", dtype, device, progress=lambda n, _: progress(walked + n)
    )  # fmt: skip
