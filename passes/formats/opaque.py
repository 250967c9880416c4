"""A matrix as some other tool stored it, known only from the headers: exact sizes, no codec."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from math import prod
from typing import TYPE_CHECKING, ClassVar

from passes.errors import Reason, TightfitError
from passes.formats.format import Format, KernelFamily, Quantized, integer_kernel
from passes.formats.tensor import Tensor
from passes.record import dataclass

if TYPE_CHECKING:
    import torch


#: The method of what a GGUF file holds, as engines call it.
GGUF = "gguf"
#: Values at most of a tensor that is no part of a matrix but a setting.
_SETTINGS = 8
#: How the names of scales begin that inputs have.
_OF_INPUTS = ("pre_quant", "input", "smooth")
#: Families that are part of a method's name (`fbgemm_fp8`).
_NAMED = (KernelFamily.FP8, KernelFamily.MX, KernelFamily.W8A8, KernelFamily.AWQ)


@dataclass(frozen=True, slots=True)
class OpaqueFormat(Format):
    """One matrix of a quantized checkpoint, as its headers list it: `parts` are (suffix, dtype, shape) of every tensor.

    `method` is the checkpoint's `quant_method`. The shapes are those of one matrix; asking for another shape is an error.
    `told`: what the config says that it is, where its tensors are not those of that (a tool's scales folded into the norms, other dtypes).
    `bank`: the source keeps a layer's experts in one set of tensors, `<bank><suffix>`, with the expert as first dimension.
    """

    kind: ClassVar[str] = "stored"
    decodes: ClassVar[bool] = False
    carries_kv_scales: ClassVar[bool] = True
    method: str
    out_features: int
    in_features: int
    parts: tuple[tuple[str, str, tuple[int, ...]], ...]
    bank: bool = False
    told: str = ""

    @property
    def label(self) -> str:
        """The method and the effective bits a weight, `exl2-4.27`."""
        return f"{self.method}-{self.bits_per_weight(self.out_features, self.in_features):.2f}"

    @property
    def way(self) -> Hashable:
        """The method, and of each kind of tensors its share of the matrix, settings that are tensors (HQQ's bits, axis and shape) aside."""
        weights = self.out_features * self.in_features
        sizes = [(suffix, dtype, prod(shape)) for suffix, dtype, shape in self.parts]
        return self.method, tuple(
            (
                suffix,
                dtype,
                "a column" if size == self.in_features and not self._of_rows(suffix) else round(size / weights, 4),
            )
            for suffix, dtype, size in sizes
            if size > _SETTINGS
        )

    def _of_rows(self, suffix: str) -> bool:
        """Whether as many values as a row has inputs are of the rows (scales of groups or of a square matrix's rows) all the same."""
        return "scale" in suffix and not suffix.startswith(_OF_INPUTS)

    @property
    def engine_name(self) -> str:
        """The method."""
        return self.method

    @property
    def bits(self) -> float:
        """Effective bits a weight."""
        return self.bits_per_weight(self.out_features, self.in_features)

    @property
    def kernel(self) -> KernelFamily:
        """The family that the method names; else integers."""
        named = (family for family in _NAMED if family.value in self.method)
        return next(named, integer_kernel(self.bits))

    def illegal(self, out_features: int, in_features: int) -> Reason | None:
        """Refuse any shape but the one that was read."""
        if (out_features, in_features) == (self.out_features, self.in_features):
            return None
        return Reason(
            "stored_as_read", f"a matrix stored by {self.method} cannot be reshaped", "start from the dense model"
        )

    def tensors(self, name: str, out_features: int, in_features: int) -> tuple[Tensor, ...]:
        """Return the tensors that were read."""
        return tuple(Tensor(f"{name}.{suffix}", dtype, shape) for suffix, dtype, shape in self.parts)

    def stacked(self, name: str, copies: int, out_features: int, in_features: int) -> tuple[Tensor, ...] | None:
        """Return the bank's tensors, where the source keeps a bank."""
        if not self.bank:
            return None
        return tuple(Tensor(f"{name}{suffix}", dtype, (copies, *shape)) for suffix, dtype, shape in self.parts)

    def encode(self, name: str, quantized: Quantized) -> dict[str, torch.Tensor]:
        """Refuse, for the layout is known, its meaning is not."""
        raise TightfitError(f"{self.method} matrices are not written", remedy="choose a format that is")

    def decode(self, name: str, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        """Refuse, for the layout is known, its meaning is not."""
        raise TightfitError(f"{self.method} matrices are not read back", remedy="start from the dense model")
