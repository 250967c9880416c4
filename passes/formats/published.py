"""Layouts that publishers ship and engines read, but tightfit does not write: exact sizes, no codec.

Sources: `fp8-*` transformers' FineGrainedFP8 and AutoFP8/fbgemm checkpoints; `nvfp4-modelopt` NVIDIA ModelOpt's export;
`mxfp4-blocks` gpt-oss's own files; `nf4` bitsandbytes with double quantization (blocks of 64, scales in blocks of 256),
`int8-bnb-stored` its LLM.int8(); `mxfp8` e4m3 with powers of two for 32 inputs (OCP Microscaling 1.0);
`quark-*` AMD Quark's exports, as vLLM 0.32's
`quantization/quark/schemes` create them; `torchao-*` torchao's tensors (`Int4Tensor`, `Int8Tensor`, `Float8Tensor`); `hqq-*` HQQ's
`W_q`, `scale` and `zero`; `planes*-gptq` GPTQModel's 5 to 7 bits; `int4-awq-modelopt` ModelOpt's W4A16_AWQ (dtype of
its scales assumed, headers decide), `int4-fp8-awq-modelopt` its W4A8_AWQ; `int-in-bytes` llm-compressor's W4A8 in `int-quantized`
(a byte for each value; vLLM has kernels for it on Arm alone); `fp8-rows` ModelOpt's, `fp8-static-rows` AutoRound's;
`gemv-*awq` AutoAWQ's other kernels (`awq/modules/linear/gemv.py`, `gemv_fast.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar

from passes.errors import Reason, TightfitError
from passes.formats.format import Format, KernelFamily, Quantized
from passes.formats.tensor import Tensor
from passes.record import dataclass

if TYPE_CHECKING:
    import torch

Part = tuple[str, str, tuple[int, ...]]


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def _fp8_block(n: int, k: int, g: int) -> tuple[Part, ...]:
    return (("weight", "F8_E4M3", (n, k)), ("weight_scale_inv", "F32", (_ceil(n, g), _ceil(k, g))))


def _fp8_tensor(n: int, k: int, g: int) -> tuple[Part, ...]:
    return (("weight", "F8_E4M3", (n, k)), ("weight_scale", "F32", ()))


def _fp8_static(n: int, k: int, g: int) -> tuple[Part, ...]:
    return (*_fp8_tensor(n, k, g), ("input_scale", "F32", ()))


def _fp8_row(n: int, k: int, g: int) -> tuple[Part, ...]:
    return (("weight", "F8_E4M3", (n, k)), ("weight_scale", "F32", (n, 1)))


def _fp8_rows(n: int, k: int, g: int) -> tuple[Part, ...]:
    return (("weight", "F8_E4M3", (n, k)), ("weight_scale", "F32", (n,)))


def _fp8_static_rows(n: int, k: int, g: int) -> tuple[Part, ...]:
    return (*_fp8_rows(n, k, g), ("input_scale", "F32", (1,)))


def _nvfp4_modelopt(n: int, k: int, g: int) -> tuple[Part, ...]:
    scalars: tuple[Part, ...] = (("weight_scale_2", "F32", ()), ("input_scale", "F32", ()))
    return (("weight", "U8", (n, k // 2)), ("weight_scale", "F8_E4M3", (n, k // g)), *scalars)


def _mxfp4(n: int, k: int, g: int) -> tuple[Part, ...]:
    return (("weight_packed", "U8", (n, k // 2)), ("weight_scale", "U8", (n, k // g)))


def _nf4_state_bytes(n: int, k: int) -> int:
    """The JSON that bitsandbytes 0.50 stores beside a matrix; its last figure, a mean, is printed with 17 to 21 characters."""
    head = (
        f'{{"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [{n}, {k}], "nested_blocksize": 256, '
    )
    return len(head + '"nested_dtype": "float32", "nested_offset": 0.0123456789012345678}')


def _nf4(n: int, k: int, g: int) -> tuple[Part, ...]:
    blocks = _ceil(n * k, g)
    return (
        ("weight", "U8", (_ceil(n * k, 2), 1)),
        ("weight.absmax", "U8", (blocks,)),
        ("weight.nested_absmax", "F32", (_ceil(blocks, 256),)),
        ("weight.nested_quant_map", "F32", (256,)),
        ("weight.quant_map", "F32", (16,)),
        ("weight.quant_state.bitsandbytes__nf4", "U8", (_nf4_state_bytes(n, k),)),
    )


def _int8_llm(n: int, k: int, g: int) -> tuple[Part, ...]:
    return (("weight", "I8", (n, k)), ("SCB", "F32", (n,)), ("weight_format", "U8", ()))


def _nvfp4a16_modelopt(n: int, k: int, g: int) -> tuple[Part, ...]:
    return tuple(part for part in _nvfp4_modelopt(n, k, g) if part[0] != "input_scale")


def _mxfp8(n: int, k: int, g: int) -> tuple[Part, ...]:
    return (("weight", "F8_E4M3", (n, k)), ("weight_scale", "U8", (n, _ceil(k, g))))


def _int8_static(n: int, k: int, g: int) -> tuple[Part, ...]:
    return (*_int8_row(n, k, g), ("input_scale", "F32", ()))


def _int8_row(n: int, k: int, g: int) -> tuple[Part, ...]:
    return (("weight", "I8", (n, k)), ("weight_scale", "F32", (n,)))


def _int4_groups(n: int, k: int, g: int) -> tuple[Part, ...]:
    return (("weight", "I32", (k, _ceil(n, 8))), ("weight_scale", "F32", (_ceil(k, g or k), n)))


def _quark_mx(n: int, k: int, g: int) -> tuple[Part, ...]:
    return (("weight", "U8", (n, k // 2)), ("weight_scale", "U8", (n, _ceil(k, g))))


def _torchao_int4(n: int, k: int, g: int) -> tuple[Part, ...]:
    scales = (_ceil(k, g), n)
    return (
        ("_weight_qdata", "I8", (n, k // 2)),
        ("_weight_scale", "BF16", scales),
        ("_weight_zero_point", "BF16", scales),
    )


def _torchao_int8(n: int, k: int, g: int) -> tuple[Part, ...]:
    return (("_weight_qdata", "I8", (n, k)), ("_weight_scale", "F32", (n, 1)), ("_weight_zero_point", "I8", (n, 1)))


def _torchao_intx(n: int, k: int, g: int) -> tuple[Part, ...]:
    """Integers of any width, a byte each in files."""
    groups = (n, _ceil(k, g))
    return (("_weight_qdata", "I8", (n, k)), ("_weight_scale", "BF16", groups), ("_weight_zero_point", "I8", groups))


def _torchao_fp8(n: int, k: int, g: int) -> tuple[Part, ...]:
    return (("_weight_qdata", "F8_E4M3", (n, k)), ("_weight_scale", "F32", (n, 1)))


def _hqq(bits: int) -> Callable[[int, int, int], tuple[Part, ...]]:
    def parts(n: int, k: int, g: int) -> tuple[Part, ...]:
        groups = _ceil(n * k, g)
        return (
            ("W_q", "I32", (_ceil(groups, 10), g)) if bits == 3 else ("W_q", "U8", (_ceil(groups * bits, 8), g)),
            ("scale", "F16", (groups, 1)),
            ("zero", "F16", (groups, 1)),
        )

    return parts


def _gemv_groups(k: int, g: int) -> int:
    """Words of zero points of a row, padded as AutoAWQ's `calculate_zeros_width` does."""
    multiple = 1 if g >= 128 else 2 if g == 64 else 4
    return _ceil(_ceil(k // g, 8), multiple) * multiple


def _awq_gemv(n: int, k: int, g: int) -> tuple[Part, ...]:
    words = _gemv_groups(k, g)
    return (("qweight", "I32", (n, k // 8)), ("qzeros", "I32", (n, words)), ("scales", "F16", (n, words * 8)))


def _awq_gemv_fast(n: int, k: int, g: int) -> tuple[Part, ...]:
    groups = _gemv_groups(k, g) * 8
    return (("qweight", "I16", (n // 4, k)), ("qzeros", "F16", (groups, n)), ("scales", "F16", (groups, n)))


def _gptq_planes(bits: int) -> Callable[[int, int, int], tuple[Part, ...]]:
    def parts(n: int, k: int, g: int) -> tuple[Part, ...]:
        groups = _ceil(k, g or k)
        return (
            ("qweight", "I32", (_ceil(k * bits, 32), n)),
            ("qzeros", "I32", (groups, _ceil(n * bits, 32))),
            ("scales", "F16", (groups, n)),
            ("g_idx", "I32", (k,)),
        )

    return parts


def _int4_awq_modelopt(n: int, k: int, g: int) -> tuple[Part, ...]:
    return (
        ("weight", "U8", (n // 2, k)),
        ("weight_scale", "BF16", (n, k // g)),
        ("pre_quant_scale", "BF16", (k,)),
    )


def _int4_fp8_awq_modelopt(n: int, k: int, g: int) -> tuple[Part, ...]:
    return (
        ("weight", "U8", (n // 2, k)), ("weight_scale", "F32", (n, k // g)), ("weight_scale_2", "F32", ()), ("input_scale", "F32", ()),
    )  # fmt: skip


def _int_in_bytes(n: int, k: int, g: int) -> tuple[Part, ...]:
    return (("weight", "I8", (n, k)), ("weight_scale", "BF16", (n, k // g if g > 0 else 1)))


@dataclass(frozen=True, slots=True)
class _Layout:
    """A layout's tensors for N, K and a group; the group (or block) that it has unless told; bits of a code and kernels.

    `grouped`: K must be a multiple of the group. `blocks`: banks of experts are stored as blocks and scales.
    `method`: the `quant_method` of which it is the only layout.
    """

    parts: Callable[[int, int, int], tuple[Part, ...]]
    group: int
    bits: float
    kernel: KernelFamily
    grouped: bool = False
    blocks: bool = False
    method: str = ""


_LAYOUTS = {
    "fp8-block": _Layout(_fp8_block, 128, 8, KernelFamily.FP8),
    "fp8-tensor": _Layout(_fp8_tensor, 0, 8, KernelFamily.FP8),
    "fp8-static": _Layout(_fp8_static, 0, 8, KernelFamily.FP8),
    "fp8-rows": _Layout(_fp8_rows, 0, 8, KernelFamily.FP8),
    "fp8-static-rows": _Layout(_fp8_static_rows, 0, 8, KernelFamily.FP8),
    "fp8-row": _Layout(_fp8_row, 0, 8, KernelFamily.FP8, method="fbgemm_fp8"),
    "nvfp4-modelopt": _Layout(_nvfp4_modelopt, 16, 4, KernelFamily.FP4, grouped=True),
    "mxfp4-blocks": _Layout(_mxfp4, 32, 4, KernelFamily.MX, grouped=True, blocks=True, method="mxfp4"),
    "nf4": _Layout(_nf4, 64, 4, KernelFamily.BNB),
    "int8-bnb-stored": _Layout(_int8_llm, 0, 8, KernelFamily.BNB),
    "nvfp4-modelopt-a16": _Layout(_nvfp4a16_modelopt, 16, 4, KernelFamily.FP4, grouped=True),
    "mxfp8": _Layout(_mxfp8, 32, 8, KernelFamily.FP8, grouped=True),
    "quark-fp8": _Layout(_fp8_tensor, 0, 8, KernelFamily.FP8),
    "quark-fp8-static": _Layout(_fp8_static, 0, 8, KernelFamily.FP8),
    "quark-fp8-row": _Layout(_fp8_row, 0, 8, KernelFamily.FP8),
    "quark-fp8-block": _Layout(_fp8_block, 128, 8, KernelFamily.FP8),
    "quark-int8": _Layout(_int8_row, 0, 8, KernelFamily.W8A8),
    "quark-int8-static": _Layout(_int8_static, 0, 8, KernelFamily.W8A8),
    "quark-int4": _Layout(_int4_groups, 128, 4, KernelFamily.W4, grouped=True),
    "quark-mx": _Layout(_quark_mx, 32, 4, KernelFamily.MX, grouped=True),
    "torchao-int4": _Layout(_torchao_int4, 128, 4, KernelFamily.W4, grouped=True),
    "torchao-int8": _Layout(_torchao_int8, 0, 8, KernelFamily.W8),
    "torchao-intx": _Layout(_torchao_intx, 32, 8, KernelFamily.W8, grouped=True),
    "torchao-fp8": _Layout(_torchao_fp8, 0, 8, KernelFamily.FP8),
    **{
        f"hqq-{bits}": _Layout(_hqq(bits), 64, bits, KernelFamily.W4 if bits < 8 else KernelFamily.W8)
        for bits in (1, 2, 3, 4, 8)
    },
    **{f"planes{bits}-gptq": _Layout(_gptq_planes(bits), 0, bits, KernelFamily.W8) for bits in (5, 6, 7)},
    "int4-awq-modelopt": _Layout(_int4_awq_modelopt, 128, 4, KernelFamily.W4, grouped=True),
    "int4-fp8-awq-modelopt": _Layout(_int4_fp8_awq_modelopt, 128, 4, KernelFamily.W4, grouped=True),
    "int-in-bytes": _Layout(_int_in_bytes, 128, 8, KernelFamily.W8, grouped=True),
    "gemv-awq": _Layout(_awq_gemv, 128, 4, KernelFamily.W4, grouped=True),
    "gemv-fast-awq": _Layout(_awq_gemv_fast, 128, 4, KernelFamily.W4, grouped=True),
}


@dataclass(frozen=True, slots=True)
class Published(Format):
    """One matrix in a publisher's `layout`; `group_size` inputs share a scale (a square block for fp8-block)."""

    kind: ClassVar[str] = "published"
    decodes: ClassVar[bool] = False
    carries_kv_scales: ClassVar[bool] = True
    layout: str
    group_size: int = 0

    @property
    def group(self) -> int:
        """The group size in use."""
        return self.group_size or _LAYOUTS[self.layout].group

    @property
    def label(self) -> str:
        """The layout: `fp8-block`, `nvfp4-modelopt`."""
        return self.layout

    @property
    def engine_name(self) -> str:
        """The layout."""
        return self.layout

    @property
    def layout_name(self) -> str:
        """The layout."""
        return self.layout

    @property
    def block(self) -> tuple[int, int] | None:
        """The square blocks of `fp8-block`."""
        return (self.group, self.group) if self.layout == "fp8-block" else None

    @property
    def expert_blocks(self) -> bool:
        """Whether the layout has blocks."""
        return _LAYOUTS[self.layout].blocks

    @property
    def bits(self) -> float:
        """The layout's."""
        return _LAYOUTS[self.layout].bits

    @property
    def kernel(self) -> KernelFamily:
        """The layout's."""
        return _LAYOUTS[self.layout].kernel

    def illegal(self, out_features: int, in_features: int) -> Reason | None:
        """Require K to be a multiple of the group, in grouped layouts."""
        if _LAYOUTS[self.layout].grouped and in_features % self.group:
            return Reason("group_size_does_not_divide", f"group size {self.group} does not divide {in_features} inputs")
        return None

    def tensors(self, name: str, out_features: int, in_features: int) -> tuple[Tensor, ...]:
        """Return the stored tensors of one matrix."""
        parts = _LAYOUTS[self.layout].parts(out_features, in_features, self.group)
        return tuple(Tensor(f"{name}.{suffix}", dtype, shape) for suffix, dtype, shape in parts)

    def stacked(self, name: str, copies: int, out_features: int, in_features: int) -> tuple[Tensor, ...] | None:
        """Return a bank in one tensor of blocks (16 bytes for 32 values) and one of scales, as gpt-oss keeps it."""
        if not self.expert_blocks:
            return None
        groups = in_features // self.group
        return (
            Tensor(f"{name}_blocks", "U8", (copies, out_features, groups, self.group // 2)),
            Tensor(f"{name}_scales", "U8", (copies, out_features, groups)),
        )

    def encode(self, name: str, quantized: Quantized) -> dict[str, torch.Tensor]:
        """Refuse: the layout is read only."""
        raise TightfitError(f"{self.layout} is not written", remedy="choose a format that is")

    def decode(self, name: str, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
        """Refuse: values are not read back."""
        raise TightfitError(f"{self.layout} is not read back", remedy="start from the dense model")


def published_by(method: str) -> Published:
    """Return the format of a `quant_method` that has one layout only. Raises StopIteration for another method."""
    return Published(next(name for name, layout in _LAYOUTS.items() if layout.method == method))
