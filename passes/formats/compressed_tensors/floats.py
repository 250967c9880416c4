"""`float-quantized` matrices of compressed-tensors: FP8 with scales of channels, of the matrix or of blocks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from passes.errors import Reason
from passes.formats.compressed_tensors.config_group import CompressedTensors, ConfigGroup, arguments, input_scale
from passes.formats.format import E4M3_MAX, Grid, KernelFamily, Quantized, Rounding
from passes.formats.tensor import Tensor, float_dtype
from passes.record import dataclass

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class FloatQuantized(CompressedTensors):
    """FP8 (e4m3) weights. `group_size` −1: a scale a channel; 0: one a matrix; `block` (rows, columns) for block scales. `static`:

    all activations are quantized by one stored scale (not with blocks), not each token by its own extremes.

    Block scales are stored `weight_scale_inv`-like in other families; compressed-tensors calls them `weight_scale` too.
    """

    kind: ClassVar[str] = "float-quantized"
    examples: ClassVar[tuple[str, ...]] = ("fp8", "fp8-static", "fp8-block")
    group_size: int = -1
    block: tuple[int, int] | None = None
    dtype: str = "BF16"
    static: bool = False

    @classmethod
    def named(cls, name: str) -> Self | None:
        """Read `fp8`, `fp8-tensor`, either with `-static`, `fp8-block`."""
        scales = [cls(size, static=static) for size in (-1, 0) for static in (False, True)]
        return next((form for form in (*scales, cls(-1, (128, 128))) if form.label == name), None)

    @classmethod
    def described_by(cls, group: ConfigGroup, dtype: str) -> Self | None:
        """Read a group of 8-bit floats; None for any other."""
        if group.type != "float" or group.bits != 8:
            return None
        return cls(-1, group.block, dtype) if group.block else cls(group.group_size, None, dtype, group.static)

    def with_scales_in(self, dtype: str) -> FloatQuantized:
        """Return the format with its scales in `dtype`."""
        return replace(self, dtype=dtype)

    @property
    def label(self) -> str:
        """`fp8` (channel), `fp8-tensor`, `fp8-block`, `fp8-static`, `fp8-tensor-static`."""
        if self.block:
            return "fp8-block"
        return ("fp8" if self.group_size < 0 else "fp8-tensor") + ("-static" if self.static else "")

    @property
    def static_inputs(self) -> bool:
        """As the field says."""
        return self.static

    @property
    def grid(self) -> Grid:
        """e4m3 values; block scales are searched per row of blocks like groups."""
        return Grid(8, self.group_size, kind="e4m3")

    @property
    def bits(self) -> float:
        """8."""
        return 8

    @property
    def kernel(self) -> KernelFamily:
        """Activations are quantized too."""
        return KernelFamily.FP8

    def rounding(self, method: str) -> Rounding:
        """Return one rounding, whatever the method."""
        return Rounding("fp8", 0)

    def illegal(self, out_features: int, in_features: int) -> Reason | None:
        """Require that blocks divide K, because the inputs are quantized in groups as wide as a block; the last rows may be a short block.

        vLLM asserts it where it quantizes the inputs (`per_token_group_quant_fp8` in fp8_utils.py, 0.32).
        """
        if self.block and in_features % self.block[1]:
            return Reason(
                "fp8_block_does_not_divide",
                f"blocks of {self.block[1]} inputs do not divide the {in_features} inputs",
                "fp8 (a scale an output channel)",
            )
        return None

    def tensors(self, name: str, out_features: int, in_features: int) -> tuple[Tensor, ...]:
        """Return values, scales, and the scale of the inputs when static."""
        if self.block:
            scale = (-(-out_features // self.block[0]), -(-in_features // self.block[1]))
        else:
            scale = (out_features, 1) if self.group_size < 0 else (1,)  # type: ignore[assignment]
        return (
            Tensor(f"{name}.weight", "F8_E4M3", (out_features, in_features)),
            Tensor(f"{name}.weight_scale", self.dtype, scale),
            *input_scale(name, static=self.static),
        )

    def encode(self, name: str, quantized: Quantized) -> dict[str, torch.Tensor]:
        """Store values as float8."""
        import torch

        scale = quantized.scale.to(float_dtype(self.dtype))
        stored = {
            f"{name}.weight": quantized.codes.to(torch.float8_e4m3fn).contiguous(),
            f"{name}.weight_scale": (
                scale.reshape(1) if self.group_size == 0 and not self.block else scale
            ).contiguous(),
        }
        if self.static:
            stored[f"{name}.input_scale"] = quantized.input_scale(name, E4M3_MAX)
        return stored

    def decode(self, name: str, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        """Return values times scale."""
        values, scale = tensors[f"{name}.weight"].float(), tensors[f"{name}.weight_scale"].float()
        if self.block:
            rows, columns = values.shape
            scale = scale.repeat_interleave(self.block[0], 0)[:rows].repeat_interleave(self.block[1], 1)[:, :columns]
        return (values * scale).to(dtype)

    def scheme(self) -> dict[str, Any]:
        """Describe static weights; activations dynamic (per token; per 128 inputs with block scales), or static by tensor."""
        out = arguments(8, "float", True, self.group_size, activations="tensor" if self.static else "token")
        if self.block:
            out["weights"] |= {"strategy": "block", "block_structure": list(self.block), "group_size": None}
            out["input_activations"] |= {"strategy": "group", "group_size": self.block[1]}
        return out
