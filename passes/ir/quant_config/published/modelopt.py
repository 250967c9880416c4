"""NVIDIA ModelOpt's exports, with their settings in config.json or in a file of their own (hf_quant_config.json)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from passes.formats.format import Format
from passes.formats.published import Published
from passes.ir.fields import Fields
from passes.ir.model import ModelIR
from passes.ir.quant_config.module_names import by_name
from passes.ir.quant_config.quant_config import QuantConfig, StorageOf, fields_of, not_understood

#: `quant_algo` -> layout (`LINEAR_ALGOS` of vLLM 0.32's `quantization/modelopt.py`; `FP8_BLOCK…`: other spellings of `FP8_PB_WO`;
#: `W4A16_AWQ`, `W4A8_AWQ`: what TensorRT-LLM reads, and vLLM does not).
_LAYOUTS = {
    "FP8": "fp8-static", "FP8_PER_CHANNEL_PER_TOKEN": "fp8-rows", "FP8_PB_WO": "fp8-block", "FP8_BLOCK": "fp8-block",
    "FP8_BLOCK_SCALES": "fp8-block", "NVFP4": "nvfp4-modelopt", "NVFP4_AWQ": "nvfp4-modelopt", "W4A16_NVFP4": "nvfp4-modelopt-a16",
    "MXFP8": "mxfp8", "W4A16_AWQ": "int4-awq-modelopt", "INT4_AWQ": "int4-awq-modelopt",
    "W4A8_AWQ": "int4-fp8-awq-modelopt",
}  # fmt: skip
_MIXED, _USUAL = "MIXED_PRECISION", "NVFP4"


class ModelOptConfig(QuantConfig):
    """The layout that `quant_algo` names, or that of each matrix in `quantized_layers`."""

    def read(self, settings: Mapping[str, Any], ir: ModelIR) -> StorageOf:
        """Read one format for all; in a mixture, by name. One that names no layers is read as NVFP4 and mended by the headers."""
        said = fields_of(settings, ir)
        if _algorithm(said) == _MIXED and isinstance(said.get("quantized_layers"), Mapping):
            layers = said.inside("quantized_layers")
            own = by_name({name: _format(layers.inside(name), ir) for name in layers.values})
            return lambda name: own(name, None)
        form = _format(said, ir)
        return lambda _: form

    def stores_head(self, settings: Mapping[str, Any], ir: ModelIR) -> bool:
        """Tell whether a mixture names it."""
        return any(name.endswith("lm_head") for name in fields_of(settings, ir).mapping("quantized_layers", {}))

    def experts(self, settings: Mapping[str, Any], ir: ModelIR) -> Format | None:
        """Read the experts' from `moe_quant_algo`."""
        return moe_format(settings)


def moe_format(settings: Mapping[str, Any]) -> Format | None:
    """Return the format of the experts where ModelOpt quantized them another way than the rest."""
    return Published("nvfp4-modelopt") if settings.get("moe_quant_algo") == "NVFP4" else None


def _algorithm(said: Fields) -> str:
    return said.text("quant_algo", "").upper()


def _format(said: Fields, ir: ModelIR) -> Format | None:
    """The layout of an algorithm."""
    algorithm = _algorithm(said)
    layout = _LAYOUTS.get(_USUAL if algorithm == _MIXED else algorithm)
    if layout is None:
        raise not_understood(ir, f"modelopt's quant_algo {algorithm!r}")
    return Published(layout)
