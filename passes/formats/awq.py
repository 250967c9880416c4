"""AWQ checkpoints (AutoAWQ's GEMM version): 4 bits with zero points, packed along the outputs.

`qweight` I32 `[K, N/8]`, `qzeros` I32 `[K/g, N/8]`, `scales` F16 `[K/g, N]`. Nibble i of word k holds column 8k + [0,2,4,6,1,3,5,7][i],
in `qzeros` too; zero points are stored as they are. w = (q − z)·scale. AWQ's channel scales are folded into neighbouring weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Self

from passes.errors import Reason
from passes.formats.format import Format, Grid, KernelFamily, Quantized
from passes.formats.gptq import group_size_reason
from passes.formats.tensor import Tensor
from passes.record import dataclass

if TYPE_CHECKING:
    import torch

_BITS, _PER_WORD = 4, 8
#: The column (within its run of 8) that each nibble of a word holds.
_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


@dataclass(frozen=True, slots=True)
class Awq(Format):
    """One AWQ GEMM matrix; `group_size` consecutive inputs share a scale and a zero point."""

    kind: ClassVar[str] = "awq"
    usual_method: ClassVar[str] = "awq"
    examples: ClassVar[tuple[str, ...]] = ("awq-4-g128",)
    quant_method: ClassVar[str] = "awq"
    group_size: int = 128
    symmetric: bool = False

    @classmethod
    def named(cls, name: str) -> Self | None:
        """Read `awq-4-g64`."""
        match = re.fullmatch(r"awq-4-g([1-9]\d*)", name)
        return cls(int(match[1])) if match else None

    @property
    def label(self) -> str:
        """`awq-4-g128`."""
        return f"awq-4-g{self.group_size}"

    @property
    def grid(self) -> Grid:
        """4-bit integers; the symmetric grid is stored with zero points of 8."""
        return Grid(_BITS, self.group_size, self.symmetric)

    @property
    def bits(self) -> float:
        """Always 4."""
        return _BITS

    @property
    def zero_points(self) -> bool:
        """Always: a symmetric grid is stored with them."""
        return True

    @property
    def kernel(self) -> KernelFamily:
        """AWQ's."""
        return KernelFamily.AWQ

    def illegal(self, out_features: int, in_features: int) -> Reason | None:
        """Refuse a group size that does not divide K, and N that is no multiple of 8."""
        if out_features % _PER_WORD:
            return Reason(
                "awq_needs_multiples_of_8", f"{out_features} outputs are no multiple of 8", "gptq or compressed-tensors"
            )
        return group_size_reason(self.group_size, in_features)

    def tensors(self, name: str, out_features: int, in_features: int) -> tuple[Tensor, ...]:
        """Return the three tensors of a matrix."""
        groups, words = in_features // self.group_size, out_features // _PER_WORD
        return (
            Tensor(f"{name}.qweight", "I32", (in_features, words)),
            Tensor(f"{name}.qzeros", "I32", (groups, words)),
            Tensor(f"{name}.scales", "F16", (groups, out_features)),
        )

    def encode(self, name: str, quantized: Quantized) -> dict[str, torch.Tensor]:
        """Pack codes and zero points; a symmetric grid's zero point is 8."""
        import torch

        codes, zero = quantized.codes.to(torch.int64), quantized.zero_point
        if zero is None:
            codes = codes + (1 << (_BITS - 1))
            zero = torch.full_like(quantized.scale, 1 << (_BITS - 1), dtype=torch.int64)
        return {
            f"{name}.qweight": _pack(codes.T),
            f"{name}.qzeros": _pack(zero.to(torch.int64).T),
            f"{name}.scales": quantized.scale.T.half().contiguous(),
        }

    def decode(self, name: str, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        """Return (q − z)·scale."""
        codes, zero = _unpack(tensors[f"{name}.qweight"]), _unpack(tensors[f"{name}.qzeros"])
        scale = tensors[f"{name}.scales"].float()
        size = self.group_size
        return ((codes - zero.repeat_interleave(size, 0)) * scale.repeat_interleave(size, 0)).T.to(dtype).contiguous()


def _pack(values: torch.Tensor) -> torch.Tensor:
    """Integers 0 … 15 `[R, N]` to int32 `[R, N/8]`."""
    import torch

    parts = values.reshape(values.shape[0], -1, _PER_WORD)
    words = torch.zeros(parts.shape[:2], dtype=torch.int64, device=values.device)
    for nibble, column in enumerate(_ORDER):
        words |= parts[:, :, column] << (_BITS * nibble)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def _unpack(words: torch.Tensor) -> torch.Tensor:
    import torch

    out = torch.empty(*words.shape, _PER_WORD, dtype=torch.float32, device=words.device)
    for nibble, column in enumerate(_ORDER):
        out[:, :, column] = ((words >> (_BITS * nibble)) & 15).float()
    return out.reshape(words.shape[0], -1)
