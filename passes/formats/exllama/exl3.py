"""EXL3 matrices (ExLlamaV3): exact sizes only. ExLlamaV3's own converter makes them, on a GPU.

`trellis` I16 `[K/16, N/16, 16·bits]` (every 16 × 16 tile one trellis path), `suh` F16 `[K]`, `svh` F16 `[N]` (signs and scales around a
128-wide Hadamard rotation of both sides). N is padded to a multiple of 128 (`pad_to` in exllamav3/modules/linear.py).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Self

from passes.errors import Reason, TightfitError
from passes.formats.format import Format, KernelFamily, Quantized
from passes.formats.tensor import Tensor
from passes.record import dataclass

if TYPE_CHECKING:
    import torch

_TILE, _ROTATION = 16, 128
_REMEDY = "convert with ExLlamaV3's own converter on a CUDA machine"


@dataclass(frozen=True, slots=True)
class Exl3(Format):
    """One EXL3 matrix of `bits` a weight. A width between whole ones stands for the converter's mix over the matrices of a model.

    The mix spends `bits` on average, so the sum over a model is that of its matrices at `bits`, rounded up to whole 16-bit words a tile.
    """

    kind: ClassVar[str] = "exl3"
    usual_method: ClassVar[str] = "exl3"
    usual_backend: ClassVar[str] = "exllamav3"
    examples: ClassVar[tuple[str, ...]] = ("exl3-3.5",)
    quant_method: ClassVar[str] = "exl3"
    decodes: ClassVar[bool] = False
    splits_fused: ClassVar[bool] = True
    bits: float = 4.0

    @classmethod
    def named(cls, name: str) -> Self | None:
        """Read `exl3-3.5`."""
        match = re.fullmatch(r"exl3-(\d(?:\.\d+)?)", name)
        return cls(float(match[1])) if match else None

    @property
    def label(self) -> str:
        """`exl3-3.5`."""
        return f"exl3-{self.bits:g}"

    @property
    def kernel(self) -> KernelFamily:
        """ExLlama's."""
        return KernelFamily.EXL

    def head(self, bits: int) -> Exl3 | None:
        """Return 2 to 8 bits, as the converter takes them."""
        return Exl3(float(bits)) if 2 <= bits <= 8 else None

    def illegal(self, out_features: int, in_features: int) -> Reason | None:
        """Require between 1 and 8 bits and inputs a multiple of 128 (the rotation); outputs are padded to one."""
        if not 1 <= self.bits <= 8:
            return Reason("exl3_bits", f"EXL3 stores 1 to 8 bits, not {self.bits:g}", "choose 2 to 6 bits")
        if in_features % _ROTATION:
            message = f"the inputs of a {out_features} × {in_features} matrix are not a multiple of 128"
            return Reason("exl3_needs_multiples_of_128", message, "exl2")
        return None

    def tensors(self, name: str, out_features: int, in_features: int) -> tuple[Tensor, ...]:
        """Return the trellis and the two sign vectors."""
        words = int(-(-16 * self.bits // 1))
        out_features = math.ceil(out_features / _ROTATION) * _ROTATION
        return (
            Tensor(f"{name}.trellis", "I16", (in_features // _TILE, out_features // _TILE, words)),
            Tensor(f"{name}.suh", "F16", (in_features,)),
            Tensor(f"{name}.svh", "F16", (out_features,)),
        )

    def encode(self, name: str, quantized: Quantized) -> dict[str, torch.Tensor]:
        """Refuse, for the trellis search is a CUDA kernel of ExLlamaV3."""
        raise TightfitError("EXL3 is made by ExLlamaV3 only", remedy=_REMEDY)

    def decode(self, name: str, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        """Refuse: the trellis is decoded by ExLlamaV3 alone."""
        raise TightfitError("EXL3 is read by ExLlamaV3 only", remedy=_REMEDY)
