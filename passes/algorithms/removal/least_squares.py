"""Makes up for inputs of a matrix that are taken out: the least-squares solution for the inputs that stay.

Of a matrix W `[N, K]` whose inputs have H = Σ x xᵀ the columns R go and the columns S stay. The W′ `[N, S]` that changes the outputs
least, Σ ‖W x − W′ x_S‖², is W_S + W_R H_RS H_SS⁻¹. H_SS is damped by a share of its own diagonal, which pulls W′ towards W_S. Channels of
an MLP tell little of each other, so with a few thousand tokens the undamped solution fits the text and loses on any other: how far to damp
is read from H itself by generalized cross-validation (Golub, Heath & Wahba 1979), and further than that, as what a model is used on
differs more from the text than its parts from each other (`_FURTHER`).
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from passes.algorithms.inverse_factor import DAMPING_ATTEMPTS
from passes.errors import TightfitError
from passes.record import dataclass

if TYPE_CHECKING:
    import torch

#: Shares of the diagonal that are weighed, least first; the last leaves next to nothing of the compensation.
DAMPINGS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
#: How many steps further than cross-validation says: of three MLPs of SmolLM2 (4,096 tokens that it wrote, judged on Python's reference)
#: a damping ten times as large lost least in all; without these steps two of them lost more than uncompensated.
_FURTHER = 2
#: Random vectors that estimate how many of the solution's numbers are free, and their seed.
_PROBES, _SEED = 16, 0


@dataclass(frozen=True)
class Compensated:
    """The weight of the inputs that stay `[N, S]`, in fp32, and the damping that it was found with."""

    weight: torch.Tensor
    damping: float


def compensated(
    weight: torch.Tensor, hessian: torch.Tensor, kept: torch.Tensor, tokens: int, where: str = ""
) -> Compensated:
    """Return W′ for W `[N, K]`, H `[K, K]` over so many `tokens`, and the columns `kept` `[S]` that stay, in their order.

    Of `DAMPINGS` that is taken which lies `_FURTHER` steps beyond the least expected error on other text of the same kind. Raises
    TightfitError where H_SS is not positive definite however it is damped; `where` names the matrix.
    """
    found: list[Compensated] = []
    errors: list[float] = []
    for damping in DAMPINGS:
        narrow, free = solved(weight, hessian, kept, damping, where)
        change = -weight.float()
        change[:, kept] += narrow
        error = float(((change @ hessian) * change).sum())
        found.append(Compensated(narrow, damping))
        errors.append(error / (1 - free / tokens) ** 2 if free < tokens else math.inf)
        if len(errors) - errors.index(min(errors)) > _FURTHER:  # they have one valley
            break
    return found[-1]


def solved(
    weight: torch.Tensor, hessian: torch.Tensor, kept: torch.Tensor, damping: float, where: str = ""
) -> tuple[torch.Tensor, float]:
    """Return W′ `[N, S]` in fp32 under one damping, and how many of a row's numbers are free: tr(H_SS (H_SS + damping)⁻¹)."""
    import torch

    gone = torch.ones(weight.shape[1], dtype=torch.bool, device=weight.device)
    gone[kept] = False
    rows = hessian[kept].float()
    square, left = rows[:, kept], weight[:, kept].float()
    factor = damped_factor(square, damping, where)
    missed = rows[:, gone] @ weight[:, gone].float().T
    probes = torch.randn(len(kept), _PROBES, generator=torch.Generator().manual_seed(_SEED)).to(square)
    answers = torch.cholesky_solve(torch.cat([missed, square @ probes], 1), factor)
    free = float((probes * answers[:, len(weight) :]).sum() / _PROBES)
    return left + answers[:, : len(weight)].T, free


def damped_factor(hessian: torch.Tensor, damping: float, where: str) -> torch.Tensor:
    """Return the lower Cholesky factor of H `[K, K]` with a share of its diagonal added, ten times more where that is too little.

    What never differs from zero gets the least that keeps H definite. Raises TightfitError for a Hessian that no damping mends.
    """
    import torch

    diagonal = torch.diagonal(hessian).clone()
    least = 1e-6 * float(diagonal.mean()) or 1e-6
    turned, step = hessian.clone(), damping
    for _ in range(DAMPING_ATTEMPTS):
        torch.diagonal(turned).copy_(diagonal * (1 + step) + least)
        lower: torch.Tensor
        lower, failed = torch.linalg.cholesky_ex(turned)
        if int(failed) == 0 and bool(torch.isfinite(lower.sum())):
            return lower
        step, least = step * 10, least * 10
    raise TightfitError(
        f"the Hessian of {where} is not positive definite, even damped", remedy="use more calibration text"
    )
