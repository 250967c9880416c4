"""What can take over the scale of a group's inputs: the norm before it, or the matrix whose outputs it reads.

Families differ in where their norms stand and in what else reads them, so nothing is assumed: every candidate is tried on the
block itself. Scaling the group's weights by s changes the block's output; a fold is what undoes that change.

* norm: its weight (and bias) divided by s; `1 + w` norms (Gemma) likewise, less one.
* rows: the rows of the matrix before (up for down, v for o) divided by s. It may be stored already: dividing the scales of its
  rows is the same, because rounding a row and scaling it commute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from passes.blocks.matrices import members, packed
from passes.blocks.stream import BlockReplica
from passes.formats.format import Quantized
from passes.ir.model import Block, Linear, Role
from passes.record import dataclass

if TYPE_CHECKING:
    import torch

_BEFORE = {Role.DOWN: Role.UP, Role.O: Role.V}
#: A fold undoes the scaling when it leaves less than this share of the change.
_UNDONE = 0.05


@dataclass(frozen=True, slots=True)
class ScaleFold:
    """Where a group's scale goes: `kind` is `norm`, `norm_plus_one` or `rows`; `name` of the norm or the matrix."""

    kind: str
    name: str

    def folded(self, weight: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        """Take the scale over into a norm's weight or bias `[K]`, or a matrix `[K, …]` by its rows."""
        if self.kind == "norm_plus_one":
            return ((weight.float() + 1) / s - 1).to(weight.dtype)
        spread = s if weight.dim() == 1 else s[:, None]
        return (weight.float() / spread).to(weight.dtype)


def find_folds(
    replica: BlockReplica, block: Block, groups: Sequence[Sequence[Linear]], probe: torch.Tensor
) -> dict[str, ScaleFold]:
    """Find the fold of each group that has one, by the group's first name. `probe`: any hidden states that the block can run on."""
    import torch

    generator = torch.Generator().manual_seed(0)
    run: Callable[[], torch.Tensor] = lambda: replica.run(probe).float()  # noqa: E731
    reference = run()
    found: dict[str, ScaleFold] = {}
    for group in groups:
        # Powers of two: exact in every float format.
        s = 2.0 ** torch.randint(-1, 3, (group[0].in_features,), generator=generator).to(replica.device)
        with _changed(replica, dict.fromkeys((f"{each.name}.weight" for each in group), s.mul)):
            change = float((run() - reference).norm())
            for fold in _candidates(block, group):
                with _changed(replica, _effects(fold, replica, s)):
                    left = float((run() - reference).norm())
                if left < _UNDONE * change:
                    found[group[0].name] = fold
                    break
    return found


def _candidates(block: Block, group: Sequence[Linear]) -> Iterator[ScaleFold]:
    size = group[0].in_features
    before = _BEFORE.get(group[0].role) if len(group) == 1 else None
    if before is not None:
        parent = group[0].name.rpartition(".")[0]
        for linear in members(block):
            same = linear.role is before and linear.name.rpartition(".")[0] == parent and linear.out_features == size
            if same and _rows_scale(linear):
                yield ScaleFold("rows", linear.name)
        return
    for tensor in block.tensors:
        if tensor.shape == (size,) and tensor.name.endswith(".weight"):
            yield ScaleFold("norm", tensor.name.removesuffix(".weight"))
            yield ScaleFold("norm_plus_one", tensor.name.removesuffix(".weight"))


def _rows_scale(linear: Linear) -> bool:
    """Whether a matrix as it is going to be stored has a scale for each row."""
    grid = linear.storage.grid
    apart = grid is not None and grid.group_size != 0 and linear.storage.block is None
    return apart or not packed(linear)


def _effects(
    fold: ScaleFold, replica: BlockReplica, s: torch.Tensor
) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
    own = dict(replica.module(fold.name).named_parameters())
    change: Callable[[torch.Tensor], torch.Tensor] = lambda weight: fold.folded(weight, s)  # noqa: E731
    divide: Callable[[torch.Tensor], torch.Tensor] = lambda bias: ScaleFold("norm", "").folded(bias, s)  # noqa: E731
    return {f"{fold.name}.{end}": change if end == "weight" else divide for end in own}


@contextmanager
def _changed(replica: BlockReplica, changes: Mapping[str, Callable[[torch.Tensor], torch.Tensor]]) -> Iterator[None]:
    """Within: parameters changed as given; afterwards as they were."""
    before = {name: replica.parameter(name) for name in changes}
    try:
        for name, change in changes.items():
            replica.put(name, change(before[name]))
        yield
    finally:
        for name, parameter in before.items():
            replica.put(name, parameter)


def rows_divided(quantized: Quantized, s: torch.Tensor) -> Quantized:
    """Divide the rows of a stored matrix by s `[N]`: the same codes, other scales."""
    return replace(quantized, scale=quantized.scale.float() / s[:, None])
