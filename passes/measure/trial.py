"""Which of a few ways to store a model is nearest to it end to end: each is walked on a part of the text, judged on another part.

Estimates of single matrices leave out how errors meet. Before a measured choice is written, the best allocations and the uniform
one are held against each other here; where allocation does not pay, uniform wins.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

from passes import chain
from passes.base import Pass
from passes.blocks.decoded_weights import decoded_model
from passes.blocks.dense_model import DenseModel
from passes.files.checkpoint import write_shard
from passes.ir.model import ModelIR
from passes.measure.evaluate import Measured, evaluate
from passes.steps.context import RunContext
from passes.steps.key import content_key
from passes.steps.step import part_of
from passes.text.source import tokens_digest
from passes.text.split import FITTED_SEQUENCES, fitted_part, judging_part
from passes.walk.walk import Walk, units

if TYPE_CHECKING:
    import torch

_P = TypeVar("_P", bound=Pass)


def nearest(candidates: Sequence[_P], dense: DenseModel, run: RunContext) -> _P:
    """Return the candidate with the least divergence from `dense` end to end, as a step where there are several."""
    if len(candidates) == 1:
        return candidates[0]
    key = content_key(*dense.identity, "contest", chain.to_json(candidates), tokens_digest(run.text))
    costs: list[float] = run.measured(
        "compare allocations", "contest", key, lambda inside: {"kl": compare(candidates, dense, inside)}
    )["kl"]
    return candidates[costs.index(min(costs))]


def compare(candidates: Sequence[Pass], dense: DenseModel, run: RunContext) -> list[float]:
    """Measure the KL in nats a token of each candidate on the judging part of the run's text, fitted to the first ones of the others.

    The run's folder keeps what was found: a run that was killed goes on there. Its report counts blocks of walks and evaluations.
    """
    judging, fitted = judging_part(run.text), run.on_text(fitted_part(run.text)[:FITTED_SEQUENCES])
    costs, total = [], len(candidates) * (share := 3 * len(dense))
    for number, candidate in enumerate(candidates):

        def divergence(inside: RunContext, candidate: Pass = candidate) -> dict[str, float]:
            planned = candidate.rewrite(dense.ir)
            return {"kl": trial([candidate], planned, dense, inside, judging).kl}

        done = number * share
        kept = fitted.kept(f"candidate-{number}", part_of(run.report, done, total), divergence)
        costs.append(float(kept["kl"]))
        run.report(done + share, total)
    return costs


def trial(
    passes: Sequence[Pass],
    planned: ModelIR,
    dense: DenseModel,
    run: RunContext,
    judging: torch.Tensor,
    reference: DenseModel | None = None,
) -> Measured:
    """Walk `dense` to `planned` on the run's text and measure the result on the token ids `judging` `[S, T]`.

    `reference`: what the result is held against, where that is not `dense` (a model before blocks were dropped). The run's folder keeps
    what was done: a run that was killed goes on there. Who has kept the result removes it. Its report counts blocks: of the walk, then of
    both models that are compared.
    """
    reference = reference or dense
    walked = units(planned)
    total = walked + len(reference) + len(dense)
    inside = run.part(run.folder, part_of(run.report, 0, total))
    Walk(dense, planned, chain.method(passes), inside, tuning=chain.tuning(passes)).run()
    write_shard(run.folder / "shards" / "model-00000.safetensors", dense.outer(planned))
    result = decoded_model(dense.ir, planned, run.folder / "shards", run.dtype)
    judged = run.part(run.folder / "evaluate", part_of(run.report, walked, total)).on_text(judging)
    return evaluate(reference, result, judged)
