"""A tensor of a checkpoint by its description: name, dtype, shape. The currency of the size invariant."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from passes.record import dataclass

if TYPE_CHECKING:
    import torch

#: Bits per element of every safetensors dtype that checkpoints use (safetensors format, `dtype` field of the header).
DTYPE_BITS: dict[str, int] = {
    "F64": 64, "F32": 32, "F16": 16, "BF16": 16,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4,
    "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U64": 64, "U32": 32, "U16": 16, "U8": 8, "BOOL": 8,
}  # fmt: skip


def float_dtype(name: str) -> torch.dtype:
    """Return torch's dtype for safetensors' name of plain numbers. Raises KeyError for any other name."""
    import torch

    return {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}[name]


@dataclass(frozen=True, slots=True)
class Tensor:
    """One stored tensor: `dtype` is the safetensors spelling (`BF16`, `I32`), `shape` row-major."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """Number of elements; 1 for a scalar."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes of the data, as safetensors stores it (without the header)."""
        return self.elements * DTYPE_BITS[self.dtype] // 8
