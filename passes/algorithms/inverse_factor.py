"""What the columns' loop needs of a Hessian: an order of the columns, and the upper Cholesky factor of the damped inverse in it.

Orders:

* `none`: as stored.
* `static`: by falling diag(H), with every group's scale fixed beforehand in the original order, so that the stored format
  needs no permutation (the reference code's `static_groups`, compressed-tensors' `actorder: weight`).
* `group`: groups by falling mean diag(H), columns inside a group likewise; each group's scale is found when its turn comes,
  on the weights compensated so far. Needs no permutation in the format either (group-aware reordering, arXiv 2505.14638).
* `full`: by falling diag(H), groups formed in that order; the format must store `g_idx` (GPTQ's `desc_act`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from passes.errors import TightfitError
from passes.record import dataclass

if TYPE_CHECKING:
    import torch

#: Times the damping is multiplied by ten before a Hessian is given up.
DAMPING_ATTEMPTS = 4


@dataclass(frozen=True)
class Factor:
    """What the columns' loop needs of a Hessian: the order and the upper Cholesky factor of the inverse, in that order."""

    order: torch.Tensor
    upper: torch.Tensor
    diagonal: torch.Tensor
    """diag(H) in the original order."""

    @property
    def importance(self) -> torch.Tensor:
        """Weight of each input's squared error, in that order: 1 / U_kk², what an error costs after compensation; 0 of dead inputs."""
        import torch

        return (1.0 / torch.diagonal(self.upper).square()).where(self.diagonal[self.order] > 0, 0.0)

    @property
    def by_input(self) -> torch.Tensor:
        """The importance of each input in the original order."""
        import torch

        weights = torch.empty_like(self.diagonal)
        weights[self.order] = self.importance
        return weights


def factorize(hessian: torch.Tensor, damping: float, order: torch.Tensor, where: str) -> Factor:
    """Return the damped inverse factor of H `[K, K]` under a column order. Raises TightfitError for a Hessian that no damping mends."""
    import torch

    diagonal = torch.diagonal(hessian).clone()
    backwards = order.flip(0)
    turned = hessian[backwards][:, backwards]
    dead = torch.diagonal(turned) <= 0
    torch.diagonal(turned)[dead] = 1.0
    step = damping * float(diagonal.mean()) or 1e-6
    for _ in range(DAMPING_ATTEMPTS):
        torch.diagonal(turned).add_(step)
        upper = _inverse_factor(turned)
        if upper is not None:
            return Factor(order, upper, diagonal)
        step *= 10
    raise TightfitError(
        f"the Hessian of {where} is not positive definite, even with damping {damping * 10 ** (DAMPING_ATTEMPTS - 1):g}",
        remedy="use more calibration text, or a larger `damping` under `passes: quantize:`",
    )


def _inverse_factor(turned: torch.Tensor) -> torch.Tensor | None:
    """Upper U with UᵀU = matrix⁻¹, given the matrix with rows and columns reversed; None where it is not positive definite.

    Without forming the inverse: Cholesky of the reversed matrix gives matrix = R Rᵀ with R upper, so U = R⁻¹.
    """
    import torch

    lower, failed = torch.linalg.cholesky_ex(turned)
    if int(failed) != 0:
        return None
    root = lower.flip(0, 1)
    del lower  # what is in memory at once is a few of these matrices
    upper = torch.eye(len(root), device=root.device).T  # by columns, as BLAS has it: solved in place
    torch.linalg.solve_triangular(root, upper, upper=True, out=upper)
    return upper if bool(torch.isfinite(upper.sum())) else None


def column_order(diagonal: torch.Tensor, order: str, group_size: int, run: int = 0) -> torch.Tensor:
    """Return the order in which columns are rounded (see the module's text). Ties keep their place; runs of `run` stay together."""
    import torch

    if order == "none":
        return torch.arange(diagonal.shape[0], device=diagonal.device)
    if run:
        runs = column_order(diagonal.reshape(-1, run).mean(1), order, group_size // run)
        return (runs[:, None] * run + torch.arange(run, device=diagonal.device)).reshape(-1)
    if order in ("static", "full") or group_size <= 0:
        return torch.argsort(diagonal, descending=True, stable=True)
    groups = diagonal.reshape(-1, group_size)
    by_group = torch.argsort(groups.mean(1), descending=True, stable=True)
    inside = torch.argsort(groups, dim=1, descending=True, stable=True)
    return (inside + torch.arange(len(groups), device=diagonal.device)[:, None] * group_size)[by_group].reshape(-1)
