"""What calibration tells about the inputs of a matrix: H = Σ x xᵀ over tokens, and how large each input gets.

H is the Hessian of the squared output error (GPTQ, Frantar et al. 2022, eq. 2). The factor 2 and the division by the number of
tokens are left out: every algorithm here is invariant to H's scale. Accumulated in fp32 whatever the activations' dtype. H is
symmetric, so only the block rows right of the diagonal are summed: five eighths of the work with four blocks. (BLAS' own
rank-k update does half, but brings a second pool of threads that spin against torch's: slower on few cores.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from passes.errors import TightfitError

if TYPE_CHECKING:
    import torch

_BLOCK = 384
#: Rows of blocks on a card: large products.
_CARD_STEPS = 4


class InputStatistics:
    """Accumulates over batches of inputs `[…, K]`: `products`: H; `magnitudes`: `mean` and `peak`."""

    def __init__(
        self, in_features: int, device: torch.device, *, products: bool = True, magnitudes: bool = False
    ) -> None:
        import torch

        self.tokens = 0
        self._magnitudes = magnitudes
        width = in_features if products else 0
        self._sum = torch.zeros(width, width, dtype=torch.float32, device=device)
        self._absolute = torch.zeros(in_features, dtype=torch.float32, device=device)
        self._peak = torch.zeros(in_features, dtype=torch.float32, device=device)

    def add(self, inputs: torch.Tensor) -> None:
        """Add a batch: `[…, K]`, any float dtype."""
        import torch

        x_TK = inputs.reshape(-1, inputs.shape[-1])
        self.tokens += x_TK.shape[0]
        if len(self._sum):
            _add_products(self._sum, x_TK)
        if self._magnitudes and len(x_TK):
            size = x_TK.float().abs()
            self._absolute += size.sum(0)
            self._peak = torch.maximum(self._peak, size.amax(0))

    def hessian(self, where: str) -> torch.Tensor:
        """Return H `[K, K]`, symmetric, not a copy of it. Raises TightfitError when it is not finite; `where` names the layer."""
        import torch

        hessian = self._sum.triu_()
        hessian += torch.triu(hessian, 1).T
        if not bool(torch.isfinite(hessian).all()):
            raise TightfitError(
                f"the inputs of {where} hold NaN or infinity, so its Hessian is useless",
                remedy="check the source model's weights",
            )
        return hessian

    @property
    def mean(self) -> torch.Tensor:
        """Mean |x| of each input `[K]`."""
        return self._absolute / max(1, self.tokens)

    @property
    def peak(self) -> torch.Tensor:
        """Largest |x| of each input `[K]`."""
        return self._peak

    def take(self, other: InputStatistics) -> None:
        """Add what another one saw, on whatever device."""
        import torch

        self.tokens += other.tokens
        self._sum += other._sum.to(self._sum.device)
        self._absolute += other._absolute.to(self._absolute.device)
        self._peak = torch.maximum(self._peak, other._peak.to(self._peak.device))

    def to(self, device: torch.device) -> InputStatistics:
        """Return the same on a device."""
        self._sum, self._absolute, self._peak = (t.to(device) for t in (self._sum, self._absolute, self._peak))
        return self


def _add_products(sums: torch.Tensor, x_TK: torch.Tensor) -> None:
    """Add x xᵀ of every token to the part of `sums` `[K, K]` right of the diagonal, in fp32.

    16-bit numbers on a card go to its tensor cores as they are: their products are exact in fp32, and so are the sums held.
    """
    import torch

    on_tensor_cores = x_TK.is_cuda and x_TK.dtype in (torch.bfloat16, torch.float16)
    if not on_tensor_cores:
        x_TK = x_TK.float()
    step = max(_BLOCK, -(-len(sums) // _CARD_STEPS)) if on_tensor_cores else _BLOCK
    for start in range(0, len(sums), step):
        rows = slice(start, start + step)
        left, right = x_TK[:, rows].T, x_TK[:, start:]
        if on_tensor_cores:
            sums[rows, start:] += torch.mm(left, right, out_dtype=torch.float32)
        else:
            sums[rows, start:].addmm_(left, right)


def summed(parts: Sequence[InputStatistics], device: torch.device) -> InputStatistics:
    """Return what several devices saw of the inputs of one matrix, together on one of them. `parts` are used up."""
    whole = parts[0].to(device)
    for part in parts[1:]:
        whole.take(part)
    return whole
