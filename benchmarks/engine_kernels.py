"""Runs inside the engine's environment: which kernels of the real vLLM say that they take each question.

    python engine_kernels.py QUESTIONS.json      [{"capability", "bits", "zero_points", "group_size", "dtype", "inputs", "shapes"}, …]
                                                 → as many lists of kernels' names, one list a shape, as JSON
                                                 [{"capability", "family"}, …] → as many lists of kernels' names
                                                 [{"capability", "experts"}, …] → [as many {"kernel", "padded"}, …]

The first kind of question is about integers that are unpacked (mixed precision), the second about inputs that are rounded too: int8, fp8,
fp8_block, nvfp4, the third about experts in blocks of 4 bits (gpt-oss): which kernel comes first on a card, and to which sizes it pads each of
`experts` (hidden and intermediate side of a rank). No card is needed: `current_platform` of the kernels' modules is replaced by a CUDA platform of the asked capability × 10,
and Humming, a dependency of vLLM's CUDA package alone, is taken to be installed, for experts FlashInfer and Triton's kernels, too. `shapes` are (outputs, inputs) of a rank. `inputs` "fp8": W4A8.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from pathlib import Path
from types import ModuleType

os.environ |= {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1"}

import torch
from vllm import _custom_ops
from vllm.model_executor.kernels import linear
from vllm.model_executor.kernels.linear.mixed_precision import MPLinearLayerConfig, humming
from vllm.model_executor.kernels.linear.scaled_mm import cutlass
from vllm.model_executor.layers.fused_moe.oracle import mxfp4
from vllm.model_executor.layers.quantization.utils.quant_utils import kMxfp4Static
from vllm.platforms.interface import DeviceCapability, PlatformEnum
from vllm.scalar_type import scalar_types

_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16}
_TYPES = {
    (4, False): scalar_types.uint4b8, (8, False): scalar_types.uint8b128, (4, True): scalar_types.uint4, (8, True): scalar_types.uint8,
}  # fmt: skip
#: What the CUDA package's compiled part says by capability × 10, which the processor's package has not
#: (`csrc/quantization/w8a8/cutlass/scaled_mm_entry.cu`, `csrc/quantization/fp4/nvfp4_scaled_mm_entry.cu`, CUDA 12.8 and newer).
_COMPILED = {
    "cutlass_scaled_mm_supports_fp8": lambda capability: capability >= 89,
    "cutlass_scaled_mm_supports_block_fp8": lambda capability: capability >= 90,
    "cutlass_scaled_mm_supports_fp4": lambda capability: 100 <= capability < 130,
}
#: What says to experts' modules whether packages are there that only the CUDA package brings.
_BROUGHT = ("has_flashinfer", "has_flashinfer_cutlass_fused_moe", "has_triton_kernels")


class Card:
    """A CUDA card as the kernels' `can_implement` ask for it."""

    _enum = PlatformEnum.CUDA

    def __init__(self, capability: int) -> None:
        self.capability = DeviceCapability(*divmod(capability, 10))

    def is_cuda(self) -> bool:
        return True

    is_cuda_alike = is_cuda

    def is_rocm(self) -> bool:
        return False

    is_cpu = is_xpu = is_tpu = is_rocm

    def get_device_capability(self, device_id: int = 0) -> DeviceCapability:
        return self.capability

    def is_device_capability(self, capability: int) -> bool:
        return self.capability.to_int() == capability

    def is_device_capability_family(self, capability: int) -> bool:
        return self.capability.major == capability // 10

    def has_device_capability(self, capability: int | tuple[int, int]) -> bool:
        return (
            self.capability >= capability if isinstance(capability, tuple) else self.capability.to_int() >= capability
        )

    def supports_fp8(self) -> bool:
        return self.has_device_capability(89)

    def support_deep_gemm(self) -> bool:
        return self.is_device_capability(90) or self.is_device_capability_family(100)


