"""Runs inside the engine's environment: which kernels of the real vLLM say that they take each question.

    python engine_kernels.py QUESTIONS.json      [{"capability", "bits", "zero_points", "group_size", "dtype", "inputs", "shapes"}, …]
                                                 → as many lists of kernels' names, one list a shape, as JSON
                                                 [{"capability", "family"}, …] → as many lists of kernels' names

The first kind of question is about integers that are unpacked (mixed precision), the second about inputs that are rounded too: int8, fp8,
fp8_block, nvfp4. No card is needed: `current_platform` of the kernels' modules is replaced by a CUDA platform of the asked capability × 10,
and Humming, a dependency of vLLM's CUDA package alone, is taken to be installed. `shapes` are (outputs, inputs) of a rank. `inputs` "fp8": W4A8.
"""

from __future__ import annotations

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

    def has_device_capability(self, capability: int) -> bool:
        return self.capability.to_int() >= capability

    def supports_fp8(self) -> bool:
        return self.has_device_capability(89)

    def support_deep_gemm(self) -> bool:
        return self.is_device_capability(90) or self.is_device_capability_family(100)


def modules() -> list[ModuleType]:
    """The kernels' modules, and what they ask, that hold the platform by name."""
    asked = ("vllm.model_executor.kernels.linear", "vllm.model_executor.layers.quantization.utils", "vllm.utils")
    return [each for name, each in sys.modules.items() if name.startswith(asked) and hasattr(each, "current_platform")]


def stand_in() -> None:
    """Answer for what only the CUDA package has: Humming, and the compiled part, wherever its functions are held by name."""
    humming.has_humming = lambda: True
    for module in [each for name, each in sys.modules.items() if name.startswith("vllm.")]:
        for name, answer in _COMPILED.items():
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


def takers(question: dict, holders: list[ModuleType]) -> list[list[str]] | list[str]:
    """The kernels that would take each shape, in vLLM's order; those of a family where one is asked for."""
    for holder in holders:
        holder.current_platform = Card(question["capability"])
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
    stand_in()
    holders = modules()
    questions = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    print(json.dumps([takers(question, holders) for question in questions]))


if __name__ == "__main__":
    main()
