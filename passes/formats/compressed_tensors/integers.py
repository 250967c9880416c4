"""`pack-quantized` and `int-quantized` matrices of compressed-tensors: integers packed along K, or one a byte."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from passes.errors import Reason
from passes.formats.compressed_tensors.config_group import CompressedTensors, ConfigGroup, arguments, input_scale
from passes.formats.format import Grid, KernelFamily, Quantized, Rounding, integer_kernel
from passes.formats.gptq import GROUP, group_size, group_size_reason
from passes.formats.tensor import Tensor, float_dtype
from passes.record import dataclass

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class PackQuantized(CompressedTensors):
    """Integers of 4 or 8 bits, packed along K: `weight_packed`, `weight_scale`, `weight_shape`, zero points.

    `group_size` −1 = one scale an output channel. `inputs`: the type that an engine rounds inputs to, token by token (`int8`, `fp8`: W4A8);
    "" for plain ones. Widths that do not divide 32 were packed differently by releases up to
    0.17, so only 4 and 8 are written.
    """

    kind: ClassVar[str] = "pack-quantized"
    usual_method: ClassVar[str] = "gptq"
    examples: ClassVar[tuple[str, ...]] = ("w4a16-g128", "w4a16-g128-asym", "w8a16-channel")
    bits: int = 4
    group_size: int = 128
    symmetric: bool = True
    dtype: str = "BF16"
    inputs: str = ""

    @classmethod
    def named(cls, name: str) -> Self | None:
        """Read `w4a16-g64`, `w8a16-channel`, `-asym` after them."""
        match = re.fullmatch(rf"w([48])a16-({GROUP})(-asym)?", name)
        return cls(int(match[1]), group_size(match[2]), match[3] is None) if match else None

    @classmethod
    def described_by(cls, group: ConfigGroup, dtype: str) -> Self | None:
        """Read a group of 4-bit integers, or of 8-bit ones whose activations stay plain numbers; None for any other."""
        integers = group.type == "int" and (group.bits == 4 or (group.bits == 8 and not group.inputs))
        return cls(group.bits, group.group_size, group.symmetric, dtype, group.inputs) if integers else None

    def with_scales_in(self, dtype: str) -> PackQuantized:
        """Return the format with its scales in `dtype`."""
        return replace(self, dtype=dtype)

    @property
    def label(self) -> str:
        """`w4a16-g64`, `w4a8-fp8-g128`; `-asym` where there are zero points."""
        group = "channel" if self.group_size < 0 else f"g{self.group_size}"
        inputs = f"a{self.inputs.lstrip('intfp')}-{self.inputs}" if self.inputs else "a16"
        return f"w{self.bits}{inputs}-{group}" + ("" if self.symmetric else "-asym")

    @property
    def zero_points(self) -> bool:
        """As `symmetric` says."""
        return not self.symmetric

    @property
    def grid(self) -> Grid:
        """Integers of `bits`."""
        return Grid(self.bits, self.group_size, self.symmetric)

    @property
    def kernel(self) -> KernelFamily:
        """Integers, unpacked."""
        return integer_kernel(self.bits)

    def illegal(self, out_features: int, in_features: int) -> Reason | None:
        """Refuse a group size that does not divide K."""
        if self.bits not in (4, 8):
            return Reason(
                "pack_quantized_bits",
                f"pack-quantized is written with 4 or 8 bits, not {self.bits}",
                "choose 4 or 8 bits",
            )
        return group_size_reason(self.group_size, in_features)

    def tensors(self, name: str, out_features: int, in_features: int) -> tuple[Tensor, ...]:
        """Return packed codes, scales, the original shape, and zero points when asymmetric."""
        groups = 1 if self.group_size < 0 else in_features // self.group_size
        out = [
            Tensor(f"{name}.weight_packed", "I32", (out_features, -(-in_features * self.bits // 32))),
            Tensor(f"{name}.weight_scale", self.dtype, (out_features, groups)),
            Tensor(f"{name}.weight_shape", "I64", (2,)),
        ]
        if not self.symmetric:
            out.append(Tensor(f"{name}.weight_zero_point", "I32", (-(-out_features * self.bits // 32), groups)))
        return tuple(out)

    def encode(self, name: str, quantized: Quantized) -> dict[str, torch.Tensor]:
        """Pack with compressed-tensors' own packer (values carry the offset 2^(b−1))."""
        import torch
        from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

        half = 0 if quantized.zero_point is None else 1 << (self.bits - 1)
        codes = (quantized.codes.to(torch.int32) - half).to(torch.int8)
        stored = {
            f"{name}.weight_packed": pack_to_int32(codes, self.bits),
            f"{name}.weight_scale": quantized.scale.to(float_dtype(self.dtype)).contiguous(),
            f"{name}.weight_shape": torch.tensor(quantized.codes.shape, dtype=torch.int64),
        }
        if quantized.zero_point is not None:
            zero = (quantized.zero_point.to(torch.int32) - half).to(torch.int8)
            stored[f"{name}.weight_zero_point"] = pack_to_int32(zero, self.bits, packed_dim=0).contiguous()
        return stored

    def decode(self, name: str, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        """Return (q − zp)·scale."""
        import torch
        from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

        shape = torch.Size(tensors[f"{name}.weight_shape"].tolist())
        codes = unpack_from_int32(tensors[f"{name}.weight_packed"], self.bits, shape).float()
        scale = tensors[f"{name}.weight_scale"].float()
        grouped = codes.reshape(shape[0], scale.shape[1], -1)
        if not self.symmetric:
            packed = tensors[f"{name}.weight_zero_point"]
            zero = unpack_from_int32(packed, self.bits, torch.Size((shape[0], scale.shape[1])), packed_dim=0)
            grouped = grouped - zero.float().unsqueeze(-1)
        weight: torch.Tensor = (grouped * scale.unsqueeze(-1)).reshape(shape).to(dtype)
        return weight

    def scheme(self) -> dict[str, Any]:
        """Return the `weights` and activation arguments of a config group."""
        out = arguments(self.bits, "int", self.symmetric, self.group_size, activations="token" if self.inputs else None)
        if self.inputs:
            out["input_activations"] |= {
                "num_bits": 8, "type": "float" if self.inputs == "fp8" else "int", "symmetric": True,
            }  # fmt: skip
        return out


@dataclass(frozen=True, slots=True)
class IntQuantized(CompressedTensors):
    """W8A8: int8 weights with a scale an output channel. The engine quantizes activations: per token by their own extremes, or,
    `static`, all by one stored scale.
    """

    kind: ClassVar[str] = "int-quantized"
    usual_method: ClassVar[str] = "gptq"
    examples: ClassVar[tuple[str, ...]] = ("w8a8", "w8a8-static")
    dtype: str = "BF16"
    static: bool = False

    @classmethod
    def named(cls, name: str) -> Self | None:
        """Read `w8a8`, `w8a8-static`."""
        return next((form for form in (cls(), cls(static=True)) if form.label == name), None)

    @classmethod
    def described_by(cls, group: ConfigGroup, dtype: str) -> Self | None:
        """Read a group of 8-bit integers, activations too; None for any other."""
        integers = group.type == "int" and group.bits == 8 and group.inputs
        return cls(dtype, group.static) if integers else None

    def with_scales_in(self, dtype: str) -> IntQuantized:
        """Return the format with its scales in `dtype`."""
        return replace(self, dtype=dtype)

    @property
    def label(self) -> str:
        """`w8a8`, `w8a8-static`."""
        return "w8a8-static" if self.static else "w8a8"

    @property
    def static_inputs(self) -> bool:
        """As the field says."""
        return self.static

    @property
    def grid(self) -> Grid:
        """Symmetric int8 per channel."""
        return Grid(8, -1)

    @property
    def bits(self) -> float:
        """8."""
        return 8

    @property
    def kernel(self) -> KernelFamily:
        """Activations are quantized too."""
        return KernelFamily.W8A8

    def rounding(self, method: str) -> Rounding:
        """Return one rounding, whatever the method."""
        return Rounding("w8a8", 0)

    def illegal(self, out_features: int, in_features: int) -> Reason | None:
        """Refuse no shape."""
        return None

    def tensors(self, name: str, out_features: int, in_features: int) -> tuple[Tensor, ...]:
        """Return codes, channel scales, and the scale of the inputs when static."""
        return (
            Tensor(f"{name}.weight", "I8", (out_features, in_features)),
            Tensor(f"{name}.weight_scale", self.dtype, (out_features, 1)),
            *input_scale(name, static=self.static),
        )

    def encode(self, name: str, quantized: Quantized) -> dict[str, torch.Tensor]:
        """Store codes as int8."""
        import torch

        stored = {
            f"{name}.weight": quantized.codes.to(torch.int8).contiguous(),
            f"{name}.weight_scale": quantized.scale.to(float_dtype(self.dtype)).contiguous(),
        }
        if self.static:
            stored[f"{name}.input_scale"] = quantized.input_scale(name, self.grid.bounds[1])
        return stored

    def decode(self, name: str, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        """Return codes times scale."""
        return (tensors[f"{name}.weight"].float() * tensors[f"{name}.weight_scale"].float()).to(dtype)

    def scheme(self) -> dict[str, Any]:
        """Describe static channel weights; activations dynamic by token, or static by tensor."""
        return arguments(8, "int", True, -1, activations="tensor" if self.static else "token")
