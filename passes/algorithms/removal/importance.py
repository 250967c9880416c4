"""How much units of a matrix's inputs (MLP channels, groups of heads) matter, and which of them stay.

* `energy`: how large what a unit adds to the outputs is, Σ ‖W_u x_u‖² over the text.
* `eliminated`: what its removal costs after all that stay have made up for it, ‖W_u [(H⁻¹)_uu]^-½‖² (Optimal Brain Surgeon, Hassibi & Stork
  1993; of whole units as in ZipLM, Kurtic et al. 2023). The cheapest go, W and H⁻¹ are brought up to date, and so on.
* `weighed`: sums of a figure of every weight over all weights of a unit: squares (magnitude), or |w · ∂L/∂w| (first-order Taylor, as
  LLM-Pruner takes it, Ma et al. 2023, eq. 5, element by element).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from passes.algorithms.removal.least_squares import damped_factor
from passes.record import dataclass

if TYPE_CHECKING:
    import torch


#: Removals after each of which W and H⁻¹ are brought up to date: of many units some go at once.
_ROUNDS = 32


@dataclass(frozen=True)
class Units:
    """What is taken out together, or stays: `kept` of U units. Names are relative to the block.

    `columns` `[U, C]`: each unit's inputs of the matrix `reader`. `rows`: of the matrices that make these inputs each unit's outputs, as
    parts `[U, R]` in the order in which they lie in the matrix (q, k and v of a fused one).
    """

    kept: int
    reader: str
    columns: torch.Tensor
    rows: Mapping[str, Sequence[torch.Tensor]]

    def rows_of(self, name: str, units: torch.Tensor) -> torch.Tensor:
        """Return the rows of a matrix that belong to `units` `[S]`, in their order in the matrix."""
        import torch

        return torch.cat([part[units].flatten() for part in self.rows[name]])

    def columns_of(self, units: torch.Tensor) -> torch.Tensor:
        """Return the reader's columns that belong to `units` `[S]`."""
        return self.columns[units].flatten()


def energy(weight: torch.Tensor, hessian: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Return Σ ‖W_u x_u‖² `[U]` over the text, for W `[N, K]`, H `[K, K]` and each unit's columns `[U, C]`."""
    parts = weight.float().T[columns]  # [U, C, N]
    return ((parts @ parts.mT) * _blocks(hessian.float(), columns)).sum((1, 2))


def _blocks(square: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Each unit's part `[U, C, C]` of a matrix `[K, K]`."""
    return square[columns[:, :, None], columns[:, None, :]]


def weighed(figures: Mapping[str, torch.Tensor], units: Units) -> torch.Tensor:
    """Return the sums `[U]` of a figure of every weight, given by matrix `[N, K]`, over all weights of each unit."""
    import torch

    total = figures[units.reader].sum(0)[units.columns].sum(1)
    for name, parts in units.rows.items():
        by_row = figures[name].sum(1)
        total = total + torch.stack([by_row[part].sum(1) for part in parts]).sum(0)
    return total


def best(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Return the `count` units of the highest scores `[U]`, by number; of equal ones the first."""
    import torch

    return torch.argsort(scores, descending=True, stable=True)[:count].sort().values


def eliminated(
    weight: torch.Tensor, hessian: torch.Tensor, columns: torch.Tensor, count: int, *, damping: float, where: str = ""
) -> torch.Tensor:
    """Return the `count` units that stay, by number, when those whose removal costs least go, a few at a time.

    W `[N, K]` and the damped H⁻¹ `[K, K]` follow every removal; `columns` `[U, C]` are each unit's. Raises TightfitError for a Hessian that
    no damping mends (`passes.algorithms.removal.least_squares`); `where` names the matrix.
    """
    import torch

    at_once = max(1, (len(columns) - count) // _ROUNDS)
    inverse = torch.cholesky_inverse(damped_factor(hessian.float(), damping, where))
    work = weight.float().clone()
    left = torch.ones(len(columns), dtype=torch.bool, device=weight.device)
    while len(alive := left.nonzero().flatten()) > count:
        costs = _costs(work, inverse, columns[alive])
        units = alive[torch.argsort(costs, stable=True)[: min(at_once, len(alive) - count)]]
        left[units] = False
        gone = columns[units].flatten()
        onto = torch.linalg.solve(inverse[gone][:, gone], inverse[gone])
        work.addmm_(work[:, gone], onto, alpha=-1.0)
        inverse.addmm_(inverse[:, gone], onto, alpha=-1.0)
    return left.nonzero().flatten()


def _costs(work: torch.Tensor, inverse: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """What removing each unit `[U]` would add to the squared error of the outputs."""
    import torch

    if columns.shape[1] == 1:
        return (work.square().sum(0) / torch.diagonal(inverse).clamp_min(1e-30))[columns.flatten()]
    parts = work.T[columns]  # [U, C, N]
    costs: torch.Tensor = (parts * torch.linalg.solve(_blocks(inverse, columns), parts)).sum((1, 2))
    return costs
