"""First-order importance (LLM-Pruner, Ma et al. 2023, arXiv 2305.11627, eq. 5): Σ |w · ∂L/∂w| over all weights of a unit.

L is the negative log-likelihood of a short text; its gradients come block by block (`passes.measure.backward`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from passes.algorithms.removal.importance import weighed
from passes.blocks.dense_model import DenseModel
from passes.blocks.hidden_states import HiddenStates
from passes.blocks.stream import BlockReplica
from passes.measure.backward import as_it_follows, through_block, way_back
from passes.prune.units import units_of
from passes.steps.context import RunContext

if TYPE_CHECKING:
    from passes.prune.width import WidthPrune


def unit_scores(pass_: WidthPrune, dense: DenseModel, run: RunContext) -> list[dict[str, list[float]]]:
    """Return the importance of every unit on the run's text: of each block, by the matrix that reads the units.

    The run's folder keeps what was found: a run that was killed goes on there.
    """

    def of_block(replica: BlockReplica, hidden: HiddenStates, gradients: HiddenStates) -> dict[str, list[float]]:
        kinds = units_of(dense.ir.decoder.block(replica.index), pass_.intermediate, pass_.kv_heads)
        names = {name for units in kinds for name in (units.reader, *units.rows)}
        weights = {name: replica.parameter(f"{name}.weight").requires_grad_(True) for name in sorted(names)}
        through_block(replica, hidden, gradients)
        figures = {}
        for name, weight in weights.items():
            assert weight.grad is not None
            figures[name] = (weight.detach().float() * weight.grad.float()).abs().cpu()
        return {units.reader: weighed(figures, units).tolist() for units in kinds}

    return [dict(block) for block in way_back(dense, run, as_it_follows, of_block)]
