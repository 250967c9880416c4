"""Expert pruning by REAP (Lasby et al. 2025, arXiv 2510.13999): the experts stay whose weighed outputs are largest.

An expert's figure is the mean, over the tokens that the router sends to it, of its router weight times the norm of its output: what its
tokens would lose. The router loses the rows of those that go; shared experts stay. Nothing reads an expert's outputs alone, so there is no
matrix that could make up for one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from passes.algorithms.removal.importance import best
from passes.blocks.matrices import expert_parts
from passes.blocks.stream import BlockReplica
from passes.errors import InputError
from passes.ir.model import Block, Linear, Role, Stack
from passes.prune.experts import SCORE_BIASES
from passes.record import dataclass
from passes.walk.edit import BlockInputs, EditedBlock

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class FewerExperts:
    """The edit of a block (`passes.walk.edit.BlockEdit`): `keep` experts of each bank of the blocks `before` stay, as many in each of the
    router's `groups`, whose members stay together.
    """

    before: Stack
    keep: int
    groups: int = 1

    @property
    def looks(self) -> bool:
        """True: experts are judged by their outputs."""
        return True

    def __call__(self, index: int, weights: Mapping[str, torch.Tensor], inputs: BlockInputs | None) -> EditedBlock:
        """Measure the experts, and keep the best; a block without experts stays."""
        import torch

        block = self.before.block(index)
        banks = [linear for linear in block.linears if linear.copies > 1]
        if not banks:
            return EditedBlock(weights)
        assert inputs is not None
        figures = saliency(inputs, next(bank for bank in banks if bank.role is Role.DOWN))
        size = len(figures) // self.groups
        kept = torch.cat([
            best(group, self.keep // self.groups) + number * size for number, group in enumerate(torch.split(figures, size))
        ])  # fmt: skip
        gone = float(figures.sum() - figures[kept].sum())
        return EditedBlock(with_experts(block, weights, kept.tolist()), {banks[0].name: gone})


def saliency(inputs: BlockInputs, down: Linear) -> torch.Tensor:
    """Return each expert's figure `[E]` over the text, 0 of those that no token reached. `down`: the bank of their last matrices."""
    import torch

    replica, experts = inputs.replica, down.copies
    sums, tokens = torch.zeros(experts, dtype=torch.float64), torch.zeros(experts, dtype=torch.float64)
    routed: dict[str, torch.Tensor | None] = {}

    def route(module: Any, args: tuple[Any, ...]) -> None:
        routed["indices"], routed["shares"] = args[1:3] if len(args) > 2 else (None, None)

    def note(number: int) -> Callable[..., None]:
        def see(module: Any, args: tuple[Any, ...], output: torch.Tensor) -> None:
            indices, shares = routed["indices"], routed["shares"]
            norms = output.float().norm(dim=-1)
            if indices is not None and shares is not None:  # else the router's weights are in the inputs (Llama 4)
                rows, places = torch.where(indices == number)
                norms = norms * shares[rows, places].float()
            sums[number] += float(norms.sum())
            tokens[number] += len(norms)

        return see

    lasts = [next(expert_parts(down, expert)).name for expert in range(experts)]
    handles = [_bank_of(replica, lasts[0]).register_forward_pre_hook(route)]
    handles += [replica.module(name).register_forward_hook(note(number)) for number, name in enumerate(lasts)]
    try:
        for batch in range(len(inputs.hidden)):
            replica.run(inputs.hidden.read(replica.index, batch))
            if not routed:
                raise InputError(
                    f"transformers' {type(replica.layer).__name__} sends tokens to experts in a way of its own",
                    remedy="prune depth or width instead",
                )
    finally:
        for handle in handles:
            handle.remove()
    return (sums / tokens.clamp_min(1)).float()


def _bank_of(replica: BlockReplica, last: str) -> torch.nn.Module:
    """The module that a block calls with the tokens and where they go: above the expert that holds the matrix `last`."""
    return replica.layer.get_submodule(replica.decoder.path(last).rpartition(".")[0].rpartition(".")[0])


def with_experts(block: Block, weights: Mapping[str, torch.Tensor], kept: Sequence[int]) -> dict[str, torch.Tensor]:
    """Return a block's tensors with the experts `kept` alone, numbered anew, by relative name as the description has them."""
    import torch

    changed, rows = dict(weights), torch.tensor(kept)
    count = max(linear.copies for linear in block.linears)
    for linear in block.linears:
        if linear.copies > 1 and linear.stacking is not None and linear.stacking.tensor in weights:
            for name in (linear.stacking.tensor, f"{linear.stacking.tensor}_bias"):
                if name in weights:
                    changed[name] = weights[name][rows]
        elif linear.copies > 1:
            for new, old in enumerate(kept):
                for was, now in zip(expert_parts(linear, old), expert_parts(linear, new), strict=True):
                    changed |= {
                        now.name + end: weights[was.name + end]
                        for end in (".weight", ".bias")
                        if was.name + end in weights
                    }
        elif linear.role is Role.ROUTER and linear.out_features == count:
            changed |= {
                linear.name + end: weights[linear.name + end][rows]
                for end in (".weight", ".bias")
                if linear.name + end in weights
            }
    for tensor in block.tensors:
        if tensor.name.endswith(SCORE_BIASES):
            changed[tensor.name] = weights[tensor.name][rows]
    return changed