def modules() -> list[ModuleType]:
    """The kernels' modules, and what they ask, that hold the platform by name."""
    asked = (
        "vllm.model_executor.kernels.linear", "vllm.model_executor.layers.quantization.utils",
        "vllm.model_executor.layers.fused_moe", "vllm.utils",
    )  # fmt: skip
    return [each for name, each in sys.modules.items() if name.startswith(asked) and hasattr(each, "current_platform")]


def stand_in() -> None:
    """Answer for what only the CUDA package has: Humming, and the compiled part, wherever its functions are held by name."""
    humming.has_humming = lambda: True
    for place, module in [pair for pair in sys.modules.items() if pair[0].startswith("vllm.")]:
        brought = dict.fromkeys(_BROUGHT if "fused_moe" in place else (), lambda: True)
        for name, answer in (_COMPILED | brought).items():
            if hasattr(module, name):
                setattr(module, name, answer)


def config(question: dict, rows: int, inputs: int) -> MPLinearLayerConfig:
    """What a layer asks kernels for."""
    four_eight = question["inputs"] == "fp8"
    kind = scalar_types.int4 if four_eight else _TYPES[question["bits"], question["zero_points"]]
    dtype = _DTYPES[question["dtype"]]
    return MPLinearLayerConfig(
        (inputs, rows), (inputs, rows), kind, torch.float8_e4m3fn if four_eight else dtype, question["group_size"],
        question["zero_points"], out_type=dtype,
    )  # fmt: skip


def scaled_takers(question: dict) -> list[str]:
    """The kernels that a card has for a family, in vLLM's order."""
    cutlass.CUTLASS_BLOCK_FP8_SUPPORTED = _custom_ops.cutlass_scaled_mm_supports_block_fp8(question["capability"])
    kernels = vars(linear)[f"_POSSIBLE_{question['family'].upper()}_KERNELS"][PlatformEnum.CUDA]
    return [kernel.__name__ for kernel in kernels if kernel.is_supported(question["capability"])[0]]


def experts_kernel(sides: list[list[int]]) -> dict:
    """The first kernel that takes experts in blocks on the card, in vLLM's order for gpt-oss, and each pair of sides as it pads them."""
    backends = mxfp4._filter_by_activation(mxfp4._get_priority_backends_for_gpt_oss(), None)
    first = next(backend for backend in backends if any(map(takes_blocks, expert_classes(backend))))
    return {
        "kernel": first.name,
        "padded": [mxfp4.mxfp4_round_up_hidden_size_and_intermediate_size(first, *pair) for pair in sides],
    }


def expert_classes(backend: mxfp4.Mxfp4MoeBackend) -> list[type]:
    """A backend's classes; none where only another platform's package has them."""
    try:
        return mxfp4.backend_to_kernel_cls(backend)
    except ImportError:
        return []


def takes_blocks(experts: type) -> bool:
    return experts._supports_current_device() and experts._supports_quant_scheme(kMxfp4Static, None)


def takers(question: dict, holders: list[ModuleType]) -> list[list[str]] | list[str] | dict:
    """The kernels that would take each shape, in vLLM's order; those of a family, or the one of experts, where that is asked for."""
    for holder in holders:
        holder.current_platform = Card(question["capability"])
    if "experts" in question:
        return experts_kernel(question["experts"])
    if "family" in question:
        return scaled_takers(question)
    kernels = [
        kernel for kernel in linear._POSSIBLE_KERNELS[PlatformEnum.CUDA]
        if kernel.get_min_capability() <= question["capability"]
    ]  # fmt: skip
    return [
        [kernel.__name__ for kernel in kernels if kernel.can_implement(config(question, *shape))[0]]
        for shape in question["shapes"]
    ]


def main() -> None:
    for backend in mxfp4.Mxfp4MoeBackend:  # their modules are imported when they are asked for
        with contextlib.suppress(ImportError, ValueError):
            mxfp4.backend_to_kernel_cls(backend)
    stand_in()
    holders = modules()
    questions = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    print(json.dumps([takers(question, holders) for question in questions]))


if __name__ == "__main__":
    main()
