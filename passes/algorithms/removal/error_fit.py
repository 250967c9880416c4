"""What a matrix can still take back of an error behind it: the least-squares change of its weights, held against text it was not fitted to.

A matrix reads x `[K]`, and behind it e `[N]` is missing. The change Δ `[N, K]` that leaves least of it, Σ ‖e − Δ x‖², is C H⁻¹ with
H = Σ x xᵀ and C = Σ e xᵀ. H is damped by a share of its own diagonal, so that what the text cannot tell apart stays as it is: by the share
under which Δ takes most off the error on tokens that it was not fitted to, whose sums tell that exactly. Where none takes anything off,
nothing changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from passes.algorithms.removal.least_squares import DAMPINGS, damped_factor
from passes.record import dataclass

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ErrorMoments:
    """H `[K, K]` and C `[N, K]` of tokens, in fp32."""

    inputs: torch.Tensor
    errors: torch.Tensor

    @classmethod
    def zeros(cls, outputs: int, inputs: int, device: torch.device) -> ErrorMoments:
        """Return those of no tokens."""
        import torch

        return cls(torch.zeros(inputs, inputs, device=device), torch.zeros(outputs, inputs, device=device))

    def add(self, x_TK: torch.Tensor, e_TN: torch.Tensor) -> None:
        """Add tokens: inputs `[T, K]` and errors `[T, N]`, any float dtype."""
        x_TK = x_TK.float()
        self.inputs.addmm_(x_TK.T, x_TK)
        self.errors.addmm_(e_TN.float().T, x_TK)

    def __add__(self, other: ErrorMoments) -> ErrorMoments:
        """Return those of both texts."""
        return ErrorMoments(self.inputs + other.inputs, self.errors + other.errors)

    def taken_off(self, change: torch.Tensor) -> float:
        """Return by how much a change `[N, K]` makes Σ ‖e‖² smaller on these tokens."""
        return float((change * (2 * self.errors - change @ self.inputs)).sum())


def correction(fitted: ErrorMoments, judging: ErrorMoments, where: str = "") -> torch.Tensor | None:
    """Return the change Δ `[N, K]` in fp32 for the tokens of both, damped as those that judge say; None where it takes nothing off there.

    Raises TightfitError for a Hessian that no damping mends; `where` names the matrix.
    """
    gains = [judging.taken_off(_change(fitted, damping, where)) for damping in DAMPINGS]
    if max(gains) <= 0:
        return None
    return _change(fitted + judging, DAMPINGS[gains.index(max(gains))], where)


def _change(moments: ErrorMoments, damping: float, where: str) -> torch.Tensor:
    import torch

    return torch.cholesky_solve(moments.errors.T, damped_factor(moments.inputs, damping, where)).T
