"""EXL2 at a number of bits a weight whose split over the matrices is still open: an upper bound of bytes, no layout."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Self

from passes.errors import Reason, TightfitError
from passes.formats.exllama.exl2 import UNIT, Exl2
from passes.formats.format import Format, KernelFamily, Quantized
from passes.formats.tensor import Tensor
from passes.record import dataclass

if TYPE_CHECKING:
    import torch

_REMEDY = "measure first (`optimize plan --measure`); that resolves the plan"


@dataclass(frozen=True, slots=True)
class Exl2Bounded(Format):
    """A matrix's share of a budget of `bpw` bits a weight.

    The budget holds for the decoder as a whole (ExLlamaV2's rule: bits × weights of all attention and MLP matrices, outputs padded
    to 32): single matrices may get more or less, their sum never more than the sum of these shares.
    """

    kind: ClassVar[str] = "exl2-bounded"
    is_bound: ClassVar[bool] = True
    usual_method: ClassVar[str] = "exl2"
    examples: ClassVar[tuple[str, ...]] = ("exl2-4.65",)
    quant_method: ClassVar[str] = "exl2"
    decodes: ClassVar[bool] = False
    splits_fused: ClassVar[bool] = True
    bpw: float = 4.0

    @classmethod
    def named(cls, name: str) -> Self | None:
        """Read `exl2-4.65`."""
        match = re.fullmatch(r"exl2-(\d(?:\.\d+)?)", name)
        return cls(float(match[1])) if match else None

    @property
    def label(self) -> str:
        """`exl2-4.65`."""
        return f"exl2-{self.bpw:g}"

    @property
    def bits(self) -> float:
        """The average over the model."""
        return self.bpw

    @property
    def kernel(self) -> KernelFamily:
        """ExLlama's."""
        return KernelFamily.EXL

    def stored_rows(self, out_features: int) -> int:
        """Return outputs with EXL2's padding."""
        return -(-out_features // UNIT) * UNIT

    def illegal(self, out_features: int, in_features: int) -> Reason | None:
        """Say what no EXL2 layout can hold."""
        return Exl2().illegal(out_features, in_features)

    def tensors(self, name: str, out_features: int, in_features: int) -> tuple[Tensor, ...]:
        """Return one stand-in of as many bytes as the matrix's share of the budget, rounded up."""
        weights = self.stored_rows(out_features) * in_features
        return (Tensor(f"{name}.exl2_at_most", "U8", (math.ceil(weights * self.bpw / 8),)),)

    def encode(self, name: str, quantized: Quantized) -> dict[str, torch.Tensor]:
        """Refuse before the split is known."""
        raise TightfitError(f"{name}: the split of {self.label} over the matrices is open", remedy=_REMEDY)

    def decode(self, name: str, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        """Refuse before the split is known."""
        raise TightfitError(f"{name}: the split of {self.label} over the matrices is open", remedy=_REMEDY)
