"""Plain 16- or 32-bit weights: one `.weight` tensor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Self

from passes.errors import Reason
from passes.formats.format import Format, KernelFamily, Quantized
from passes.formats.tensor import DTYPE_BITS, Tensor
from passes.record import dataclass

if TYPE_CHECKING:
    import torch

_LABELS = {"BF16": "bf16", "F16": "fp16", "F32": "fp32"}


@dataclass(frozen=True, slots=True)
class Dense(Format):
    """A matrix stored as it is; `dtype` in safetensors' spelling."""

    kind: ClassVar[str] = "dense"
    is_quantized: ClassVar[bool] = False
    examples: ClassVar[tuple[str, ...]] = tuple(_LABELS.values())
    carries_kv_scales: ClassVar[bool] = True
    dtype: str = "BF16"

    @classmethod
    def named(cls, name: str) -> Self | None:
        """Read `bf16`, `fp16` or `fp32`."""
        dtype = next((dtype for dtype, label in _LABELS.items() if label == name), None)
        return cls(dtype) if dtype else None

    @property
    def label(self) -> str:
        """`bf16`, `fp16` or `fp32`."""
        return _LABELS.get(self.dtype, self.dtype.lower())

    @property
    def bits(self) -> float:
        """Those of the dtype."""
        return DTYPE_BITS[self.dtype]

    @property
    def kernel(self) -> KernelFamily:
        """Plain numbers."""
        return KernelFamily.W16

    def illegal(self, out_features: int, in_features: int) -> Reason | None:
        """Refuse no shape."""
        return None

    def tensors(self, name: str, out_features: int, in_features: int) -> tuple[Tensor, ...]:
        """Return one tensor, `<name>.weight`."""
        return (Tensor(f"{name}.weight", self.dtype, (out_features, in_features)),)

    def encode(self, name: str, quantized: Quantized) -> dict[str, torch.Tensor]:
        """Return the weights, which the codes are: no grid, no scale."""
        return {f"{name}.weight": quantized.codes}

    def decode(self, name: str, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        """Return the stored weight, cast."""
        return tensors[f"{name}.weight"].to(dtype)
