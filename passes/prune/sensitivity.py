"""How much the loss of a text feels each unit, from one way back through the model (`passes.measure.backward`).

* `taylor`: Σ |w · ∂L/∂w| over all weights of a unit (LLM-Pruner, Ma et al. 2023, arXiv 2305.11627, eq. 5).
* `fisher`: Σ (x_u · ∂L/∂x_u)² over the tokens, x_u being what the unit gives the matrix that reads it: the diagonal of the empirical Fisher
  information of a mask over the units, half of which is by how much the loss grows to second order where one goes (Theis et al. 2018,
  arXiv 1801.05787; Kwon et al. 2022, arXiv 2204.09656). What a unit does to single tokens does not cancel as first-order terms do.

L is the negative log-likelihood of a short text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from passes.algorithms.removal.importance import weighed
from passes.blocks.dense_model import DenseModel
from passes.blocks.hidden_states import HiddenStates
from passes.blocks.stream import BlockReplica
from passes.measure.backward import as_it_follows, through_block, way_back
from passes.prune.units import units_of
from passes.steps.context import RunContext

if TYPE_CHECKING:
    import torch

    from passes.prune.width import WidthPrune

#: Scores of a block's units, by the matrix that reads them.
Scores = dict[str, list[float]]


def unit_scores(pass_: WidthPrune, dense: DenseModel, run: RunContext) -> list[dict[str, Scores]]:
    """Return the scores of every unit on the run's text: of each block, by name of the importance.

    The run's folder keeps what was found: a run that was killed goes on there.
    """
    import torch

    def of_block(replica: BlockReplica, hidden: HiddenStates, gradients: HiddenStates) -> dict[str, Scores]:
        """Return a block's scores, on the way back through it."""
        kinds = units_of(dense.ir.decoder.block(replica.index), pass_.intermediate, pass_.kv_heads)
        names = {name for units in kinds for name in (units.reader, *units.rows)}
        weights = {name: replica.parameter(f"{name}.weight").requires_grad_(True) for name in sorted(names)}
        fisher = {units.reader: torch.zeros(len(units.columns), device=replica.device) for units in kinds}
        handles = [
            _watch(replica.module(units.reader), units.columns.to(replica.device), fisher[units.reader])
            for units in kinds
        ]
        try:
            through_block(replica, hidden, gradients)
        finally:
            for handle in handles:
                handle.remove()
        figures = {}
        for name, weight in weights.items():
            assert weight.grad is not None
            figures[name] = (weight.detach().float() * weight.grad.float()).abs().cpu()
        return {
            "taylor": {units.reader: weighed(figures, units).tolist() for units in kinds},
            "fisher": {reader: scores.tolist() for reader, scores in fisher.items()},
        }

    return [dict(block) for block in way_back(dense, run, as_it_follows, of_block)]


def _watch(reader: torch.nn.Module, columns: torch.Tensor, scores: torch.Tensor) -> Any:
    """Have each unit's scores grow by what a batch tells of the inputs of the matrix that reads it; returns the hook's handle."""

    def note(module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        values = args[
            0
        ].detach()  # a hook that holds its own tensor would keep the batch's whole graph until Python collects cycles

        def add(gradient: torch.Tensor) -> None:
            felt = (values.float() * gradient.float()).flatten(0, -2)
            scores.add_(felt[:, columns].sum(-1).square().sum(0))

        args[0].register_hook(add)

    return reader.register_forward_pre_hook(note)
