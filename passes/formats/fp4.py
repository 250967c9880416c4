"""4-bit floats (e2m1) with scales per small group, as compressed-tensors packs them: NVFP4 and MXFP4.

`weight_packed` U8 `[N, K/2]`, the even input in the low nibble (the package's own packer). NVFP4: `weight_scale` e4m3 `[N, K/16]`, and one
fp32 `weight_global_scale`; a weight is value · weight_scale / weight_global_scale. With quantized activations also
`input_global_scale`. MXFP4: `weight_scale` U8 `[N, K/32]`, the biased exponent of a power of two (OCP Microscaling 1.0).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

from passes.errors import Reason, TightfitError
from passes.formats.compressed_tensors.config_group import CompressedTensors, ConfigGroup
from passes.formats.format import E2M1_MAX, E4M3_MAX, Grid, KernelFamily, Quantized, Rounding
from passes.formats.gptq import group_size_reason
from passes.formats.tensor import Tensor
from passes.record import dataclass

if TYPE_CHECKING:
    import torch

_EXPONENT_BIAS = 127


@dataclass(frozen=True, slots=True)
class Nvfp4(CompressedTensors):
    """NVFP4: groups of 16. `activations`: inputs are quantized too (W4A4), with a calibrated global scale; else weight-only."""

    kind: ClassVar[str] = "nvfp4-pack-quantized"
    examples: ClassVar[tuple[str, ...]] = ("nvfp4", "nvfp4a16")
    group_size: ClassVar[int] = 16
    activations: bool = True

    @classmethod
    def named(cls, name: str) -> Self | None:
        """Read `nvfp4`, `nvfp4a16`."""
        return next((form for form in (cls(), cls(activations=False)) if form.label == name), None)

    @classmethod
    def described_by(cls, group: ConfigGroup, dtype: str) -> Self | None:
        """Read a group of 4-bit floats that are not MXFP4; None for any other."""
        floats = group.type == "float" and group.bits == 4
        return cls(bool(group.inputs)) if floats and not _is_mxfp4(group) else None

    @property
    def label(self) -> str:
        """`nvfp4`, `nvfp4a16` for weight-only."""
        return "nvfp4" if self.activations else "nvfp4a16"

    @property
    def grid(self) -> Grid:
        """e2m1 in groups of 16."""
        return Grid(4, self.group_size, kind="e2m1")

    @property
    def static_inputs(self) -> bool:
        """Inputs have a global scale where they are quantized."""
        return self.activations

    @property
    def bits(self) -> float:
        """4."""
        return 4

    @property
    def kernel(self) -> KernelFamily:
        """4-bit floats."""
        return KernelFamily.FP4

    def rounding(self, method: str) -> Rounding:
        """Return one rounding, whatever the method."""
        return Rounding(self.label, 0)

    def illegal(self, out_features: int, in_features: int) -> Reason | None:
        """Require that 16 divides K."""
        return group_size_reason(self.group_size, in_features)

    def tensors(self, name: str, out_features: int, in_features: int) -> tuple[Tensor, ...]:
        """Return packed values, group scales, global scales."""
        out = (
            Tensor(f"{name}.weight_packed", "U8", (out_features, in_features // 2)),
            Tensor(f"{name}.weight_scale", "F8_E4M3", (out_features, in_features // self.group_size)),
            Tensor(f"{name}.weight_global_scale", "F32", (1,)),
        )
        return (*out, Tensor(f"{name}.input_global_scale", "F32", (1,))) if self.activations else out

    def encode(self, name: str, quantized: Quantized) -> dict[str, torch.Tensor]:
        """Store codes that are e2m1 values; scale · global_scale must be e4m3 values."""
        import torch
        from compressed_tensors.compressors.nvfp4.helpers import pack_fp4_to_uint8

        if quantized.global_scale is None:
            raise TightfitError(f"{name}: NVFP4 needs a global scale", remedy="this is a defect of tightfit")
        stored = {
            f"{name}.weight_packed": pack_fp4_to_uint8(quantized.codes.float()),
            f"{name}.weight_scale": (quantized.scale * quantized.global_scale).to(torch.float8_e4m3fn).contiguous(),
            f"{name}.weight_global_scale": quantized.global_scale.float().reshape(1).clone(),
        }
        if self.activations:
            stored[f"{name}.input_global_scale"] = 1 / quantized.input_scale(name, E4M3_MAX * E2M1_MAX)
        return stored

    def decode(self, name: str, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        """Return value times group scale over global scale."""
        scale = tensors[f"{name}.weight_scale"].float() / tensors[f"{name}.weight_global_scale"].float()
        return _scaled(tensors[f"{name}.weight_packed"], scale, self.group_size, dtype)

    def scheme(self) -> dict[str, Any]:
        """Describe static two-level weights; activations two-level, the group scales made on the fly (`dynamic: local`)."""
        weights = _scheme("tensor_group", self.group_size)
        inputs = weights | {"dynamic": "local"} if self.activations else None
        return {"weights": weights, "input_activations": inputs, "output_activations": None}


@dataclass(frozen=True, slots=True)
class Mxfp4(CompressedTensors):
    """MXFP4, weight-only: groups of 32, scales powers of two."""

    kind: ClassVar[str] = "mxfp4-pack-quantized"
    examples: ClassVar[tuple[str, ...]] = ("mxfp4",)
    group_size: ClassVar[int] = 32

    @classmethod
    def named(cls, name: str) -> Self | None:
        """Read `mxfp4`."""
        return cls() if name == cls().label else None

    @classmethod
    def described_by(cls, group: ConfigGroup, dtype: str) -> Self | None:
        """Read a group of 4-bit floats 32 by 32, or so called; None for any other."""
        return cls() if group.type == "float" and group.bits == 4 and _is_mxfp4(group) else None

    @property
    def label(self) -> str:
        """`mxfp4`."""
        return "mxfp4"

    @property
    def grid(self) -> Grid:
        """e2m1 in groups of 32."""
        return Grid(4, self.group_size, kind="e2m1")

    @property
    def bits(self) -> float:
        """4."""
        return 4

    @property
    def kernel(self) -> KernelFamily:
        """Scales are powers of two."""
        return KernelFamily.MX

    def rounding(self, method: str) -> Rounding:
        """Return one rounding, whatever the method."""
        return Rounding(self.label, 0)

    def illegal(self, out_features: int, in_features: int) -> Reason | None:
        """Require that 32 divides K."""
        return group_size_reason(self.group_size, in_features)

    def tensors(self, name: str, out_features: int, in_features: int) -> tuple[Tensor, ...]:
        """Return packed values and exponents."""
        return (
            Tensor(f"{name}.weight_packed", "U8", (out_features, in_features // 2)),
            Tensor(f"{name}.weight_scale", "U8", (out_features, in_features // self.group_size)),
        )

    def encode(self, name: str, quantized: Quantized) -> dict[str, torch.Tensor]:
        """Store codes that are e2m1 values, scales powers of two."""
        import torch
        from compressed_tensors.compressors.nvfp4.helpers import pack_fp4_to_uint8

        exponent = torch.frexp(quantized.scale.float()).exponent - 1
        return {
            f"{name}.weight_packed": pack_fp4_to_uint8(quantized.codes.float()),
            f"{name}.weight_scale": (exponent + _EXPONENT_BIAS).to(torch.uint8).contiguous(),
        }

    def decode(self, name: str, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        """Return value times 2^exponent."""
        import torch

        exponent = tensors[f"{name}.weight_scale"].to(torch.int32) - _EXPONENT_BIAS
        scale = torch.ldexp(torch.ones(exponent.shape, device=exponent.device), exponent)
        return _scaled(tensors[f"{name}.weight_packed"], scale, self.group_size, dtype)

    def scheme(self) -> dict[str, Any]:
        """Describe static weights, plain activations."""
        return {"weights": _scheme("group", self.group_size), "input_activations": None, "output_activations": None}


def _is_mxfp4(group: ConfigGroup) -> bool:
    return "mxfp4" in group.form or group.group_size == Mxfp4.group_size


def _scaled(packed: torch.Tensor, scale: torch.Tensor, size: int, dtype: torch.dtype) -> torch.Tensor:
    import torch
    from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8

    rows, words = packed.shape
    values = unpack_fp4_from_uint8(packed, rows, 2 * words, dtype=torch.float32)
    weight: torch.Tensor = (values * scale.repeat_interleave(size, 1)).to(dtype)
    return weight


def _scheme(strategy: str, group_size: int) -> dict[str, Any]:
    return {
        "num_bits": 4, "type": "float", "symmetric": True, "strategy": strategy, "group_size": group_size, "dynamic": False,
        "observer": "minmax", "actorder": None, "block_structure": None, "observer_kwargs": {},
    }  # fmt: skip
