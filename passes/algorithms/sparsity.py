"""Which weights of a matrix become zero.

SparseGPT (Frantar & Alistarh 2023, arXiv 2301.00774, alg. 1) drops the weights with the least w² / U_kk² (U: the factor that GPTQ
uses), chosen while the columns are walked, and lets the columns that follow make up for them. Wanda (Sun et al. 2023, arXiv
2306.11695) drops the least |w|·‖x‖ of each row at once and changes nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from passes.record import dataclass

if TYPE_CHECKING:
    import torch

#: Columns that share one choice of SparseGPT's unstructured zeros (Bs in the paper's algorithm 1, 128 there): the fewer, the
#: more a choice knows of what earlier zeros did to its columns.
MASK_COLUMNS = 32


@dataclass(frozen=True)
class Mask:
    """A share `sparsity` of zeros; with a `run`, in every `run` consecutive inputs of a row by itself (2:4 has a run of 4)."""

    method: str
    sparsity: float
    run: int = 0

    def keep(self, cost: torch.Tensor) -> torch.Tensor:
        """Return what stays of weights whose loss would cost `cost`, `[columns, N]`: by runs, or anywhere in these columns."""
        import torch

        if self.run:
            columns, rows = cost.shape
            runs = cost.reshape(columns // self.run, self.run, rows)
            # A weight's rank in its run: how many of the others cost less, of equals those before it. Faster than sorting.
            own, other = runs[:, :, None], runs[:, None, :]
            before = torch.ones(self.run, self.run, dtype=torch.bool, device=cost.device).tril(-1)[None, :, :, None]
            rank = ((other < own) | ((other == own) & before)).sum(2)
            return (rank >= round(self.run * self.sparsity)).reshape(columns, rows)
        count = round(cost.numel() * self.sparsity)
        if count == 0:
            return torch.ones_like(cost, dtype=torch.bool)
        lowest = cost.flatten().topk(count, largest=False).indices
        keep = torch.ones(cost.numel(), dtype=torch.bool, device=cost.device)
        keep[lowest] = False
        return keep.reshape(cost.shape)

    def wanda(self, weight: torch.Tensor, hessian: torch.Tensor | None) -> torch.Tensor:
        """Return what Wanda keeps of a weight `[N, K]`; without inputs seen, by magnitude. `[N, K]`, the same number in every row."""
        import torch

        cost = weight.abs()
        if hessian is not None:
            cost = cost * hessian.diagonal().clamp(min=0).sqrt()
        if self.run:
            return self.keep(cost.T).T
        count = round(weight.shape[1] * self.sparsity)
        lowest = cost.topk(count, dim=1, largest=False).indices
        return torch.ones_like(weight, dtype=torch.bool).scatter_(1, lowest, False)
