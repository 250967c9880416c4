"""Makes up for inputs of a matrix that are taken out: the least-squares solution for the inputs that stay.

Of a matrix W `[N, K]` whose inputs have H = Σ x xᵀ the columns R go and the columns S stay. The W′ `[N, S]` that changes the outputs
least, Σ ‖W x − W′ x_S‖², is W_S + W_R H_RS H_SS⁻¹. H_SS is damped, which pulls W′ towards W_S: with little text it changes little.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from passes.algorithms.damping import DAMPING
from passes.algorithms.inverse_factor import DAMPING_ATTEMPTS
from passes.errors import TightfitError

if TYPE_CHECKING:
    import torch


def compensated(
    weight: torch.Tensor, hessian: torch.Tensor, kept: torch.Tensor, *, damping: float = DAMPING, where: str = ""
) -> torch.Tensor:
    """Return W′ `[N, S]` in fp32 for W `[N, K]`, H `[K, K]` and the columns `kept` `[S]` that stay, in their order.

    `damping`: added to the diagonal of H_SS, as a share of its mean. Raises TightfitError where no damping makes H_SS positive definite;
    `where` names the matrix.
    """
    import torch

    gone = torch.ones(weight.shape[1], dtype=torch.bool, device=weight.device)
    gone[kept] = False
    left = weight[:, kept].float()
    if not bool(gone.any()):
        return left
    rows = hessian[kept].float()
    factor = damped_factor(rows[:, kept], damping, where)
    missed = weight[:, gone].float() @ rows[:, gone].T
    made_up: torch.Tensor = left + torch.cholesky_solve(missed.T, factor).T
    return made_up


def damped_factor(hessian: torch.Tensor, damping: float, where: str) -> torch.Tensor:
    """Return the lower Cholesky factor of H `[K, K]`, damped by a share of its mean diagonal, by ten times more where that is too little.

    Raises TightfitError for a Hessian that no damping mends.
    """
    import torch

    step = damping * float(torch.diagonal(hessian).mean()) or 1e-6
    turned = hessian.clone()
    for _ in range(DAMPING_ATTEMPTS):
        torch.diagonal(turned).add_(step)
        lower: torch.Tensor
        lower, failed = torch.linalg.cholesky_ex(turned)
        if int(failed) == 0 and bool(torch.isfinite(lower.sum())):
            return lower
        step *= 10
    raise TightfitError(
        f"the Hessian of {where} is not positive definite, even damped", remedy="use more calibration text"
    )
