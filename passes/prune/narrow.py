"""Width pruning on weights: chooses what stays of each block, cuts it, and has the next matrix make up for what is gone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from passes.algorithms.removal.importance import Units, best, eliminated, energy, weighed
from passes.algorithms.removal.least_squares import compensated
from passes.blocks.input_statistics import InputStatistics
from passes.ir.model import Linear, Stack
from passes.prune.follow import SeenInputs, followed, last_matrix
from passes.prune.units import narrowed, units_of
from passes.record import dataclass
from passes.walk.edit import BlockInputs, EditedBlock
from passes.walk.paused_batches import PausedBatches

if TYPE_CHECKING:
    import torch

    from passes.prune.width import WidthPrune

#: By which share of its diagonal the Hessian is damped by which units are chosen: about what the compensation itself takes of a few
#: thousand tokens; with less, units are chosen by what they tell of each other in this text alone.
_DAMPING = 0.3
#: Seed of the random choice, which is there to be compared with.
_SEED = 0


@dataclass(frozen=True)
class Narrowing:
    """The edit of a block (`passes.walk.edit.BlockEdit`). `scores`: of each block, of each reader's units, where they were measured."""

    pass_: WidthPrune
    decoder: Stack
    scores: Sequence[Mapping[str, Sequence[float]]] = ()

    @property
    def looks(self) -> bool:
        """Whether the Hessian of a reader's inputs is looked at."""
        return self.pass_.looks

    def __call__(self, index: int, weights: Mapping[str, torch.Tensor], inputs: BlockInputs | None) -> EditedBlock:
        """Cut the attention, then the MLP, which sees what the cut attention makes."""
        import torch

        block = self.decoder.block(index)
        kinds = {units.reader: units for units in units_of(block, self.pass_.intermediate, self.pass_.kv_heads)}
        chosen: list[tuple[Units, torch.Tensor, torch.Tensor]] = []
        losses: dict[str, float] = {}

        def cut(group: Sequence[Linear], seen: InputStatistics | None) -> dict[str, torch.Tensor]:
            """Choose and compensate; returns the reader's weight with zeros for what goes, for batches that are on their way."""
            [reader] = group
            units = kinds[reader.name]
            hessian = None if seen is None else seen.hessian(reader.name)
            weight = weights[f"{reader.name}.weight"].float()
            if hessian is not None:
                weight = weight.to(hessian.device)
            kept = self._kept(index, units, weights, hessian)
            columns = units.columns_of(kept).to(weight.device)
            narrow = weight[:, columns]
            if hessian is not None and self.pass_.compensate:
                assert seen is not None
                narrow = compensated(weight, hessian, columns, seen.tokens, reader.name).weight
            masked = torch.zeros_like(weight)
            masked[:, columns] = narrow
            if hessian is not None:
                losses[reader.name] = float((((masked - weight) @ hessian) * (masked - weight)).sum())
            chosen.append((units, kept, narrow.cpu()))
            return {reader.name: masked}

        tensors: dict[str, torch.Tensor] = {}
        readers = [[next(lin for lin in block.linears if lin.name == name)] for name in kinds]
        if inputs is None:
            for group in readers:
                cut(group, None)
        else:
            paused = PausedBatches([inputs.replica], None, readers, True, False, inputs.in_memory)
            last = last_matrix(block) if self.pass_.compensate else None
            if last is None:
                paused.run(inputs.hidden, cut)
            else:
                with (seen := SeenInputs(inputs, last)).noted():
                    paused.run(inputs.hidden, cut)
                left = next((units.columns_of(kept) for units, kept, _ in chosen if units.reader == last.name), None)
                tensors = _following(inputs, last, seen, left, weights[f"{last.name}.weight"])
        return EditedBlock(narrowed(weights, chosen) | tensors, losses)

    def _kept(
        self, index: int, units: Units, weights: Mapping[str, torch.Tensor], hessian: torch.Tensor | None
    ) -> torch.Tensor:
        """The units of a block that stay, by number."""
        import torch

        match self.pass_.importance:
            case "activation" | "hessian" as importance:
                assert hessian is not None
                weight = weights[f"{units.reader}.weight"].to(hessian.device)
                columns = units.columns.to(hessian.device)
                if importance == "hessian":
                    kept = eliminated(weight, hessian, columns, units.kept, damping=_DAMPING, where=units.reader)
                    return kept.cpu()
                scores = energy(weight, hessian, columns).cpu()
            case "taylor" | "fisher":
                scores = torch.tensor(self.scores[index][units.reader])
            case "magnitude":
                matrices = (units.reader, *units.rows)
                scores = weighed({name: weights[f"{name}.weight"].float().square() for name in matrices}, units)
            case _:
                scores = torch.rand(len(units.columns), generator=torch.Generator().manual_seed(_SEED + index))
        return best(scores, units.kept)


def _following(
    inputs: BlockInputs, last: Linear, seen: SeenInputs, left: torch.Tensor | None, stored: torch.Tensor
) -> dict[str, torch.Tensor]:
    """The block's last matrix, `left` of its columns, where it brings the block nearer to the source's, as the `stored` one lies."""
    weight = followed(inputs, last, seen, left)
    if weight is None:
        return {}
    return {f"{last.name}.weight": (weight if left is None else weight[:, left]).to(stored.dtype).cpu()}
